package stdio

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// copyIn names the directory in which a process of this test copies as a daemon
// does.
const copyIn = "STDIO_TEST_COPY_IN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(copyIn); dir != "" {
		if err := copyUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// copyUntilKilled copies two FIFOs to a log, which it opens anew at SIGHUP.
func copyUntilKilled(dir string) error {
	logs, err := OpenLogs(filepath.Join(dir, "buffers"))
	if err != nil {
		return err
	}
	log, err := logs.Open("c", filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	for _, name := range []string{Stdout, Stderr} {
		r, err := Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if _, err := log.Copy(context.Background(), name, r); err != nil {
			return err
		}
	}
	rotated := make(chan os.Signal, 1)
	signal.Notify(rotated, unix.SIGHUP)
	fmt.Println("copying")
	for range rotated {
		if err := log.Reopen(context.Background()); err != nil {
			return err
		}
	}
	return nil
}

// numbered is line n of a container: short, long, or longer than a log line.
func numbered(n int) string {
	length := n % 90
	switch {
	case n%5000 == 4999:
		length = 3*maxLine + n%7
	case n%100 == 99:
		length = n % 5000
	}
	return fmt.Sprintf("%d %s\n", n, strings.Repeat("x", length))
}

// TestKilled kills the daemon again and again while a container writes as fast as
// it can and the log rotates: all is in the logs, once and in order.
func TestKilled(t *testing.T) {
	kills := 10
	if n, err := strconv.Atoi(os.Getenv("STDIO_TEST_KILLS")); err == nil {
		kills = n
	}
	dir := t.TempDir()
	stop, lines := make(chan struct{}), map[string]chan int{}
	for _, name := range []string{Stdout, Stderr} {
		w, err := Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		n := make(chan int, 1)
		go func() { n <- count(w, stop) }()
		lines[name] = n
	}
	var logs []string
	for i := range kills {
		d := startCopying(t, dir)
		time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond)
		if i%3 > 0 {
			logs = append(logs, filepath.Join(dir, fmt.Sprintf("log.%d", i)))
			if err := os.Rename(filepath.Join(dir, "log"), logs[len(logs)-1]); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 > 1 {
			_ = d.Process.Signal(unix.SIGHUP)
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
		}
		_ = d.Process.Kill()
		_ = d.Wait()
	}
	d := startCopying(t, dir)
	close(stop)
	logs = append(logs, filepath.Join(dir, "log"))
	until(t, func() bool {
		log, err := os.ReadFile(logs[len(logs)-1])
		return err == nil && bytes.Count(log, []byte(" F last\n")) == 2
	})
	_ = d.Process.Kill()
	_ = d.Wait()
	got := map[string]*bytes.Buffer{Stdout: {}, Stderr: {}}
	for _, path := range logs {
		for _, line := range logged(t, path) {
			name, rest, _ := strings.Cut(line, " ")
			got[name].WriteString(rest[2:])
			if rest[0] == 'F' {
				got[name].WriteByte('\n')
			}
		}
	}
	for name, out := range got {
		n := <-lines[name]
		t.Logf("%s: %d lines, %d bytes, %d kills", name, n, out.Len(), kills)
		for i := range n + 1 {
			want := numbered(i)
			if i == n {
				want = "last\n"
			}
			if line, _ := out.ReadString('\n'); line != want {
				t.Fatalf("%s: line %d is %.100q, %d bytes, want %.100q, %d", name, i, line, len(line), want, len(want))
			}
		}
		if out.Len() > 0 {
			t.Errorf("%s: more: %.200q", name, out.String())
		}
	}
}

// count writes lines until stop is closed and then one more, and returns how many
// it has numbered.
func count(w io.Writer, stop <-chan struct{}) int {
	out := bufio.NewWriterSize(w, 5000)
	for n := 0; ; n++ {
		select {
		case <-stop:
			_, _ = out.WriteString("last\n")
			_ = out.Flush()
			return n
		default:
			_, _ = out.WriteString(numbered(n))
		}
	}
}

// startCopying starts a daemon that copies, and waits until it does.
func startCopying(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	d := exec.Command("/proc/self/exe")
	d.Env = append(os.Environ(), copyIn+"="+dir)
	d.Stderr = os.Stderr
	out, err := d.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return d
}

// until waits until what is true.
func until(t *testing.T, what func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !what(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is not so after a minute")
		}
	}
}
