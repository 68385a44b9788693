package pod

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/checkpoint"
	"github.com/runscd/runscd/test/fakerunsc"
)

// fill sets all fields of a message, and calls each for every one that is no message with
// its path and a function that changes it.
func fill(m protoreflect.Message, path string, each func(path string, change func())) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		path := strings.TrimPrefix(path+"."+string(f.Name()), ".")
		switch {
		case f.IsMap():
			m.Mutable(f).Map().Set(protoreflect.ValueOfString("key").MapKey(), sample(f.MapValue(), 1))
			each(path, func() { m.Mutable(f).Map().Set(protoreflect.ValueOfString("key").MapKey(), sample(f.MapValue(), 2)) })
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(f).List().AppendMutable().Message(), path+"[]", each)
		case f.IsList():
			m.Mutable(f).List().Append(sample(f, 1))
			each(path, func() { m.Mutable(f).List().Set(0, sample(f, 2)) })
		case f.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(f).Message(), path, each)
		default:
			m.Set(f, sample(f, 1))
			each(path, func() { m.Set(f, sample(f, 2)) })
		}
	}
}

// sample is one of two values of a field.
func sample(f protoreflect.FieldDescriptor, n int) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n == 1)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprint("value ", n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{byte(n)})
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(n))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	}
	panic(f.Kind())
}

var places = regexp.MustCompile(`\[[^\]]*\]`)

// TestEachMismatchNamesItsField changes each field of the configurations. All that may not
// differ are told by their names.
func TestEachMismatchNamesItsField(t *testing.T) {
	for name, test := range map[string]struct {
		empty proto.Message
		rules checkpoint.Rules
	}{
		"pod": {new(runtime.PodSandboxConfig), podRules}, "container": {new(runtime.ContainerConfig), containerRules},
	} {
		filled := func() (proto.Message, map[string]func()) {
			m, changes := proto.Clone(test.empty), map[string]func(){}
			fill(m.ProtoReflect(), "", func(path string, change func()) { changes[path] = change })
			return m, changes
		}
		m, all := filled()
		was, err := encode(m)
		if err != nil {
			t.Fatal(err)
		}
		for path := range all {
			m, changes := filled()
			changes[path]()
			is, err := encode(m)
			if err != nil {
				t.Fatal(err)
			}
			free := slices.ContainsFunc(test.rules.Free, func(f string) bool {
				return path == f || strings.HasPrefix(path, f+".") || strings.HasPrefix(path, f+"[")
			})
			err = test.rules.Same(was, is)
			if free && err != nil {
				t.Errorf("%s: %s is free: %v", name, path, err)
			}
			plain := strings.ReplaceAll(path, "[]", "")
			if !free && (!errdefs.IsInvalidArgument(err) || !strings.HasPrefix(places.ReplaceAllString(err.Error(), ""), plain)) {
				t.Errorf("%s: %s: %v", name, path, err)
			}
		}
		if len(all) < 20 {
			t.Errorf("%s: %d fields", name, len(all))
		}
	}
}

// TestACheckpointOfAHostsDeviceIsRefused has a device that the sentry passes on.
func TestACheckpointOfAHostsDeviceIsRefused(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("one")
	c := n.start(pod, "a", "sleep")
	s, err := readBundle(c.init.Bundle)
	n.must(err)
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, {Path: "/dev/nvidia0", Type: "c", Major: 195}}
	n.must(writeBundle(c.init.Bundle, s))
	dir, err := n.save(pod, c)
	n.is(err, errdefs.IsFailedPrecondition, "/dev/nvidia0")
	if left := entries(dir); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	if calls := n.Calls(); slices.Contains(calls, "rpc.Pause") {
		t.Errorf("the pod was paused: %q", calls)
	}
}

// TestACheckpointAfterItsDeadline has the client's patience end while the sandbox writes.
func TestACheckpointAfterItsDeadline(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("one")
	c := n.start(pod, "a", "sleep")
	dir := t.TempDir()
	n.Fault("rpc.Checkpoint", fakerunsc.Hang)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Checkpoint(ctx, n.Registry, &runtime.CheckpointPodRequest{PodSandboxId: pod, OutputPath: dir, ContainerIds: []string{c.ID}})
	}()
	n.Await("rpc.Checkpoint")
	cancel()
	select {
	case err := <-done:
		t.Errorf("it returned while the sandbox writes: %v", err)
	default:
	}
	n.Clear("rpc.Checkpoint")
	n.is(<-done, func(err error) bool { return errors.Is(err, context.Canceled) }, "")
	if left := entries(dir); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	_, err := n.save(pod, c) // which would be refused if it were paused
	n.must(err)
}
