package model

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/moby/moby/api/types/swarm"
)

func TestAValueDoesNotShowItself(t *testing.T) {
	const secret = "hunter2"
	p := &Payload{Kind: KindSecret, Num: 1, Value: Value(secret)}
	batch := Batch{Txns: []Txn{{Changes: []Change{{PutPayload: p}}}}}
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("x", "value", p.Value, "payload", p, "whole", *p, "batch", batch)
	}
	inJSON, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{log.String(), string(inJSON)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		texts = append(texts, fmt.Sprintf(verb, p.Value), fmt.Sprintf(verb, *p), fmt.Sprintf(verb, p))
	}
	for _, text := range texts {
		for _, form := range []string{secret, "aHVudGVyMg", fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), "104 117 110"} {
			if strings.Contains(text, form) {
				t.Errorf("the value shows as %q", text)
			}
		}
	}
	raw, err := cbor.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var back Payload
	if err := cbor.Unmarshal(raw, &back); err != nil || string(back.Value) != secret {
		t.Errorf("the log would keep %d bytes of the value, error %v", len(back.Value), err)
	}
}

func TestPayloadRefs(t *testing.T) {
	var c swarm.ContainerSpec
	err := json.Unmarshal([]byte(`{"Configs":[{"ConfigID":"c1","ConfigName":"conf","File":{"Name":"conf"}},{"ConfigID":"c2","ConfigName":"spec","Runtime":{}}],
		"Secrets":[{"SecretID":"s1","SecretName":"a","File":{"Name":"a","UID":"7","GID":"8","Mode":256}},
		{"SecretID":"s2","SecretName":"b","File":{"Name":"sub/../b"}},{"SecretID":"s3","SecretName":"c","File":{"Name":"/etc//c","UID":"root"}},
		{"SecretID":"s4","SecretName":"d","File":{"Name":"d","GID":"4294967295"}}]}`), &c)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range PayloadRefs(&c) {
		uid, gid, mode, err := r.Owner()
		got = append(got, fmt.Sprintf("%s %s %s %d:%d %o %v", r.Kind, r.ID, r.Target(), uid, gid, mode, err))
	}
	want := []string{
		"secret s1 /run/secrets/a 7:8 400 <nil>",
		"secret s2 /run/secrets/b 0:0 444 <nil>",
		`secret s3 /etc/c 0:0 444 secret 'c': invalid user "root": it must be a number`,
		`secret s4 /run/secrets/d 0:0 444 secret 'd': invalid group "4294967295": it must be a number`,
		"config c1 /conf 0:0 444 <nil>",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if PayloadRefs(nil) != nil {
		t.Error("no container, but references")
	}
}
