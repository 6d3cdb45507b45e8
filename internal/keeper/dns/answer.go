package dns

// reply answers a question from the tables and the cache; false when it has to go outside. err is what reading the question
// said. The reply, of at most limit bytes, is nil when there is nothing to say; it is valid until w is used again. s.mu is held.
func (s *Server) reply(c *client, q *query, err error, limit int, w *desk) ([]byte, bool) {
	a := &w.answer
	switch {
	case err == errNoQuery:
		return nil, true
	case err == errNotImpl:
		q.end = headerLen
		a.begin(q, limit)
		return a.finish(q, 0, rcodeNotImpl), true
	case err != nil:
		q.end, q.edns = headerLen, false
		a.begin(q, limit)
		return a.finish(q, 0, rcodeFormat), true
	}
	a.begin(q, limit)
	switch {
	case q.edns && q.vers != 0:
		return a.finish(q, 0, rcodeBadVers), true
	case q.class != classIN && q.class != classANY:
		return a.finish(q, 0, rcodeRefused), true
	}
	name, plain := q.text(&w.text)
	w.name = name
	if !plain {
		w.name = q.name
	} else if out, ok := s.own(c, q, name, w); ok {
		return out, true
	}
	who, ok := s.asker(c)
	if !ok {
		return a.finish(q, 0, rcodeServFail), true
	}
	if q.opts { // a cookie, or where the client is: such an answer is for it alone
		return nil, false
	}
	out, hit := s.fw.cache.get(q.key(who.scope, w.name), w.buf)
	if !hit {
		return nil, false
	}
	w.buf = out
	copy(out[:2], q.raw[:2])
	copy(out[headerLen:q.end], q.raw[headerLen:q.end]) // with the client's capitals
	return fit(out, limit), true
}

// own answers from the tables; false when the name is none of ours.
func (s *Server) own(c *client, q *query, name []byte, w *desk) ([]byte, bool) {
	a := &w.answer
	if q.typ == typePTR {
		return s.pointer(c, q, name, w)
	}
	typ := q.typ
	list, what := lookup(c.nets, name, typ, c.cfg.Self, w.addrs[:0])
	w.addrs = list[:0]
	if what == foreign {
		// A name that is only not known yet must not be sent to others, nor be told not to exist.
		for _, n := range c.nets {
			if !s.known[n.id] {
				return a.finish(q, 0, rcodeServFail), true
			}
		}
		return nil, false
	}
	for _, addr := range list {
		a.address(addr)
	}
	return a.finish(q, bitAA, rcodeOK), true
}

// pointer answers who has an address.
func (s *Server) pointer(c *client, q *query, name []byte, w *desk) ([]byte, bool) {
	a := &w.answer
	addr, ok := parseReverse(string(name))
	if !ok {
		if _, what := lookup(c.nets, name, q.typ, c.cfg.Self, nil); what == found {
			return a.finish(q, bitAA, rcodeOK), true
		}
		return nil, false
	}
	addr = addr.Unmap()
	host, what := reverse(c.nets, addr)
	switch what {
	case found:
		var buf [maxName]byte
		if data, ok := appendName(buf[:0], host); ok {
			a.record(typePTR, data)
		}
		return a.finish(q, bitAA, rcodeOK), true
	case absent:
		return a.finish(q, bitAA, rcodeNXDomain), true
	}
	return nil, false
}

// errand is a question that goes outside, admitted within the limits; fetch must be called once.
type errand struct {
	c    *client
	who  asker
	raw  []byte
	tcp  bool
	key  cacheKey
	keep bool
}

// admit lets a question go outside, or returns a refusal. raw is kept; w has the question's name. s.mu is held.
func (s *Server) admit(c *client, q *query, raw []byte, tcp bool, w *desk) (e *errand, refusal []byte) {
	who, ok := s.asker(c)
	if !ok {
		return nil, failure(raw, rcodeServFail)
	}
	if !c.enter(s.now()) {
		return nil, failure(raw, rcodeRefused)
	}
	select {
	case s.slots <- struct{}{}:
	default:
		c.leave()
		return nil, failure(raw, rcodeRefused)
	}
	s.busy.Add(1)
	return &errand{c: c, who: who, raw: raw, tcp: tcp, key: q.key(who.scope, w.name), keep: !q.opts}, nil
}

// fetch asks the resolvers and hands the reply to done, unless the task ends before.
func (s *Server) fetch(e *errand, done func(reply []byte)) {
	defer s.busy.Done()
	defer e.c.leave()
	defer func() { <-s.slots }()
	reply := s.fw.ask(e.c.ctx, e.who, e.raw, e.tcp)
	if reply == nil {
		return
	}
	if e.keep {
		s.fw.cache.put(e.key, reply)
	}
	done(reply)
}
