package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// DefaultPath is the file that is read when none is named.
const DefaultPath = "/etc/runscd/runscd.toml"

// Load reads the file at path, then the drop-ins <path>.d/*.toml in the order
// of their names, each over what came before: scalars and arrays are replaced,
// tables merged. The result is complete and valid; errors name file, line and
// key where there is one. If path is empty, DefaultPath is read, which need
// not exist.
func Load(path string) (*Config, error) {
	c := Default()
	file := path
	if path == "" {
		file = DefaultPath
	}
	if err := c.read(file); err != nil && (path != "" || !errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	dropIns, err := os.ReadDir(file + ".d")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	for _, e := range dropIns {
		if filepath.Ext(e.Name()) != ".toml" {
			continue
		}
		if err := c.read(filepath.Join(file+".d", e.Name())); err != nil {
			return nil, err
		}
	}
	c.complete()
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", file, err)
	}
	return c, nil
}

// complete fills in the defaults that depend on other settings.
func (c *Config) complete() {
	if c.Socket == "" {
		c.Socket = filepath.Join(c.State, "runscd.sock")
	}
	for name, h := range c.Runtime.Handlers {
		if h.Platform == "" {
			h.Platform = "systrap"
		}
		if h.Annotations == nil {
			h.Annotations = []string{}
		}
		if h.Flags == nil {
			h.Flags = map[string]string{}
		}
		c.Runtime.Handlers[name] = h
	}
}

func (c *Config) read(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	err = toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(c)
	if err == nil {
		return nil
	}
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var errs []error
		for _, e := range unknown.Errors {
			errs = append(errs, inFile(file, &e, errors.New("unknown key")))
		}
		return errors.Join(errs...)
	}
	var at *toml.DecodeError
	if errors.As(err, &at) {
		return inFile(file, at, at)
	}
	return fmt.Errorf("configuration %s: %w", file, err)
}

// inFile says where in file err is: "file:line: key: err".
func inFile(file string, at *toml.DecodeError, err error) error {
	line, _ := at.Position()
	if key := strings.Join(at.Key(), "."); key != "" {
		return fmt.Errorf("%s:%d: %s: %w", file, line, key, err)
	}
	return fmt.Errorf("%s:%d: %w", file, line, err)
}
