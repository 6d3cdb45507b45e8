package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
)

// use is who uses a volume. It is in the store's table as long as somebody does.
type use struct {
	// mounting is held while the volume is mounted, which may take as long as a server takes to answer.
	mounting sync.Mutex
	users    map[string]bool // guarded by the store's mu
}

// enter notes a container as a user of a volume.
func (s *Store) enter(name, container string) *use {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.uses[name]
	if u == nil {
		u = &use{users: map[string]bool{}}
		s.uses[name] = u
	}
	u.users[container] = true
	return u
}

// users are the containers that use a volume; under mu.
func (s *Store) users(name string) []string {
	if u := s.uses[name]; u != nil {
		return slices.Sorted(maps.Keys(u.users))
	}
	return nil
}

// Mount notes that a container uses a volume, which is made if it does not exist, mounts what its options say, and returns its
// directory. It may be repeated. After an error the container is not noted.
func (s *Store) Mount(ctx context.Context, container, name string, labels, options map[string]string) (string, error) {
	if _, err := s.Create(ctx, name, labels, options); err != nil {
		return "", err
	}
	// From here on the volume cannot be removed; it may have been since.
	u := s.enter(name, container)
	v, err := s.Inspect(ctx, name)
	if err == nil && hasDevice(v.Options) {
		u.mounting.Lock()
		err = mountDevice(v)
		u.mounting.Unlock()
	}
	if err != nil {
		return "", errors.Join(err, s.Unmount(ctx, container, name))
	}
	return v.Mountpoint, nil
}

// Unmount notes that a container does not use a volume any more. What the volume's options mounted goes with its last user.
func (s *Store) Unmount(_ context.Context, container, name string) error {
	if checkName(name) != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.uses[name]; u != nil {
		if delete(u.users, container); len(u.users) > 0 {
			return nil
		}
		delete(s.uses, name)
	}
	return s.release(name)
}

// Sweep unmounts what nobody uses, removes what is left of fills that were cut short and finds what is left of removed volumes. It
// comes once, after all containers that live have been noted and before the first Fill and Remove.
func (s *Store) Sweep(ctx context.Context) error {
	list, err := s.List(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Earlier versions let others pass to what containers wrote.
	errs := []error{ignoreMissing(os.Chmod(s.root, rootMode))}
	for _, v := range list {
		if len(s.users(v.Name)) == 0 {
			errs = append(errs, s.release(v.Name))
		}
		errs = append(errs, s.removeFilling(v.Name))
	}
	return errors.Join(append(errs, s.findRemoved())...)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// release unmounts a volume that nobody uses; under mu. It does not wait for a server: what cannot be unmounted at once is taken
// out of sight.
func (s *Store) release(name string) error {
	if v, err := s.read(name); err != nil || !hasDevice(v.Options) {
		return nil // what is gone is not mounted
	}
	if err := unmountBelow(filepath.Join(s.root, name)); err != nil {
		return fmt.Errorf("unmount volume %s: %w", name, err)
	}
	return nil
}

// mountDevice mounts what a volume's options say, if it is not mounted.
func mountDevice(v Volume) error {
	at, err := mountsBelow(v.Mountpoint)
	if err != nil || slices.Contains(at, v.Mountpoint) {
		return err
	}
	if err := os.MkdirAll(v.Mountpoint, 0o755); err != nil {
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	typ, o := v.Options["type"], v.Options["o"]
	if typ == "nfs" || typ == "nfs4" || typ == "cifs" {
		o = resolveAddr(typ, o, v.Options["device"])
	}
	if err := mount.Mount(v.Options["device"], v.Mountpoint, typ, o); err != nil {
		// Only the cause: there may be a password among the options.
		if cause, ok := errors.AsType[syscall.Errno](err); ok {
			err = cause
		}
		return fmt.Errorf("failed to mount local volume: mount %s:%s, type: %s: %w", v.Options["device"], v.Mountpoint, typ, err)
	}
	return nil
}

// resolveAddr gives the kernel an address where people write a name: it does not ask name servers.
func resolveAddr(typ, o, device string) string {
	fields := strings.Split(o, ",")
	for i, f := range fields {
		host, ok := strings.CutPrefix(f, "addr=")
		if !ok {
			continue
		}
		if ip, err := net.ResolveIPAddr("ip", host); err == nil {
			fields[i] = "addr=" + ip.String()
		}
		return strings.Join(fields, ",")
	}
	if typ != "cifs" {
		return o
	}
	host, _, _ := strings.Cut(strings.TrimLeft(device, "/"), "/")
	if ip, err := net.ResolveIPAddr("ip", host); err == nil {
		o = strings.TrimLeft(o+",addr="+ip.String(), ",")
	}
	return o
}

// mountsBelow are the mount points at and below a directory, the deepest first.
func mountsBelow(dir string) ([]string, error) {
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	resolved := filepath.Join(parent, filepath.Base(dir))
	list, err := mountinfo.GetMounts(mountinfo.PrefixFilter(resolved))
	if err != nil {
		return nil, fmt.Errorf("read the mounts: %w", err)
	}
	var out []string
	for _, m := range list {
		out = append(out, dir+strings.TrimPrefix(m.Mountpoint, resolved))
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	return out, nil
}

// unmountBelow leaves nothing mounted at or below a directory: whoever deletes it then deletes no file of another's.
func unmountBelow(dir string) error {
	for range 64 { // mounts may lie over one another
		at, err := mountsBelow(dir)
		if err != nil || len(at) == 0 {
			return err
		}
		for _, path := range at {
			if err := mount.Unmount(path); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%s is mounted again and again", dir)
}
