package integration

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Not run yet on such a machine.

// skipCall has a thread that is about to make a system call make none.
func skipCall(tid int) error {
	const ntArmSystemCall = 0x404
	none := int32(-1)
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(&none)), Len: uint64(unsafe.Sizeof(none))}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SETREGSET, uintptr(tid), ntArmSystemCall, uintptr(unsafe.Pointer(&iov)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// setResult has a system call, at whose end a thread is, end with an error.
func setResult(tid int, errno unix.Errno) error {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return err
	}
	r.Regs[0] = -uint64(errno)
	return unix.PtraceSetRegs(tid, &r)
}
