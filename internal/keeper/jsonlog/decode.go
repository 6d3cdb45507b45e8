package jsonlog

import (
	"bytes"
	"encoding/json"
	"time"
)

// A Message is one log entry.
type Message struct {
	// Time is when the entry arrived at the keeper.
	Time time.Time
	// Stream is "stdout" or "stderr".
	Stream string
	// Line is the text without its newline, valid only during the call
	// that hands the Message over.
	Line []byte
	// Partial tells that the line goes on in the stream's next entry.
	Partial bool
	// Attrs are what the log options asked for; shared, not to be changed.
	Attrs map[string]string
}

// A decoder turns lines of a file into Messages. It remembers what repeats
// from line to line.
type decoder struct {
	msg     Message
	text    []byte
	stamp   []byte
	attrs   []byte
	attrMap map[string]string
}

var (
	headLog    = []byte(`{"log":"`)
	midStream  = []byte(`,"stream":"`)
	midAttrs   = []byte(`,"attrs":`)
	lastTime   = []byte(`,"time":"`)
	tailObject = []byte(`"}`)
)

// decode parses one line, without its newline. The Message is valid until
// the next call. ok is false for what is no log entry.
func (d *decoder) decode(line []byte) (msg *Message, ok bool) {
	if d.quick(line) {
		return &d.msg, true
	}
	var e struct {
		Log    string            `json:"log"`
		Stream string            `json:"stream"`
		Attrs  map[string]string `json:"attrs"`
		Time   time.Time         `json:"time"`
	}
	if err := json.Unmarshal(line, &e); err != nil || e.Time.IsZero() {
		return nil, false
	}
	d.text = append(d.text[:0], e.Log...)
	d.msg = Message{Time: e.Time, Stream: e.Stream, Attrs: e.Attrs}
	d.setLine()
	return &d.msg, true
}

func (d *decoder) setLine() {
	n := len(d.text)
	if d.msg.Partial = n == 0 || d.text[n-1] != '\n'; !d.msg.Partial {
		n--
	}
	d.msg.Line = d.text[:n]
}

// quick parses the exact form that Writer and Docker write.
func (d *decoder) quick(line []byte) bool {
	if !bytes.HasPrefix(line, headLog) || !bytes.HasSuffix(line, tailObject) {
		return false
	}
	rest, ok := d.unescape(line[len(headLog):])
	if !ok || !bytes.HasPrefix(rest, midStream) {
		return false
	}
	rest = rest[len(midStream):]
	at := bytes.LastIndex(rest, lastTime)
	if at < len("stdout\"") || at+len(lastTime) > len(rest)-len(tailObject) {
		return false
	}
	if !d.setTime(rest[at+len(lastTime) : len(rest)-len(tailObject)]) {
		return false
	}
	switch string(rest[:len("stdout\"")]) {
	case `stdout"`:
		d.msg.Stream = "stdout"
	case `stderr"`:
		d.msg.Stream = "stderr"
	default:
		return false
	}
	if !d.setAttrs(rest[len("stdout\""):at]) {
		return false
	}
	d.setLine()
	return true
}

func (d *decoder) setTime(stamp []byte) bool {
	if len(stamp) > 0 && bytes.Equal(stamp, d.stamp) {
		return true // lines that arrived together
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil || t.IsZero() {
		d.stamp = d.stamp[:0]
		return false
	}
	d.msg.Time = t
	d.stamp = append(d.stamp[:0], stamp...)
	return true
}

func (d *decoder) setAttrs(raw []byte) bool {
	if len(raw) == 0 {
		d.msg.Attrs = nil
		return true
	}
	if !bytes.Equal(raw, d.attrs) {
		var m map[string]string
		if !bytes.HasPrefix(raw, midAttrs) || json.Unmarshal(raw[len(midAttrs):], &m) != nil {
			return false
		}
		d.attrs, d.attrMap = append(d.attrs[:0], raw...), m
	}
	d.msg.Attrs = d.attrMap
	return true
}

// unescape decodes a JSON string into d.text and returns what follows its
// closing quote.
func (d *decoder) unescape(b []byte) (rest []byte, ok bool) {
	d.text = d.text[:0]
	for {
		i := 0
		for i < len(b) && b[i] != '"' && b[i] != '\\' && b[i] >= ' ' {
			i++
		}
		if i == len(b) || b[i] < ' ' {
			return nil, false
		}
		d.text = append(d.text, b[:i]...)
		if b[i] == '"' {
			return b[i+1:], true
		}
		if i+1 >= len(b) {
			return nil, false
		}
		c := b[i+1]
		b = b[i+2:]
		switch c {
		case 'n':
			d.text = append(d.text, '\n')
		case 't':
			d.text = append(d.text, '\t')
		case 'r':
			d.text = append(d.text, '\r')
		case '"', '\\', '/':
			d.text = append(d.text, c)
		case 'u':
			r, ok := hex4(b)
			if !ok || r >= 0xd800 && r < 0xe000 {
				return nil, false
			}
			d.text = appendRune(d.text, r)
			b = b[4:]
		default:
			return nil, false
		}
	}
}

func appendRune(b []byte, r rune) []byte { return append(b, string(r)...) }

func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
