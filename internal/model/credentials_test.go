package model_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/skep-swarm/skep/internal/model"
)

// TestCredentialsAreHidden: only the log's encoding shows them.
func TestCredentialsAreHidden(t *testing.T) {
	rev := model.Revision{Num: 1, RegistryAuth: model.Credentials(`{"password":"hunter2"}`)}
	body, err := json.Marshal(rev)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(body), fmt.Sprintf("%v %+v %#v %s", rev, rev, rev, rev.RegistryAuth), fmt.Sprint(&rev)} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, "104 117 110") {
			t.Errorf("the credentials are in %s", text)
		}
	}
	data, err := cbor.Marshal(rev)
	if err != nil {
		t.Fatal(err)
	}
	var back model.Revision
	if err := cbor.Unmarshal(data, &back); err != nil || !bytes.Equal(back.RegistryAuth, rev.RegistryAuth) {
		t.Errorf("the log gives back %q, %v", []byte(back.RegistryAuth), err)
	}
}
