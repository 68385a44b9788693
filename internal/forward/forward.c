//go:build ignore

// Copies between the daemon's socket and a TCP port of the sandbox that this
// runs in; forward.go says what it is started with and how it ends.
//
// It is linked with nothing and makes system calls only. In a sandbox these cost
// microseconds, so the buffers are large, and what may be ready is tried before it
// is waited for.

#include <asm/errno.h>
#include <asm/poll.h>
#include <asm/unistd.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/tcp.h>

enum { // file descriptors
	CLIENT = 0,
	LIFELINE = 2,
};

enum { // what the headers above do not have
	AF_INET = 2,
	AF_INET6 = 10,
	SOCK_STREAM = 1,
	SOCK_NONBLOCK = 04000,
	SOL_SOCKET = 1,
	SO_ERROR = 4,
	MSG_DONTWAIT = 0x40,
	MSG_NOSIGNAL = 0x4000,
	SHUT_RD = 0,
	SHUT_WR = 1,
};

static long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static void __attribute__((noreturn)) exit(int status)
{
	for (;;)
		syscall6(__NR_exit_group, status, 0, 0, 0, 0, 0);
}

// await waits for events on two files, -1 being none, and ends with the lifeline.
static void await(int fd1, int events1, int fd2, int events2)
{
	struct pollfd p[] = {
		{.fd = events1 ? fd1 : -1, .events = events1},
		{.fd = events2 ? fd2 : -1, .events = events2},
		{.fd = LIFELINE, .events = POLLIN},
	};
	syscall6(__NR_poll, (long)p, 3, -1, 0, 0, 0);
	if (p[2].revents)
		exit(0);
}

// dial returns a connected socket or a negative error number.
static int dial(int family, const void *address, int size)
{
	int s = syscall6(__NR_socket, family, SOCK_STREAM | SOCK_NONBLOCK, 0, 0, 0, 0);
	if (s < 0)
		return s;
	int err = -syscall6(__NR_connect, s, (long)address, size, 0, 0, 0);
	if (err == EINPROGRESS) {
		await(s, POLLOUT, 0, 0);
		int length = sizeof err;
		syscall6(__NR_getsockopt, s, SOL_SOCKET, SO_ERROR, (long)&err, (long)&length, 0);
	}
	if (err) {
		syscall6(__NR_close, s, 0, 0, 0, 0, 0);
		return -err;
	}
	int on = 1;
	syscall6(__NR_setsockopt, s, IPPROTO_TCP, TCP_NODELAY, (long)&on, sizeof on, 0);
	return s;
}

// dial_port tries IPv4 and then IPv6. The error is that of IPv4.
static int dial_port(unsigned port)
{
	unsigned short network = port << 8 | port >> 8;
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = network, .sin_addr.s_addr = 0x0100007f};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = network, .sin6_addr.s6_addr[15] = 1};
	int s4 = dial(AF_INET, &v4, sizeof v4);
	if (s4 >= 0)
		return s4;
	int s6 = dial(AF_INET6, &v6, sizeof v6);
	return s6 >= 0 ? s6 : s4;
}

// way is one of the two directions.
struct way {
	int from, to;
	int read, write; // events that it waits for, on from and on to
	int done;
	long begin, end; // of what is in the buffer
	char buffer[128 << 10];
};

static struct way up, down;

// finish ends one direction, and tells both sides. The other goes on.
static void finish(struct way *w)
{
	w->read = w->write = 0;
	w->done = 1;
	syscall6(__NR_shutdown, w->to, SHUT_WR, 0, 0, 0, 0);
	syscall6(__NR_shutdown, w->from, SHUT_RD, 0, 0, 0, 0);
}

// fill reads into the empty buffer, and tells whether there was something.
static int fill(struct way *w)
{
	long n = syscall6(__NR_recvfrom, w->from, (long)w->buffer, sizeof w->buffer, MSG_DONTWAIT, 0, 0);
	w->read = n == -EAGAIN ? POLLIN : 0;
	if (n < 0 && !w->read)
		exit(0); // a reset, which ends both directions
	if (n == 0)
		finish(w);
	if (n <= 0)
		return 0;
	w->begin = 0;
	w->end = n;
	return 1;
}

// drain writes from the buffer, and tells whether it could.
static int drain(struct way *w)
{
	long n = syscall6(__NR_sendto, w->to, (long)w->buffer + w->begin, w->end - w->begin, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
	w->write = n == -EAGAIN ? POLLOUT : 0;
	if (n < 0 && !w->write)
		finish(w); // what comes the other way may still be read
	if (n < 0)
		return 0;
	w->begin += n;
	return 1;
}

// copy moves at most one buffer, and tells whether it moved anything.
static int copy(struct way *w)
{
	if (w->done || (w->begin == w->end && !fill(w)))
		return 0;
	return drain(w);
}

__attribute__((used)) static void start(const long *stack)
{
	unsigned port = 0;
	for (const char *digit = (const char *)stack[2]; *digit; digit++)
		port = port * 10 + *digit - '0';
	int target = dial_port(port);
	if (target < 0)
		exit(-target);
	up.from = down.to = CLIENT;
	up.to = down.from = target;
	while (!up.done || !down.done) {
		int moved = copy(&up);
		moved |= copy(&down);
		if (!moved && !(up.done && down.done))
			await(CLIENT, up.read | down.write, target, down.read | up.write);
	}
	exit(0);
}

// The stack has the number of arguments and then the arguments.
__asm__(".globl _start\n"
	"_start:\n"
	"	xor	%ebp, %ebp\n"
	"	mov	%rsp, %rdi\n"
	"	and	$-16, %rsp\n"
	"	call	start\n");
