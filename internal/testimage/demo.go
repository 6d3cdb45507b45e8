package testimage

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// The demo's images. "localhost" is a registry that nobody else can answer for, so that their names
// never mean a stranger's image.
const (
	DemoWebRepo  = "localhost/skep-demo/web"
	DemoRedisRef = "localhost/skep-demo/redis:1"
	DemoNginxRef = "localhost/skep-demo/nginx:1"
)

// Users of the demo's programs.
const (
	redisUser  = 999
	nobodyUser = 65534
)

// DemoWeb is the demo's web program alone: a static program given by its content. Versions of it, to update a
// service between, differ in the tag only, which the program shows.
func DemoWeb(tag string, program []byte) Image {
	return Image{
		Ref: DemoWebRepo + ":" + tag,
		Config: Config{
			Entrypoint:   []string{"/demoweb"},
			Env:          []string{"PATH=/", "VERSION=" + tag},
			User:         fmt.Sprintf("%d:%[1]d", nobodyUser),
			ExposedPorts: map[string]struct{}{"8080/tcp": {}},
			Healthcheck:  healthcheck("CMD", "/demoweb", "-health"),
		},
		Files: append(dirs(), File{Path: "demoweb", Mode: 0o755, Data: program}),
	}
}

// healthcheck is one that notices a program's start and end soon.
func healthcheck(test ...string) *Healthcheck {
	return &Healthcheck{Test: test, Interval: 5 * time.Second, Timeout: 3 * time.Second, Retries: 3,
		StartPeriod: 20 * time.Second, StartInterval: 500 * time.Millisecond}
}

// redisPackages are Debian's Redis and the libraries that it links.
func redisPackages() debian {
	return debian{
		packages: []string{"redis-server", "redis-tools", "libc6", "libatomic1", "libjemalloc2", "liblzf1", "libssl3", "libsystemd0",
			"libcap2", "libgcrypt20", "libgpg-error0", "liblz4-1", "liblzma5", "libzstd1", "libgcc-s1", "libstdc++6"},
		// redis-check-rdb stays: redis-server is a link to it.
		without: []string{"usr/bin/redis-benchmark", "usr/bin/redis-check-aof", "usr/sbin"},
	}
}

// shell is busybox as /bin/sh, /bin/wget and whatever else, for images that want a shell.
func shell(ctx context.Context) ([]File, error) {
	box, err := Busybox(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(box.Files, func(f File) bool { return len(f.Path) < 4 || f.Path[:4] != "bin/" }), nil
}

// DemoRedis is a real Redis from Debian's packages, with a shell for its health check and for who looks inside. It
// downloads about 6 MB.
func DemoRedis(ctx context.Context) (Image, error) {
	files, err := redisPackages().files(ctx)
	if err != nil {
		return Image{}, err
	}
	tools, err := shell(ctx)
	if err != nil {
		return Image{}, err
	}
	files = slices.Concat(tools, files, dirs(), []File{
		{Path: "etc/passwd", Mode: 0o644, Data: fmt.Appendf(nil, "root:x:0:0:root:/:/bin/sh\nredis:x:%d:%[1]d:redis:/data:/bin/sh\n", redisUser)},
		{Path: "etc/group", Mode: 0o644, Data: fmt.Appendf(nil, "root:x:0:\nredis:x:%d:\n", redisUser)},
		// A volume that is new gets this directory's owner.
		{Path: "data", Mode: fs.ModeDir | 0o750, UID: redisUser, GID: redisUser},
	})
	return Image{
		Ref: DemoRedisRef,
		Config: Config{
			Cmd:          []string{"redis-server", "--bind", "*", "-::*", "--dir", "/data"},
			Env:          []string{"PATH=/usr/bin:/bin"},
			User:         "redis",
			WorkingDir:   "/data",
			ExposedPorts: map[string]struct{}{"6379/tcp": {}},
			Healthcheck:  healthcheck("CMD", "redis-cli", "-e", "ping"),
		},
		Files: files,
	}, nil
}

// DemoNginx is the nginx image with a shell, whose wget is the health check.
func DemoNginx(ctx context.Context) (Image, error) {
	img, err := Nginx(ctx)
	if err != nil {
		return Image{}, err
	}
	tools, err := shell(ctx)
	if err != nil {
		return Image{}, err
	}
	img.Ref, img.Files = DemoNginxRef, append(tools, img.Files...)
	// No -T: Debian 12's static busybox crashes with it, on any host. A health check has a timeout of its own.
	img.Config.Healthcheck = healthcheck("CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/")
	return img, nil
}
