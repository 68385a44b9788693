// Command target is a set of TCP servers for tests of port-forward. It is static
// and runs in a container. Each argument is MODE@ADDRESS:
//
//	echo    answers with what it gets
//	count   reads to the end and answers how many bytes it got
//	hello   says hello, ends its half, and prints what it gets then
//	source  sends zeros until nobody takes them
//	mute    neither reads nor writes
//	deaf    accepts no connection, and has no room for one more to wait
//
// It prints "ready" when all listen.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	for _, arg := range os.Args[1:] {
		mode, address, _ := strings.Cut(arg, "@")
		if err := serve(mode, address); err != nil {
			fmt.Fprintf(os.Stderr, "target: %s: %v\n", arg, err)
			os.Exit(1)
		}
	}
	fmt.Println("ready")
	select {}
}

func serve(mode, address string) error {
	if mode == "deaf" {
		return fill(address)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answer(mode, c.(*net.TCPConn))
		}
	}()
	return nil
}

func answer(mode string, c *net.TCPConn) {
	defer c.Close()
	// The methods of its own that io.Copy prefers are slow in a sandbox.
	in, out := struct{ io.Reader }{c}, struct{ io.Writer }{c}
	buf := make([]byte, 256<<10)
	switch mode {
	case "echo":
		_, _ = io.CopyBuffer(out, in, buf)
	case "count":
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, in, buf)
		fmt.Fprint(c, n)
	case "hello":
		fmt.Fprint(c, "hello")
		_ = c.CloseWrite()
		text, err := io.ReadAll(c)
		fmt.Printf("hello got %q %v\n", text, err)
	case "source":
		for err := error(nil); err == nil; {
			_, err = c.Write(buf)
		}
	case "mute":
		select {}
	}
}

// fill listens and connects to itself until nothing answers any more.
func fill(address string) error {
	a, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Bind(s, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())}), unix.Listen(s, 0)); err != nil {
		return err
	}
	for {
		// What is connected stays so.
		if _, err := net.DialTimeout("tcp", address, 300*time.Millisecond); os.IsTimeout(err) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
