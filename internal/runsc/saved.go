package runsc

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// SavedState is the state of a container as runsc has written it down: StateUnknown
// for one that it keeps nothing of, StateCreated for one that is not known to be
// started, and StateRunning for one that was, whatever has become of it.
func (r *Runtime) SavedState(id string) State {
	found, err := filepath.Glob(filepath.Join(r.root, id+stateInfix+"*.state"))
	if err != nil || len(found) == 0 {
		return StateUnknown
	}
	var saved struct{ Status string }
	data, err := os.ReadFile(found[0])
	if err == nil {
		err = json.Unmarshal(data, &saved)
	}
	if err != nil || saved.Status == "creating" || saved.Status == "created" {
		return StateCreated
	}
	return StateRunning
}
