# The root process of every pod: it ignores SIGCHLD without zombies, so that
# the sandbox's kernel reaps the orphans that are reparented to it, and then
# sleeps. SIGKILL, from StopPodSandbox, is what ends it.

#include <sys/syscall.h>

#define SIGCHLD 17
#define SIG_IGN 1
#define SA_NOCLDWAIT 2
#define SA_RESTORER 0x04000000

	.globl	_start
	.text
_start:
	mov	$SYS_rt_sigaction, %eax
	mov	$SIGCHLD, %edi
	lea	act(%rip), %rsi
	xor	%edx, %edx
	mov	$8, %r10d		# sizeof(sigset_t)
	syscall
sleep:
	mov	$SYS_pause, %eax
	syscall
	jmp	sleep

	.balign	8
act:	.quad	SIG_IGN			# handler
	.quad	SA_NOCLDWAIT | SA_RESTORER
	.quad	sleep			# restorer, never called
	.quad	0			# mask
