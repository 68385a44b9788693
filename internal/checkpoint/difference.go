package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Rules say how two JSON objects are compared, by the paths of fields, such as
// "linux.resources" and "mounts[].source".
type Rules struct {
	Free   []string          // may differ
	Secret []string          // are not shown when they differ, with all that is in them
	Keys   map[string]string // lists whose order is free: the field that tells items apart
}

// Same compares what was with what is, both JSON. The error is ErrInvalidArgument and
// names the first field that differs.
func (r Rules) Same(was, is []byte) error {
	var a, b any
	for _, decode := range []struct {
		data []byte
		v    *any
	}{{was, &a}, {is, &b}} {
		d := json.NewDecoder(bytes.NewReader(decode.data))
		d.UseNumber()
		if err := d.Decode(decode.v); err != nil {
			return err
		}
	}
	return r.same("", "", a, b)
}

// same compares the values at a path. rule is the path without indices.
func (r Rules) same(path, rule string, was, is any) error {
	if slices.Contains(r.Free, strings.TrimPrefix(rule, ".")) || empty(was) && empty(is) {
		return nil
	}
	if key, ok := r.Keys[strings.TrimPrefix(rule, ".")]; ok {
		return r.sameItems(path, rule, byKey(was, key), byKey(is, key))
	}
	switch a := was.(type) {
	case map[string]any:
		if b, ok := is.(map[string]any); ok {
			return r.sameFields(path, rule, a, b)
		}
	case []any:
		if b, ok := is.([]any); ok && len(a) == len(b) {
			for i := range a {
				if err := r.same(path+"["+strconv.Itoa(i)+"]", rule+"[]", a[i], b[i]); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if m, ok := is.(map[string]any); ok && was == nil { // find the field in it
		return r.sameFields(path, rule, nil, m)
	}
	if m, ok := was.(map[string]any); ok && is == nil {
		return r.sameFields(path, rule, m, nil)
	}
	if reflect.DeepEqual(was, is) {
		return nil
	}
	path = strings.TrimPrefix(path, ".")
	if slices.ContainsFunc(r.Secret, func(s string) bool { return strings.HasPrefix(rule, "."+s) }) {
		return fmt.Errorf("%s: not as in the checkpoint: %w", path, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%s: %s, the checkpoint has %s: %w", path, text(is), text(was), errdefs.ErrInvalidArgument)
}

func (r Rules) sameFields(path, rule string, was, is map[string]any) error {
	for _, name := range union(was, is) {
		if err := r.same(path+"."+name, rule+"."+name, was[name], is[name]); err != nil {
			return err
		}
	}
	return nil
}

func (r Rules) sameItems(path, rule string, was, is map[string]any) error {
	for _, name := range union(was, is) {
		if err := r.same(path+"["+strconv.Quote(name)+"]", rule+"[]", was[name], is[name]); err != nil {
			return err
		}
	}
	return nil
}

func union(a, b map[string]any) []string {
	all := maps.Clone(a)
	if all == nil {
		all = map[string]any{}
	}
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}

// byKey makes a map of a list of objects.
func byKey(list any, key string) map[string]any {
	items, _ := list.([]any)
	found := map[string]any{}
	for _, item := range items {
		fields, _ := item.(map[string]any)
		found[fmt.Sprint(fields[key])] = item
	}
	return found
}

// empty tells whether a value is the same as none, as protobuf has it.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	case string:
		return v == ""
	case bool:
		return !v
	case json.Number:
		return v == "0"
	}
	return false
}

// text shows a value in a message.
func text(v any) string {
	if v == nil {
		return "none"
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // it has been decoded
	const longest = 200
	if b.Len() > longest {
		return string(b.Bytes()[:longest]) + "…"
	}
	return strings.TrimSpace(b.String())
}
