package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
)

// readConf reads the network configuration in use: the first file of dir, by
// name, that is one. If that is broken it returns an error and does not go on
// to another network.
func readConf(dir string) (*libcni.NetworkConfigList, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("network configuration: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() || !slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("network configuration: %w", err)
		}
		list, err := parseConf(data)
		if err != nil {
			return nil, fmt.Errorf("network configuration %s: %w", path, err)
		}
		return list, nil
	}
	return nil, fmt.Errorf("no network configuration in %s", dir)
}

// parseConf takes both forms, a list of plugins and a single plugin, which it
// makes a list of one. Plugins in files of their own (CNI 1.1) are not looked
// for: libcni would not keep them for DEL.
func parseConf(data []byte) (*libcni.NetworkConfigList, error) {
	var single struct {
		Name       string            `json:"name"`
		CNIVersion string            `json:"cniVersion"`
		Plugins    []json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(data, &single); err != nil {
		return nil, err
	}
	if single.Plugins == nil {
		single.Plugins = []json.RawMessage{data}
		var err error
		if data, err = json.Marshal(single); err != nil {
			return nil, err
		}
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, err
	}
	return list, nil
}
