# The root process of every pod: it ignores SIGCHLD without zombies, so that
# the sandbox's kernel reaps the orphans that are reparented to it, and then
# sleeps. SIGKILL, from StopPodSandbox, is what ends it.
#
# With the arguments FILE and VALUE it writes the value to the file, prints what
# the file then has, and exits with 0 or the errno: so are sysctls set.

#include <sys/syscall.h>

#define O_RDWR 2
#define SIGCHLD 17
#define SIG_IGN 1
#define SA_NOCLDWAIT 2
#define SA_RESTORER 0x04000000

	.globl	_start
	.text
_start:
	cmpl	$3, (%rsp)		# argc
	je	set
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

set:
	mov	$SYS_open, %eax
	mov	16(%rsp), %rdi		# FILE
	mov	$O_RDWR, %esi
	syscall
	test	%eax, %eax
	js	failed
	mov	%eax, %ebx
	mov	24(%rsp), %rsi		# VALUE
	xor	%edx, %edx
length:	cmpb	$0, (%rsi,%rdx)
	je	write
	inc	%edx
	jmp	length
write:	mov	$SYS_write, %eax
	mov	%ebx, %edi
	syscall
	test	%eax, %eax
	js	failed
	mov	$SYS_pread64, %eax
	mov	%ebx, %edi
	sub	$4096, %rsp
	mov	%rsp, %rsi
	mov	$4096, %edx
	xor	%r10d, %r10d
	syscall
	test	%eax, %eax
	js	failed
	mov	%eax, %edx
	mov	$SYS_write, %eax
	mov	$1, %edi
	syscall
	test	%eax, %eax
	js	failed
	xor	%eax, %eax
failed:	neg	%eax
	mov	%eax, %edi
	mov	$SYS_exit_group, %eax
	syscall

	.balign	8
act:	.quad	SIG_IGN			# handler
	.quad	SA_NOCLDWAIT | SA_RESTORER
	.quad	sleep			# restorer, never called
	.quad	0			# mask
