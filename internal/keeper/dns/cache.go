package dns

import (
	"container/list"
	"sync"
	"time"
)

// Bounds of the cache of names outside: 1 MiB on a node.
const (
	maxCached     = 2048
	maxCacheBytes = 1 << 20
	maxCachedLen  = 4096 // of one answer, in bytes
)

// cacheKey tells a question with all that the answer depends on.
type cacheKey struct {
	scope uint32 // who was asked: 0 is the host's resolvers
	typ   uint16
	flags uint16 // RD, AD, CD, and whether there is EDNS and DO
	name  string
}

const (
	keyEDNS = 1 << 0
	keyDO   = 1 << 1
)

type cached struct {
	key   cacheKey
	reply []byte // never changed
	at    time.Time
	until time.Time
}

// cache keeps answers from outside, the last used ones first. Safe for concurrent use.
type cache struct {
	now func() time.Time

	mu    sync.Mutex
	byKey map[cacheKey]*list.Element
	order *list.List // of *cached, the last used in front
	bytes int
}

func newCache(now func() time.Time) *cache {
	return &cache{now: now, byKey: map[cacheKey]*list.Element{}, order: list.New()}
}

// get returns a copy of an answer with TTLs as they are now, in buf if it has room.
func (c *cache) get(key cacheKey, buf []byte) ([]byte, bool) {
	now := c.now()
	c.mu.Lock()
	e := c.byKey[key]
	if e == nil {
		c.mu.Unlock()
		return nil, false
	}
	v := e.Value.(*cached)
	if !now.Before(v.until) {
		c.drop(e)
		c.mu.Unlock()
		return nil, false
	}
	c.order.MoveToFront(e)
	c.mu.Unlock()
	out := append(buf[:0], v.reply...)
	age(out, now.Sub(v.at))
	return out, true
}

// put keeps a copy of an answer.
func (c *cache) put(key cacheKey, reply []byte) {
	keep := keepFor(reply)
	if keep <= 0 || len(reply) > maxCachedLen {
		return
	}
	now := c.now()
	v := &cached{key: key, reply: append([]byte(nil), reply...), at: now, until: now.Add(keep)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[key]; e != nil {
		c.drop(e)
	}
	c.byKey[key] = c.order.PushFront(v)
	c.bytes += v.size()
	for len(c.byKey) > maxCached || c.bytes > maxCacheBytes {
		c.drop(c.order.Back())
	}
}

func (v *cached) size() int { return len(v.reply) + len(v.key.name) + 200 }

// drop is called with c.mu held.
func (c *cache) drop(e *list.Element) {
	v := c.order.Remove(e).(*cached)
	delete(c.byKey, v.key)
	c.bytes -= v.size()
}

// forget drops the answers of one scope.
func (c *cache) forget(scope uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, e := range c.byKey {
		if key.scope == scope {
			c.drop(e)
		}
	}
}

// key is what an answer to q from a scope is kept under; text is q's name in lower case.
func (q *query) key(scope uint32, text []byte) cacheKey {
	k := cacheKey{scope: scope, typ: q.typ, flags: q.flags & (bitRD | bitAD | bitCD), name: string(text)}
	if q.edns {
		k.flags |= keyEDNS
	}
	if q.do {
		k.flags |= keyDO
	}
	return k
}
