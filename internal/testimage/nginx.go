package testimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// nginxPackages are Debian's nginx and the libraries that it links.
func nginxPackages() []string {
	return []string{"nginx", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"}
}

// nginxConf answers with who served, and logs where a container's logs are read.
const nginxConf = `worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 512; }
http {
	access_log /dev/stdout;
	client_body_temp_path /tmp/body;
	proxy_temp_path /tmp/proxy;
	fastcgi_temp_path /tmp/fastcgi;
	uwsgi_temp_path /tmp/uwsgi;
	scgi_temp_path /tmp/scgi;
	server {
		listen 80;
		listen [::]:80;
		default_type text/plain;
		location / { return 200 "Hello from nginx $nginx_version in $hostname, to $remote_addr\n"; }
	}
}
`

// nginxKey tells versions of the nginx image apart without downloading anything: it
// names the packages' files with their hashes, and the configuration.
func nginxKey(ctx context.Context) ([]byte, error) {
	uris := func() ([]byte, error) {
		return exec.CommandContext(ctx, "apt-get", append([]string{"--print-uris", "-qq", "download"}, nginxPackages()...)...).Output()
	}
	out, err := uris()
	if err != nil {
		// A fresh machine has no package lists yet.
		if update, uerr := exec.CommandContext(ctx, "apt-get", "update", "-qq").CombinedOutput(); uerr != nil {
			return nil, fmt.Errorf("fetching Debian's package lists: %w: %s", uerr, update)
		}
		if out, err = uris(); err != nil {
			return nil, fmt.Errorf("asking apt for nginx: %w", err)
		}
	}
	return append(out, nginxConf...), nil
}

// Nginx is a real nginx from Debian's packages. It downloads them into a temporary
// directory (about 4 MB) and needs apt-get and dpkg-deb.
func Nginx(ctx context.Context) (Image, error) {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return Image{}, fmt.Errorf("making the nginx image needs %s, so a Debian or Ubuntu machine", tool)
		}
	}
	dir, err := os.MkdirTemp("", "nginx-image")
	if err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(dir)
	// apt would rather download as its own user, who may not write here.
	args := append([]string{"-qq", "-o", "APT::Sandbox::User=root", "download"}, nginxPackages()...)
	if err := runIn(ctx, dir, "apt-get", args...); err != nil {
		return Image{}, err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return Image{}, err
	}
	root := filepath.Join(dir, "root")
	for _, deb := range debs {
		if err := runIn(ctx, dir, "dpkg-deb", "-x", deb, root); err != nil {
			return Image{}, err
		}
	}
	files, err := collect(root)
	if err != nil {
		return Image{}, err
	}
	files = append(files, dirs()...)
	files = append(files,
		File{Path: "etc/nginx/nginx.conf", Mode: 0o644, Data: []byte(nginxConf)},
		File{Path: "run", Mode: fs.ModeDir | 0o755},
		File{Path: "var/log/nginx", Mode: fs.ModeDir | 0o755},
		File{Path: "var/lib/nginx", Mode: fs.ModeDir | 0o755},
	)
	return Image{
		Ref: NginxRef,
		Config: Config{
			Cmd:          []string{"nginx", "-e", "stderr", "-g", "daemon off;"},
			Env:          []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
			ExposedPorts: map[string]struct{}{"80/tcp": {}},
			StopSignal:   "SIGQUIT", // nginx's word for: finish the requests, then end
		},
		Files: files,
	}, nil
}

func runIn(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// ballast is what the packages bring that a server in a container never reads.
func ballast() []string {
	return []string{"usr/share", "etc", "var", "lib/systemd", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/audit",
		"usr/lib/x86_64-linux-gnu/engines-3", "usr/lib/x86_64-linux-gnu/ossl-modules", "usr/lib/locale", "usr/bin"}
}

// collect reads the unpacked packages.
func collect(root string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil || rel == "." {
			return err
		}
		if d.IsDir() {
			if slices.Contains(ballast(), rel) {
				return fs.SkipDir
			}
			return nil // made where something lies in it
		}
		f, err := readFile(name, d)
		f.Path = rel
		files = append(files, f)
		return err
	})
	if err == nil && len(files) == 0 {
		err = errors.New("the packages were empty")
	}
	return files, err
}

func readFile(name string, d fs.DirEntry) (File, error) {
	info, err := d.Info()
	if err != nil {
		return File{}, err
	}
	f := File{Mode: info.Mode()}
	if info.Mode()&fs.ModeSymlink != 0 {
		f.Link, err = os.Readlink(name)
	} else {
		f.Data, err = os.ReadFile(name)
	}
	return f, err
}
