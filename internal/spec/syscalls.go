package spec

// sentrySyscalls are the system calls that the sentry has on any architecture,
// with spaces between.
// It answers all others with an error, so a filter need not name them.
const sentrySyscalls = `
	accept accept4 access afs_syscall alarm arch_prctl bind bpf brk capget capset chdir chmod chown
	chroot clock_getres clock_gettime clock_nanosleep clock_settime clone clone3 close close_range
	connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait
	epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
	fadvise64 fallocate fchdir fchmod fchmodat fchown fchownat fcntl fdatasync fgetxattr flistxattr
	flock fork fremovexattr fsconfig fsetxattr fsmount fsopen fstat fstatfs fsync ftruncate futex
	futimesat get_mempolicy get_robust_list getcpu getcwd getdents getdents64 getegid geteuid getgid
	getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
	getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr
	inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
	io_setup io_submit io_uring_enter io_uring_setup ioctl ioprio_get ioprio_set keyctl kill lchown
	lgetxattr link linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat madvise
	mbind membarrier memfd_create mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall
	mmap mount move_mount mprotect mq_open mq_unlink mremap msgctl msgget msgrcv msgsnd msync
	munlock munlockall munmap nanosleep newfstatat open open_tree openat openat2 pause personality
	pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2 pivot_root poll ppoll prctl pread64 preadv
	preadv2 prlimit64 process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read
	readahead readlink readlinkat readv recvfrom recvmmsg recvmsg removexattr rename renameat renameat2
	restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
	rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
	sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_setaffinity sched_setattr
	sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg
	sendmsg sendto set_mempolicy set_robust_list set_tid_address setdomainname setgid setgroups
	sethostname setitimer setns setpgid setpriority setregid setresgid setresuid setreuid setrlimit
	setsid setsockopt setuid setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd
	signalfd4 socket socketpair splice stat statfs statx symlink symlinkat sync sync_file_range
	syncfs sysinfo syslog tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
	timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask umount2
	uname unlink unlinkat unshare utime utimensat utimes vfork wait4 waitid write writev
`
