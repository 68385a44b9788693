package report

import (
	"bytes"
	"encoding/json"
	"strings"
)

// redacted stands where a value was.
const redacted = "(redacted)"

// redact returns a JSON document without the values of environment variables, in
// the forms of the CRI and of an OCI bundle, and of annotations that are not the
// kubelet's or gVisor's: kubectl keeps whole manifests in one.
func redact(data []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber() // ids and times keep their digits
	var doc any
	if err := d.Decode(&doc); err != nil {
		return nil, err
	}
	clean(doc)
	return json.MarshalIndent(doc, "", "  ")
}

// clean redacts what is in v.
func clean(v any) {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			clean(item)
		}
	case map[string]any:
		for key, item := range v {
			switch key {
			case "env", "envs":
				cleanEnv(item)
			case "annotations":
				cleanAnnotations(item)
			default:
				clean(item)
			}
		}
	}
}

// cleanEnv redacts a list of "NAME=value", or of objects with key and value.
func cleanEnv(v any) {
	list, _ := v.([]any)
	for i, item := range list {
		switch item := item.(type) {
		case string:
			name, _, _ := strings.Cut(item, "=")
			list[i] = name + "=" + redacted
		case map[string]any:
			if _, ok := item["value"]; ok {
				item["value"] = redacted
			}
		}
	}
}

func cleanAnnotations(v any) {
	annotations, _ := v.(map[string]any)
	for name := range annotations {
		if !strings.HasPrefix(name, "io.kubernetes.") && !strings.HasPrefix(name, "dev.gvisor.") {
			annotations[name] = redacted
		}
	}
}
