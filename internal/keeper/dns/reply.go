package dns

import (
	"bytes"
	"encoding/binary"
	"time"
)

const (
	// maxKeep bounds how long an answer from outside is kept, whatever its TTL says; maxKeepNot the same for "there is no such
	// name", which is what users wait for to change.
	maxKeep    = time.Hour
	maxKeepNot = time.Minute
	// maxRecords bounds the records of one message from outside; more are not looked at.
	maxRecords = 4096
)

// records calls fn for each record of a message from outside, with its section (0 answers, 1 authority, 2 additional) and where
// it begins and ends, until fn returns false.
func records(b []byte, fn func(section, start, end int, r record) bool) error {
	off, err := skipName(b, headerLen)
	if err != nil {
		return err
	}
	off += 4
	left := maxRecords
	for section := range 3 {
		for range binary.BigEndian.Uint16(b[6+2*section:]) {
			if left--; left < 0 {
				return errLong
			}
			r, next, err := readRecord(b, off)
			if err != nil {
				return err
			}
			if !fn(section, off, next, r) {
				return nil
			}
			off = next
		}
	}
	return nil
}

// replies reports whether b answers the question that was sent: same ID, same question. Some servers change its case.
func replies(b, sent []byte, end int) bool {
	return len(b) >= end && bytes.Equal(b[:2], sent[:2]) && b[2]&0x80 != 0 && b[2]>>3&0xf == 0 &&
		binary.BigEndian.Uint16(b[4:]) == 1 && sameLetters(b[headerLen:end], sent[headerLen:end])
}

// sameLetters compares without regard to the case of ASCII letters; the lengths of labels and the types that may occur in what
// it is used for are none or must be equal anyhow.
func sameLetters(a, b []byte) bool {
	for i, c := range a {
		d := b[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if 'A' <= d && d <= 'Z' {
			d += 'a' - 'A'
		}
		if c != d {
			return false
		}
	}
	return true
}

// refused reports whether b, of at least a header, answers with an error that has no question section.
func refused(b, sent []byte) bool {
	return len(b) >= headerLen && bytes.Equal(b[:2], sent[:2]) && b[2]&0x80 != 0 && binary.BigEndian.Uint16(b[4:]) == 0 &&
		b[3]&codeMask != rcodeOK
}

func rcodeOf(b []byte) uint16 { return uint16(b[3] & codeMask) }

func truncated(b []byte) bool { return b[2]&(bitTC>>8) != 0 }

// keepFor is how long an answer from outside may be kept; 0 is not at all.
func keepFor(b []byte) time.Duration {
	rcode := rcodeOf(b)
	if truncated(b) || rcode != rcodeOK && rcode != rcodeNXDomain {
		return 0
	}
	least, answers, negative := uint32(maxKeep/time.Second), 0, uint32(0)
	soa := false
	err := records(b, func(section, _, _ int, r record) bool {
		switch {
		case r.typ == typeOPT:
		case section == 0:
			// A chain of aliases that ends nowhere is no answer.
			if r.typ != typeCNAME {
				answers++
			}
			least = min(least, r.ttl)
		case section == 1 && r.typ == typeSOA && len(r.data) >= 20:
			soa = true
			negative = min(r.ttl, binary.BigEndian.Uint32(r.data[len(r.data)-4:]))
		}
		return true
	})
	switch {
	case err != nil:
		return 0
	case rcode == rcodeOK && answers > 0:
		return time.Duration(least) * time.Second
	case soa:
		return min(time.Duration(min(least, negative))*time.Second, maxKeepNot)
	}
	return 0
}

// age takes passed from the TTLs of an answer that was kept.
func age(b []byte, passed time.Duration) {
	old := uint32(passed / time.Second)
	if old == 0 {
		return
	}
	// It was walked before it was kept.
	_ = records(b, func(_, _, _ int, r record) bool {
		if r.typ != typeOPT {
			binary.BigEndian.PutUint32(b[r.ttlAt:], max(r.ttl, old)-old)
		}
		return true
	})
}

// fit makes an answer from outside at most limit bytes long: what comes behind the answers goes first, but for OPT, then the last
// answers, and then TC tells the client to ask by TCP. Whole records stay: old clients use what they get.
func fit(b []byte, limit int) []byte {
	if len(b) <= limit {
		return b
	}
	end, err := skipName(b, headerLen)
	if err != nil || end+4 > limit {
		return nil
	}
	end += 4
	cut, answers := end, uint16(0)
	var opt []byte
	err = records(b, func(section, start, stop int, r record) bool {
		switch {
		case section == 0:
			if stop <= limit {
				cut, answers = stop, answers+1
			}
		case section == 2 && r.typ == typeOPT && b[start] == 0:
			opt = append(opt[:0], b[start:stop]...)
		}
		return true
	})
	if err != nil {
		cut, answers, opt = end, 0, nil
	}
	if len(opt) > 0 && cut+len(opt) > limit {
		opt = opt[:11] // without its options
		opt[9], opt[10] = 0, 0
		cut, answers = lastBefore(b, end, limit-len(opt))
	}
	whole := binary.BigEndian.Uint16(b[6:])
	out := append(b[:cut], opt...)
	if answers < whole || whole == 0 {
		out[2] |= bitTC >> 8
	}
	binary.BigEndian.PutUint16(out[6:], answers)
	binary.BigEndian.PutUint16(out[8:], 0)
	binary.BigEndian.PutUint16(out[10:], uint16(min(len(opt), 1)))
	return out
}

// lastBefore is where the last answer record ends that fits into limit, and how many do.
func lastBefore(b []byte, from, limit int) (cut int, answers uint16) {
	cut = from
	_ = records(b, func(section, _, stop int, _ record) bool {
		if section > 0 || stop > limit {
			return false
		}
		cut, answers = stop, answers+1
		return true
	})
	return cut, answers
}
