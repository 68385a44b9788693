// Command registry serves an image of this machine's busybox from a registry on
// a loopback address, so that runscd can be tried without internet. It prints
// the image's reference and runs until its standard input closes or a signal
// arrives.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/runscd/runscd/test/registry/loopback"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run() error {
	img, err := loopback.Busybox(loopback.Config())
	if err != nil {
		return err
	}
	r := loopback.New(loopback.Options{})
	defer r.Close()
	ref, err := r.Put("busybox:latest", img)
	if err != nil {
		return err
	}
	fmt.Println(ref)

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	<-ctx.Done()
	return nil
}
