package spec

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// shmOwner is the name that runsc is given for the container whose start makes the
// pod's /dev/shm. A checkpoint knows that by this name and wants a container with it
// back, though the one that made it may have been an init container. No container of
// the CRI's can be called so.
const shmOwner = "runscd/shm"

// TakeShm gives a container the name by which the pod's /dev/shm, which is at a path
// of the host, is restored. It tells whether the container has that /dev/shm.
func TakeShm(s *specs.Spec, shm string) bool {
	if !slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Source == shm }) {
		return false
	}
	s.Annotations[containerName] = shmOwner
	return true
}

// HasShm tells whether a container has that name.
func HasShm(s *specs.Spec) bool { return s.Annotations[containerName] == shmOwner }
