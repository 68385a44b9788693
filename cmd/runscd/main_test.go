package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/runscd/runscd/internal/config"
)

// execute runs the program's command line.
func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := command()
	c.SetOut(&out)
	c.SetErr(&out)
	c.SetArgs(args)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestVersion(t *testing.T) {
	if out, err := execute(t, "version"); out != "runscd version "+version+"\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

func TestConfigPrintsWhatIsInEffect(t *testing.T) {
	out, err := execute(t, "--config", write(t, "state = \"/tmp/x\"\n[log]\nlevel = \"debug\"\n"), "config")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Settings of runscd.", "state = '/tmp/x'\n", "level = 'debug'\n", "# text or json.\n", "format = 'text'\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	printed, err := config.Load(write(t, out))
	if err != nil || printed.State != "/tmp/x" || printed.Log.Level != "debug" {
		t.Errorf("what was printed loads as %+v, %v", printed, err)
	}
}

func TestBadCommandLines(t *testing.T) {
	for want, args := range map[string][]string{
		"unknown key":        {"-c", write(t, "rooot = \"/x\"\n"), "config"},
		"rooot":              {"-c", write(t, "rooot = \"/x\"\n"), "serve"},
		"nowhere":            {"-c", "/nowhere.toml", "config"},
		"unknown command":    {"server"},
		"requires at least ": {"run"},
		"unknown flag":       {"run", "--nothing", "busybox"},
		"neither text nor":   {"doctor", "--output", "xml"},
		"not positive":       {"top", "--interval", "0s"},
		"--copies 0":         {"clone", "-n", "0", "web"},
		"nowhere.sock":       {"ps", "--socket", "/nowhere.sock"},
	} {
		out, err := execute(t, args...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want one with %q", args, err, want)
		}
		if out != "" {
			t.Errorf("%v: printed %q", args, out)
		}
	}
}

func TestFollowShowsTheLogAsTheContainerWroteIt(t *testing.T) {
	const stamp = "2026-01-02T03:04:05.000000006Z "
	log := write(t, stamp+"stdout F one\n"+stamp+"stderr F oh\n"+stamp+"stdout F \n"+stamp+"stdout P tw\n"+stamp+"stdout F o  and spaces \n"+stamp+"stdout P no end\n")
	var out, errs bytes.Buffer
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newFollower(log, &out, &errs).follow(ended); err != nil {
		t.Fatal(err)
	}
	if out.String() != "one\n\ntwo  and spaces \nno end" || errs.String() != "oh\n" {
		t.Errorf("output %q, errors %q", out.String(), errs.String())
	}
}

func TestFollowAcrossTheEndsOfReads(t *testing.T) {
	const text = "t stdout F hello\nt stderr F oh\nt stdout F world\n"
	for cut := range text {
		var out, errs bytes.Buffer
		f := newFollower("", &out, &errs)
		for _, part := range []string{text[:cut], text[cut:]} {
			if err := f.copy(strings.NewReader(part)); err != nil {
				t.Fatal(err)
			}
		}
		if out.String() != "hello\nworld\n" || errs.String() != "oh\n" {
			t.Errorf("cut at %d: output %q, errors %q", cut, out.String(), errs.String())
		}
	}
}

// written tells when something was written to it.
type written chan string

func (w written) Write(b []byte) (int, error) {
	w <- string(b)
	return len(b), nil
}

func TestFollowShowsWhatIsAddedAndThenTheRest(t *testing.T) {
	path := write(t, "t stdout F one\n")
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	out := make(written, 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	followed := make(chan error, 1)
	go func() { followed <- newFollower(path, out, nil).follow(ctx) }()
	for i, line := range []string{"one\n", "two\n", "three\n"} {
		if i > 0 {
			if _, err := log.WriteString("t stdout F " + line); err != nil {
				t.Fatal(err)
			}
		}
		if i == 2 {
			cancel()
		}
		if got := <-out; got != line {
			t.Errorf("shown %q, want %q", got, line)
		}
	}
	if err := <-followed; err != nil {
		t.Error(err)
	}
}

func TestFollowOfWhatIsNoLog(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newFollower(write(t, "hello world\n"), nil, nil).follow(ended); err == nil {
		t.Error("no error")
	}
	if err := newFollower("/nowhere", nil, nil).follow(ended); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}
