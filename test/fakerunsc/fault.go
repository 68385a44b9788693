package fakerunsc

import (
	"os"
	"path/filepath"
	"strings"
	"time"
)

// faultDir has a file for each operation that goes wrong.
const faultDir = "faults"

// fault returns what the operation does wrong, with the text where there is
// one; "" for nothing.
func fault(dir, op string) (kind, text string) {
	content, err := os.ReadFile(filepath.Join(dir, faultDir, op))
	if err != nil {
		return "", ""
	}
	kind, text, _ = strings.Cut(string(content), " ")
	return kind, text
}

// hang waits until the operation has no fault.
func hang(dir, op string) {
	for {
		if kind, _ := fault(dir, op); kind == "" {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
