package fakerunsc

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

func socketName(sandbox string) string { return "runsc-" + sandbox + ".sock" }

// listen makes the control socket of a sandbox. It changes into the directory,
// for a path may be longer than an address.
func listen(root, sandbox string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, err
	}
	if err := os.Chdir(root); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketName(sandbox), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l.File()
}

// request and answer are what goes over the socket.
type request struct {
	Method string          `json:"method"`
	Arg    json.RawMessage `json:"arg"`
}

type answer struct {
	Success bool   `json:"success"`
	Err     string `json:"err"`
	Result  any    `json:"result"`
}

// client calls a sandbox for a command.
type client struct{ root, sandbox string }

func (c client) call(method string, arg any, files []*os.File, result any) error {
	if err := os.Chdir(c.root); err != nil {
		return err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socketName(c.sandbox), Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	data, err := json.Marshal(map[string]any{"method": manager + method, "arg": arg})
	if err != nil {
		return err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	if _, _, err := conn.WriteMsgUnix(data, unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	a := answer{Result: result}
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return err
	}
	if !a.Success {
		return errors.New(a.Err)
	}
	return nil
}

// receive reads a request with its files.
func receive(conn *net.UnixConn) (r request, files []*os.File, err error) {
	first, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(16*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(first, oob)
	if err != nil || n == 0 {
		return r, nil, errors.Join(err, io.EOF)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return r, nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return r, nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			// The end of a process ends its writes, also to a full pipe.
			_ = unix.SetNonblock(fd, true)
			files = append(files, os.NewFile(uintptr(fd), "donated"))
		}
	}
	err = json.NewDecoder(io.MultiReader(bytes.NewReader(first), conn)).Decode(&r)
	return r, files, err
}
