package testimage

import (
	"context"
	"io/fs"
)

// nginxPackages are Debian's nginx and the libraries that it links.
func nginxPackages() debian {
	return debian{
		packages: []string{"nginx", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"},
		without:  []string{"usr/bin"},
	}
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

// Nginx is a real nginx from Debian's packages. It downloads them (about 4 MB) and needs apt-get and dpkg-deb.
func Nginx(ctx context.Context) (Image, error) {
	files, err := nginxPackages().files(ctx)
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
