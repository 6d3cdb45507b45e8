package volumes

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
)

// Size is how much a volume's files hold, in bytes, a file with several names counted once. It is -1 for a volume whose options
// name a device: that one's files are not this host's to count.
func (s *Store) Size(ctx context.Context, name string) (int64, error) {
	v, err := s.Inspect(ctx, name)
	if err != nil {
		return 0, err
	}
	if hasDevice(v.Options) {
		return -1, nil
	}
	type inode struct{ dev, ino uint64 }
	var total int64
	seen := map[inode]bool{}
	err = filepath.WalkDir(v.Mountpoint, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed meanwhile
			}
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		info, err := d.Info()
		if err != nil || d.IsDir() {
			return nil // the same
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			at := inode{st.Dev, st.Ino}
			if seen[at] {
				return nil
			}
			seen[at] = true
		}
		total += info.Size()
		return nil
	})
	return total, err
}
