package daemon

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/skep-swarm/skep/internal/durable"
	"github.com/skep-swarm/skep/internal/model"
	"github.com/skep-swarm/skep/internal/pki"
)

// identity is what this node is in a swarm, as kept under DATA_ROOT/swarm.
type identity struct {
	Cluster string       `json:"cluster"`
	NodeID  string       `json:"nodeID"`
	Node    model.NodeID `json:"node"`
	Manager bool         `json:"manager"`
	// ListenAddr and AdvertiseAddr are host:port.
	ListenAddr    string `json:"listenAddr"`
	AdvertiseAddr string `json:"advertiseAddr"`
	// RaftKey encrypts the log and its snapshots on disk.
	RaftKey hexKey `json:"raftKey"`
	// Founding says that the swarm is just being made: nobody was told of it yet, and a daemon that finds
	// this at its start forgets it.
	Founding bool `json:"founding,omitempty"`

	creds atomic.Pointer[pki.Credentials]
}

// addr is the host part of AdvertiseAddr.
func (id *identity) addr() string {
	host, _, err := net.SplitHostPort(id.AdvertiseAddr)
	if err != nil {
		return id.AdvertiseAddr
	}
	return host
}

type hexKey [32]byte

// MarshalText and UnmarshalText keep the key as hex.
func (k hexKey) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(k[:])), nil }
func (k *hexKey) UnmarshalText(b []byte) error {
	n, err := hex.Decode(k[:], b)
	if err == nil && n != len(k) {
		err = fmt.Errorf("a key of %d bytes, want %d", n, len(k))
	}
	return err
}

const (
	certFile = "swarm-node.crt"
	keyFile  = "swarm-node.key"
	rootFile = "swarm-root-ca.crt"
	// nextKeyFile is the key of a certificate that is just being written.
	nextKeyFile = "swarm-node.key.next"
)

func (c *Config) identityFile() string        { return c.data("swarm", "node.json") }
func (c *Config) certPath(name string) string { return c.data("swarm", "certificates", name) }

// loadIdentity reads who this node is; nil when it is in no swarm.
func loadIdentity(cfg *Config) (*identity, error) {
	data, err := os.ReadFile(cfg.identityFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's identity: %w", err)
	}
	id := new(identity)
	if err := json.Unmarshal(data, id); err != nil {
		return nil, fmt.Errorf("read the node's identity in %s: %w", cfg.identityFile(), err)
	}
	creds, err := readCredentials(cfg)
	if err != nil {
		return nil, err
	}
	id.creds.Store(creds)
	return id, nil
}

// readCredentials reads the node's certificate and its key. A certificate whose time is over, or has not come by this
// host's clock, is read all the same: renewing it is the node's first business, and tasks must not wait for a clock.
func readCredentials(cfg *Config) (*pki.Credentials, error) {
	var pem [2][]byte
	var err error
	for i, name := range []string{certFile, rootFile} {
		if pem[i], err = os.ReadFile(cfg.certPath(name)); err != nil {
			return nil, fmt.Errorf("read the node's certificate: %w", err)
		}
	}
	chain, err := pki.DecodeCerts(pem[0])
	if err != nil {
		return nil, fmt.Errorf("node certificate in %s: none can be read: %w", filepath.Dir(cfg.certPath(certFile)), err)
	}
	at := time.Now()
	if at.Before(chain[0].NotBefore) {
		at = chain[0].NotBefore
	} else if at.After(chain[0].NotAfter) {
		at = chain[0].NotAfter
	}
	var errs []error
	for _, name := range []string{keyFile, nextKeyFile} {
		key, err := os.ReadFile(cfg.certPath(name))
		if errors.Is(err, fs.ErrNotExist) && name == nextKeyFile {
			continue
		}
		if err == nil {
			var creds *pki.Credentials
			if creds, err = pki.NewCredentials(pem[0], key, pem[1], at); err == nil {
				return creds, takeNextKey(cfg, name)
			}
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("node certificate in %s: %w", filepath.Dir(cfg.certPath(certFile)), errors.Join(errs...))
}

// takeNextKey ends what a crash cut short in save: the next key to be written must not take the place of the one that is in use.
func takeNextKey(cfg *Config, name string) error {
	if name != nextKeyFile {
		return nil
	}
	err := os.Rename(cfg.certPath(nextKeyFile), cfg.certPath(keyFile))
	if err == nil {
		err = durable.SyncDir(filepath.Dir(cfg.certPath(keyFile)))
	}
	if err != nil {
		return fmt.Errorf("write the node's key: %w", err)
	}
	return nil
}

// save writes the identity; the file that says that there is one comes last.
func (id *identity) save(cfg *Config, certPEM, keyPEM, rootPEM []byte) error {
	creds, err := pki.NewCredentials(certPEM, keyPEM, rootPEM, time.Now())
	if err != nil {
		return fmt.Errorf("node certificate: %w", err)
	}
	// A new certificate and its key are two files. Wherever this is cut short, the certificate has its key in one of two.
	for _, f := range []struct {
		name string
		data []byte
	}{{rootFile, rootPEM}, {nextKeyFile, keyPEM}, {certFile, certPEM}} {
		if err := writeFile(cfg.certPath(f.name), f.data); err != nil {
			return err
		}
	}
	if err := takeNextKey(cfg, nextKeyFile); err != nil {
		return err
	}
	id.creds.Store(creds)
	return id.write(cfg)
}

// write replaces the file that says who this node is.
func (id *identity) write(cfg *Config) error {
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("write the node's identity: %w", err)
	}
	return writeFile(cfg.identityFile(), data)
}

// forgetSwarm removes everything that says that this node is in a swarm. The identity goes first, and for good: without
// it the rest is nobody's (the log's key is in it), with it but without a log the node would wait for a leader for ever.
func forgetSwarm(cfg *Config) error {
	err := os.RemoveAll(cfg.identityFile())
	if err == nil {
		err = durable.SyncDir(filepath.Dir(cfg.identityFile()))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return errors.Join(err, os.RemoveAll(cfg.data("swarm")), os.RemoveAll(cfg.data("raft")), os.RemoveAll(cfg.data("agent")))
}

// writeFile replaces a private file at once and for good, and makes its directory: after a power loss it holds the old or the
// new content.
func writeFile(path string, data []byte) error {
	err := durable.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = durable.WriteFile(path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
