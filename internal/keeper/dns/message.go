package dns

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Kinds of records, classes and response codes that this server speaks of.
const (
	typeA     = 1
	typeCNAME = 5
	typeSOA   = 6
	typePTR   = 12
	typeAAAA  = 28
	typeOPT   = 41
	typeANY   = 255

	classIN  = 1
	classANY = 255

	rcodeOK       = 0
	rcodeFormat   = 1
	rcodeServFail = 2
	rcodeNXDomain = 3
	rcodeNotImpl  = 4
	rcodeRefused  = 5
	rcodeBadVers  = 16
)

// Bits of the header's second word.
const (
	bitQR    = 1 << 15
	bitAA    = 1 << 10
	bitTC    = 1 << 9
	bitRD    = 1 << 8
	bitRA    = 1 << 7
	bitAD    = 1 << 5
	bitCD    = 1 << 4
	opMask   = 0xf << 11
	codeMask = 0xf
)

const (
	headerLen = 12
	maxName   = 255 // bytes of a name on the wire
	maxLabel  = 63
	// minUDP is what a client without EDNS takes, in bytes. maxUDP is the most that is sent or accepted in one datagram: the
	// sockets of tasks are on loopback, where that is one packet.
	minUDP = 512
	maxUDP = 4096
	// maxQuery bounds a question: a name, an OPT record and room for the options that clients send.
	maxQuery = 1232
	// maxTCP bounds a message over TCP.
	maxTCP = 65535
	// ednsOwn is what this server announces to take by UDP.
	ednsOwn = maxQuery
	// ttl of own names, in seconds. Docker's is 600, and clients that keep to it talk to tasks that are long gone; asking again
	// costs microseconds, for the server is on loopback.
	ttl = 5
)

// query is a question that was read. name and raw are parts of the buffer that it was read from.
type query struct {
	raw   []byte
	id    uint16
	flags uint16
	name  []byte // on the wire: labels with their lengths, to the zero byte
	typ   uint16
	class uint16
	end   int // of the question section

	edns bool
	opt  int // where the OPT record begins
	size int // the longest answer by UDP that the client takes, in bytes
	do   bool
	vers uint8
	opts bool // the OPT record has options
}

var (
	errNoQuery = errors.New("not a question")      // not worth an answer
	errFormat  = errors.New("malformed question")  // rcodeFormat
	errNotImpl = errors.New("unknown opcode")      // rcodeNotImpl
	errLong    = errors.New("a message cut short") // of a message from elsewhere
)

// readQuery reads one question. With errNoQuery there is nothing to answer; with other errors q has what an answer needs.
func readQuery(b []byte) (q query, err error) {
	if len(b) < headerLen || len(b) > maxQuery {
		return q, errNoQuery
	}
	q.raw, q.end, q.size = b, headerLen, minUDP
	q.id, q.flags = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if q.flags&bitQR != 0 {
		return q, errNoQuery
	}
	if q.flags&opMask != 0 {
		return q, errNotImpl
	}
	questions, answers := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	authority, extra := binary.BigEndian.Uint16(b[8:]), binary.BigEndian.Uint16(b[10:])
	if questions != 1 || answers != 0 || authority != 0 || extra > 2 {
		return q, errFormat
	}
	end, ok := plainName(b, headerLen)
	if !ok || end+4 > len(b) {
		return q, errFormat
	}
	q.name = b[headerLen:end]
	q.typ, q.class = binary.BigEndian.Uint16(b[end:]), binary.BigEndian.Uint16(b[end+2:])
	q.end = end + 4
	off := q.end
	for range extra {
		r, next, err := readRecord(b, off)
		if err != nil || r.typ == typeOPT && (q.edns || b[off] != 0) {
			return q, errFormat
		}
		if r.typ == typeOPT {
			q.edns, q.opt, q.opts = true, off, len(r.data) > 0
			q.size = min(max(int(r.class), minUDP), maxUDP)
			q.vers, q.do = uint8(r.ttl>>16), r.ttl&(1<<15) != 0
		}
		off = next
	}
	if off != len(b) {
		return q, errFormat
	}
	return q, nil
}

// plainName returns where the name at off ends, which must not be compressed.
func plainName(b []byte, off int) (end int, ok bool) {
	for start := off; off < len(b); {
		n := int(b[off])
		off++
		switch {
		case n == 0:
			return off, off-start <= maxName
		case n > maxLabel:
			return 0, false
		}
		off += n
	}
	return 0, false
}

// record is one resource record; data is a part of the message.
type record struct {
	typ, class uint16
	ttl        uint32
	ttlAt      int // where the TTL lies
	data       []byte
}

