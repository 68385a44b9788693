# The root process of every pod: it ignores SIGCHLD without zombies, so that
# the sandbox's kernel reaps the orphans that are reparented to it, and then
# sleeps. SIGKILL, from StopPodSandbox, is what ends it.
#
# With pairs of arguments FILE VALUE it writes each value to its file, prints what
# the file then has, and exits with 0 or the first errno: so are sysctls set, and the
# limits that containers see. With an empty VALUE it makes a directory, if need be.

#include <sys/syscall.h>

#define EEXIST 17
#define O_RDWR 2
#define SIGCHLD 17
#define SIG_IGN 1
#define SA_NOCLDWAIT 2
#define SA_RESTORER 0x04000000

	.globl	_start
	.text
_start:
	cmpl	$3, (%rsp)		# argc
	jae	set
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
	lea	16(%rsp), %r12		# the next pair
	sub	$4096, %rsp
pair:
	xor	%eax, %eax
	mov	(%r12), %rdi		# FILE
	test	%rdi, %rdi
	jz	exit
	mov	8(%r12), %r13		# VALUE
	add	$16, %r12
	cmpb	$0, (%r13)
	je	mkdir
	mov	$SYS_open, %eax
	mov	$O_RDWR, %esi
	syscall
	test	%eax, %eax
	js	exit
	mov	%eax, %ebx
	mov	%r13, %rsi
	xor	%edx, %edx
length:	cmpb	$0, (%rsi,%rdx)
	je	write
	inc	%edx
	jmp	length
write:	mov	$SYS_write, %eax
	mov	%ebx, %edi
	syscall
	test	%eax, %eax
	js	exit
	mov	$SYS_pread64, %eax
	mov	%ebx, %edi
	mov	%rsp, %rsi
	mov	$4096, %edx
	xor	%r10d, %r10d
	syscall
	test	%eax, %eax
	js	exit
	mov	%eax, %edx
	mov	$SYS_write, %eax
	mov	$1, %edi
	syscall
	test	%eax, %eax
	jns	pair
exit:	neg	%eax
	mov	%eax, %edi
	mov	$SYS_exit_group, %eax
	syscall
mkdir:
	mov	$SYS_mkdir, %eax
	mov	$0755, %esi
	syscall
	cmp	$-EEXIST, %eax
	je	pair
	test	%eax, %eax
	js	exit
	jmp	pair

	.balign	8
act:	.quad	SIG_IGN			# handler
	.quad	SA_NOCLDWAIT | SA_RESTORER
	.quad	sleep			# restorer, never called
	.quad	0			# mask
