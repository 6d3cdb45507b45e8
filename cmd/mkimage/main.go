// Command mkimage makes the images of the demo and the tests and prints the path of
// each tar, ready for `docker load` or `skep image load`:
//
//	mkimage [-cache DIR] [-source DIR] KIND…
//	mkimage [-cache DIR] [-source DIR] -o FILE KIND
//
// Kinds are tiny, tiny:TAG, busybox, nginx, and the demo's: demo-web, demo-web:TAG, demo-redis, demo-nginx.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/skep-swarm/skep/internal/testimage"
)

func main() {
	cache := flag.String("cache", ".cache/images", "where images that were made before are kept")
	source := flag.String("source", ".", "root of the skep repository, to build the test server of the tiny image")
	output := flag.String("o", "", "copy the image to this file too")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: mkimage [flags] KIND…   of %v\n", testimage.Kinds())
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 || *output != "" && flag.NArg() > 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	for _, kind := range flag.Args() {
		if err := run(ctx, testimage.Cache{Dir: *cache, Source: *source}, kind, *output); err != nil {
			fmt.Fprintln(os.Stderr, "mkimage:", err)
			os.Exit(1)
		}
	}
}

func run(ctx context.Context, cache testimage.Cache, kind, output string) error {
	path, err := cache.Tar(ctx, kind)
	if err != nil {
		return err
	}
	if output == "" {
		fmt.Println(path)
		return nil
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(output)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}
