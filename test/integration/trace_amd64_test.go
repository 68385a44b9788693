package integration

import "golang.org/x/sys/unix"

// skipCall has a thread that is about to make a system call make none.
func skipCall(tid int) error {
	return changeRegisters(tid, func(r *unix.PtraceRegs) { r.Orig_rax = ^uint64(0) })
}

// setResult has a system call, at whose end a thread is, end with an error.
func setResult(tid int, errno unix.Errno) error {
	return changeRegisters(tid, func(r *unix.PtraceRegs) { r.Rax = -uint64(errno) })
}

func changeRegisters(tid int, change func(*unix.PtraceRegs)) error {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return err
	}
	change(&r)
	return unix.PtraceSetRegs(tid, &r)
}
