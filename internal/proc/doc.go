// Package proc holds the processes in sandboxes: Init, the first process of a
// container, and Exec, a process added to a running one. The words are those
// of gVisor's pkg/shim/v1/proc.
//
// What it keeps true:
//
//   - What may be done to a process when is said in one table (state.go), and
//     states only move forward: early, late and double reports of an exit do
//     no harm.
//   - An Init's exit is known as soon as the sentry or the kernel knows it, and
//     reported once, by closing Init.Done.
//   - The sentry is the ledger of exits: after a restart of the daemon Recover
//     asks it again. Only if the sandbox is gone is an exit status lost, and then it
//     is 137, as for a container killed with its machine.
//   - Kill always ends: a sandbox that does not answer is killed through the
//     pidfd of its process.
package proc
