package fakerunsc

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// state is a container's state file, as far as anybody needs it.
type state struct {
	ID        string `json:"id"`
	BundleDir string `json:"bundleDir"`
	Status    string `json:"status"`
	Sandbox   struct {
		ID  string `json:"id"`
		PID int    `json:"pid"`
	} `json:"sandbox"`
}

func (c *cli) path(s *state, extension string) string {
	return filepath.Join(c.root, fmt.Sprintf("%s_sandbox:%s.%s", s.ID, s.Sandbox.ID, extension))
}

// load finds a container by the beginning of its id.
func (c *cli) load(id string) (*state, error) {
	found, err := filepath.Glob(filepath.Join(c.root, id+"*_sandbox:*.state"))
	if err != nil {
		return nil, err
	}
	switch len(found) {
	case 0:
		return nil, os.ErrNotExist
	case 1:
	default:
		return nil, fmt.Errorf("id %q is ambiguous and could refer to multiple containers: %q", id, found)
	}
	data, err := os.ReadFile(found[0])
	if err != nil {
		return nil, err
	}
	s := new(state)
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("reading container metadata file %q: %w", found[0], err)
	}
	return s, nil
}

func (c *cli) save(s *state) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path(s, "lock"), nil, 0o600); err != nil {
		return err
	}
	// Whole or not at all: others read it at any time.
	path := c.path(s, "state")
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (c *cli) remove(s *state) error {
	if err := os.Remove(c.path(s, "state")); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.Remove(c.path(s, "lock")); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}
