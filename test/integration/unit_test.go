package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const initd = "/usr/lib/systemd/systemd"

// TestUnitFiles has systemd read the unit.
func TestUnitFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"runscd.service", "runscd.socket"} {
		text, err := os.ReadFile("../../deploy/" + name)
		check(t, err)
		unit := strings.Replace(string(text), "/usr/bin/runscd", runscd, 1) // must be there
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(unit), 0o644))
	}
	out, err := exec.Command("systemd-analyze", "verify", filepath.Join(dir, "runscd.service"), filepath.Join(dir, "runscd.socket")).CombinedOutput()
	check(t, err)
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, dir) && !strings.Contains(line, "FileDescriptorStorePreserve") { // of version 254
			t.Error(line)
		}
	}
	out, err = exec.Command("systemd-analyze", "security", "--offline=yes", filepath.Join(dir, "runscd.service")).CombinedOutput()
	check(t, err)
	t.Log(string(regexp.MustCompile(`Overall exposure.*\d`).Find(out)))
}

// startSystemd runs systemd as PID 1 of namespaces, with cgroups of its own below the
// daemon's, and units of a directory.
func (d *daemon) startSystemd(t *testing.T, units string) {
	t.Helper()
	_, err := os.Stat(initd)
	check(t, err)
	if _, err := os.Stat("/sys/fs/cgroup/systemd/cgroup.procs"); err != nil {
		t.Skip("only with cgroup v1: ", err)
	}
	// All that systemd sets up as PID 1 is of its namespaces, and on file systems of
	// its own: it mounts some anew and makes others read-only.
	script := `set -e
cd /sys/fs/cgroup
hierarchies=$(find . -mindepth 1 -maxdepth 1 -type d -printf "%f ")
for h in $hierarchies; do echo $$ >$h` + d.cgroup + `/cgroup.procs; done
export hierarchies
exec unshare --cgroup --pid --fork --mount --uts --ipc --kill-child --mount-proc sh -ec '
	cd /
	mount -t tmpfs run /run
	mount -t tmpfs cgroup /sys/fs/cgroup
	for h in $hierarchies; do
		case $h in unified) type="cgroup2" ;; systemd) type="cgroup -o none,name=systemd" ;; *) type="cgroup -o $h" ;; esac
		mkdir /sys/fs/cgroup/$h
		mount -t $type $h /sys/fs/cgroup/$h
	done
	mount --bind /dev/null /dev/console
	exec ` + initd + ` --system --unit=test.target --log-target=null --show-status=no'`
	log, err := os.OpenFile(d.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	check(t, err)
	defer log.Close()
	cmd := exec.Command("sh", "-c", script)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "container=runscd-test", "SYSTEMD_UNIT_PATH="+units, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	check(t, cmd.Start())
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	d.cmd, d.exited = cmd, exited
}

// systemctl tells the systemd of startSystemd what to do.
func (d *daemon) systemctl(t *testing.T, args ...string) {
	t.Helper()
	pid := d.cmd.Process.Pid
	init, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	check(t, err)
	args = append([]string{"-t", strings.TrimSpace(string(init)), "-m", "-p", "systemctl"}, args...)
	if out, err := exec.Command("nsenter", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
}

// TestSystemd has a real systemd run the unit, kill the daemon, restart and stop it.
func TestSystemd(t *testing.T) {
	d := newDaemon(t, "")
	d.addNetwork(t)
	d.stop(t, unix.SIGTERM)
	units := d.path("units")
	dropIns := map[string]string{
		// Lowering the score takes CAP_SYS_RESOURCE, which there may not be. There is
		// time for a container to end while the daemon is away.
		"runscd.service": fmt.Sprintf("[Service]\nExecStart=\nExecStart=%s serve --config %s\nOOMScoreAdjust=0\nLimitNOFILE=4096\nStandardOutput=append:%s\nStandardError=inherit\nRestartSec=2s\n",
			runscd, d.path("conf.toml"), d.path("log")),
		"runscd.socket": fmt.Sprintf("[Socket]\nListenStream=\nListenStream=%s\n", d.path("s/runscd.sock")),
	}
	for name, text := range dropIns {
		unit, err := os.ReadFile("../../deploy/" + name)
		check(t, err)
		check(t, os.MkdirAll(filepath.Join(units, name+".d"), 0o755))
		check(t, os.WriteFile(filepath.Join(units, name), unit, 0o644))
		check(t, os.WriteFile(filepath.Join(units, name+".d", "test.conf"), []byte(text), 0o644))
	}
	// Those of the machine do too much.
	for name, wants := range map[string]string{"test": "runscd.socket runscd.service", "sysinit": "", "basic": "", "shutdown": ""} {
		text := "[Unit]\nDefaultDependencies=no\nWants=" + wants + "\n"
		check(t, os.WriteFile(filepath.Join(units, name+".target"), []byte(text), 0o644))
	}
	d.startSystemd(t, units)
	eventually(t, "the daemon is ready", func() error {
		log, err := os.ReadFile(d.path("log"))
		if err == nil && strings.Count(string(log), "msg=serving") < 2 {
			return fmt.Errorf("it is not: %s", log)
		}
		return err
	})
	d.connect(t)

	p := d.runPod(t)
	shell, idle := p.run(t, "", withTerminal), p.run(t, forever)
	shared := t.TempDir()
	exiting := p.run(t, numbers(20000), share(shared))
	s := shell.attach(t, true)
	s.press("x=kept\n", "# ")
	d.systemctl(t, "kill", "--kill-whom=main", "--signal=KILL", "runscd.service")
	<-s.ended
	check(t, os.WriteFile(filepath.Join(shared, "go"), nil, 0o644))
	check(t, errors.Join(d.conn.Close(), d.pods.Close(ctx(t)), d.images.Close(ctx(t))))
	d.connect(t) // fails at once if it is refused
	if got := exiting.ended(t); got.ExitCode != 7 || exiting.output(t) != seqOutput(20000) {
		t.Errorf("container that ended meanwhile: %v, %d bytes", got, len(exiting.output(t)))
	}
	s = shell.attach(t, true)
	s.press("echo $x\n", "kept\r\n")

	// Pods run on, and the next client starts the daemon.
	d.systemctl(t, "stop", "runscd.service")
	<-s.ended
	check(t, errors.Join(d.conn.Close(), d.pods.Close(ctx(t)), d.images.Close(ctx(t))))
	d.connect(t)
	if out, code := idle.exec(t, "echo alive"); out != "alive\n" || code != 0 {
		t.Errorf("exec: %q, %d", out, code)
	}
	check(t, d.pods.RemovePodSandbox(ctx(t), p.id))
	d.systemctl(t, "stop", "runscd.socket", "runscd.service")
	d.stop(t, unix.SIGKILL)
	eventually(t, "systemd ends", func() error {
		removeCgroup(d.cgroup)
		if left := cgroupsBelow(d.cgroup); len(left) > 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
	check(t, makeCgroup(d.cgroup))
	d.start(t)
}
