// Package pod holds the node's pods and containers: what the CRI calls
// sandboxes and containers, made of processes, specs, images and networks.
//
// What it keeps true:
//
//   - An object's record is on disk before anything is done for it and goes
//     after everything is undone.
//   - What the host holds for an object has its name from the object's id
//     alone, and is undone in one place (teardown.go), whoever asks.
//   - States are derived from facts, and facts are only added.
//   - An exit is told, by status and event, when it is on record and all that
//     the container had written is in its log.
//   - The daemon's start is recovery (recover.go): it ends in the state that
//     would be if nothing had happened in between, or with the object gone.
//
// The way up is build.go and run.go.
package pod