// readRecord reads the record at off and returns where it ends. Names in it are skipped, not resolved.
func readRecord(b []byte, off int) (r record, next int, err error) {
	off, err = skipName(b, off)
	if err != nil {
		return r, 0, err
	}
	if off+10 > len(b) {
		return r, 0, errLong
	}
	r.typ, r.class = binary.BigEndian.Uint16(b[off:]), binary.BigEndian.Uint16(b[off+2:])
	r.ttl, r.ttlAt = binary.BigEndian.Uint32(b[off+4:]), off+4
	n := int(binary.BigEndian.Uint16(b[off+8:]))
	off += 10
	if off+n > len(b) {
		return r, 0, errLong
	}
	r.data = b[off : off+n]
	return r, off + n, nil
}

// skipName returns where the (possibly compressed) name at off ends.
func skipName(b []byte, off int) (int, error) {
	for off < len(b) {
		switch n := int(b[off]); {
		case n == 0:
			return off + 1, nil
		case n&0xc0 == 0xc0:
			if off+2 > len(b) {
				return 0, errLong
			}
			return off + 2, nil
		case n > maxLabel:
			return 0, errFormat
		default:
			off += 1 + n
		}
	}
	return 0, errLong
}

// text writes the question's name in lower case with dots between labels into buf. It is false for one that cannot be a name of
// ours: a label with a dot in it would read like two.
func (q *query) text(buf *[maxName]byte) ([]byte, bool) {
	out := buf[:0]
	for i := 0; i < len(q.name) && q.name[i] != 0; {
		n := int(q.name[i])
		if len(out) > 0 {
			out = append(out, '.')
		}
		for _, c := range q.name[i+1 : i+1+n] {
			switch {
			case c == '.':
				return nil, false
			case 'A' <= c && c <= 'Z':
				c += 'a' - 'A'
			}
			out = append(out, c)
		}
		i += 1 + n
	}
	return out, true
}

// answer builds the reply to a question in a buffer that is used again.
type answer struct {
	buf   []byte
	limit int // bytes
	count uint16
	edns  int // bytes that the OPT record will take
	full  bool
}

// begin starts the reply to q, of at most limit bytes.
func (a *answer) begin(q *query, limit int) {
	a.limit, a.count, a.full, a.edns = limit, 0, false, 0
	if q.edns {
		a.edns = 11
	}
	a.buf = append(a.buf[:0], q.raw[:q.end]...)
	clear(a.buf[4:headerLen])
	if q.end > headerLen {
		a.buf[5] = 1
	}
}

// address adds a record for the question's name.
func (a *answer) address(addr netip.Addr) {
	if addr.Is4() {
		ip := addr.As4()
		a.record(typeA, ip[:])
		return
	}
	ip := addr.As16()
	a.record(typeAAAA, ip[:])
}

// record adds a record for the question's name, or notes that there is no room.
func (a *answer) record(typ uint16, data []byte) {
	if a.full || len(a.buf)+12+len(data)+a.edns > a.limit {
		a.full = true
		return
	}
	a.buf = append(a.buf, 0xc0, headerLen) // the question's name
	a.buf = binary.BigEndian.AppendUint16(a.buf, typ)
	a.buf = binary.BigEndian.AppendUint16(a.buf, classIN)
	a.buf = binary.BigEndian.AppendUint32(a.buf, ttl)
	a.buf = binary.BigEndian.AppendUint16(a.buf, uint16(len(data)))
	a.buf = append(a.buf, data...)
	a.count++
}

// finish returns the reply; flags are added to the usual ones. It is valid until the next begin.
func (a *answer) finish(q *query, flags uint16, rcode uint16) []byte {
	out := bitQR | bitRA | q.flags&(opMask|bitRD|bitCD) | flags | rcode&codeMask
	if a.full {
		out |= bitTC
	}
	binary.BigEndian.PutUint16(a.buf[2:], out)
	binary.BigEndian.PutUint16(a.buf[6:], a.count)
	if q.edns {
		var do byte
		if q.do {
			do = 0x80
		}
		a.buf[11] = 1
		a.buf = append(a.buf, 0, 0, typeOPT, ednsOwn>>8, ednsOwn&0xff, byte(rcode>>4), 0, do, 0, 0, 0)
	}
	return a.buf
}

// appendName writes a name with dots in the wire's form; false when it cannot be one.
func appendName(b []byte, name string) ([]byte, bool) {
	start := len(b)
	for len(name) > 0 {
		n := 0
		for n < len(name) && name[n] != '.' {
			n++
		}
		if n == 0 || n > maxLabel {
			return b[:start], false
		}
		b = append(append(b, byte(n)), name[:n]...)
		name = name[min(n+1, len(name)):]
	}
	b = append(b, 0)
	if len(b)-start > maxName {
		return b[:start], false
	}
	return b, true
}
