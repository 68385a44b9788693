package network

import (
	"context"
	"testing"
)

// both is what CNI and None have in common.
type both interface {
	Status(context.Context) error
	Add(context.Context, Pod) ([]string, error)
	Del(context.Context, Pod) error
	GC(context.Context, []string) error
}

var _ both = (*CNI)(nil)

func TestNone(t *testing.T) {
	var n both = None{}
	if err := n.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if ips, err := n.Add(t.Context(), Pod{ID: "p1"}); err != nil || len(ips) != 0 {
		t.Errorf("Add = %v, %v", ips, err)
	}
	if err := n.Del(t.Context(), Pod{ID: "p1"}); err != nil {
		t.Error(err)
	}
	if err := n.GC(t.Context(), nil); err != nil {
		t.Error(err)
	}
}
