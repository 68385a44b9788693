package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// marked are the blocks of a document that are to be run.
var marked = regexp.MustCompile("(?ms)^```sh run\n(.*?)^```$")

// documented runs the commands of the documents as they stand there.
func documented(s *scene) {
	root, err := filepath.Abs("../..")
	check(s.T, err)
	check(s.T, os.Mkdir(s.c.path("bin"), 0o755))
	check(s.T, os.Symlink(s.c.kube("kubectl"), s.c.path("bin/kubectl")))
	check(s.T, os.WriteFile(s.c.path("bin/runscd"), fmt.Appendf(nil,
		"#!/bin/sh\ncommand=$1; shift\nexec %s $command --config %s \"$@\"\n", bin("runscd"), s.c.path("runscd.toml")), 0o755))
	for _, name := range []string{"README.md", "docs/operations.md"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		check(s.T, err)
		blocks := marked.FindAllStringSubmatch(string(text), -1)
		if len(blocks) == 0 {
			s.Errorf("%s has no commands to run", name)
		}
		for _, b := range blocks {
			cmd := exec.Command("sh", "-eu", "-c", b[1])
			cmd.Dir = root
			cmd.Env = append(os.Environ(), "PATH="+s.c.path("bin")+":"+os.Getenv("PATH"), "HOME="+s.c.dir,
				"KUBECONFIG="+s.c.path("kubeconfig"), "NODE="+nodeName, "IMAGE="+s.c.image)
			if out, err := cmd.CombinedOutput(); err != nil {
				s.Errorf("%s: %v\n%s%s", name, err, b[1], out)
			}
		}
	}
}
