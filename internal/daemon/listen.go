package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// socketGroup may use the API: whoever is in it is root on this machine in all but name.
const socketGroup = "skep"

// listen opens one API address.
func listen(cfg *Config, host string) (net.Listener, error) {
	proto, addr, ok := strings.Cut(host, "://")
	if !ok || addr == "" && proto != "fd" {
		return nil, fmt.Errorf("host %q: want unix://PATH or tcp://ADDR:PORT", host)
	}
	switch proto {
	case "unix":
		return listenUnix(addr)
	case "tcp":
		return listenTLS(cfg, addr)
	case "fd":
		return listenFD()
	}
	return nil, fmt.Errorf("host %q: unknown protocol %q: want unix://, tcp:// or fd://", host, proto)
}

func listenUnix(path string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("socket %s: the path must be absolute", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	// The data root is locked, so what is here is what a killed daemon left; but a
	// socket that answers is another program's.
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another program answers there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("socket: %w", err), l.Close())
	}
	if g, err := user.LookupGroup(socketGroup); err == nil {
		gid, err := strconv.Atoi(g.Gid)
		if err == nil {
			err = os.Chown(path, 0, gid)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("give the socket to group %s: %w", socketGroup, err), l.Close())
		}
	}
	return l, nil
}

// listenTLS serves over TCP with certificates on both sides only: the API is root on this machine.
func listenTLS(cfg *Config, addr string) (net.Listener, error) {
	if !cfg.TLSVerify || cfg.TLSCA == "" || cfg.TLSCert == "" || cfg.TLSKey == "" {
		return nil, fmt.Errorf("host tcp://%s: the API over TCP needs --tlsverify with --tlscacert, --tlscert and --tlskey, for whoever reaches it is root here", addr)
	}
	cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("API certificate: %w", err)
	}
	pem, err := os.ReadFile(cfg.TLSCA)
	if err != nil {
		return nil, fmt.Errorf("--tlscacert: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--tlscacert %s: no certificate in it", cfg.TLSCA)
	}
	l, err := tls.Listen("tcp", addr, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
	if err != nil {
		return nil, fmt.Errorf("host tcp://%s: %w", addr, err)
	}
	return l, nil
}

// listenFD takes the socket that systemd opened (sd_listen_fds(3)).
func listenFD() (net.Listener, error) {
	const first = 3
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) || os.Getenv("LISTEN_FDS") != "1" {
		return nil, errors.New("host fd://: systemd gave no socket (or more than one)")
	}
	l, err := net.FileListener(os.NewFile(first, "systemd"))
	if err != nil {
		return nil, fmt.Errorf("host fd://: %w", err)
	}
	return l, nil
}
