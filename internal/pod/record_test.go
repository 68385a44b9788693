package pod

import (
	"fmt"
	"strings"
	"testing"

	"github.com/runscd/runscd/internal/store"
)

// noted is a record that looks, while it is being written, what is told of it.
type noted struct {
	number int
	told   func() noted
}

func (n noted) MarshalJSON() ([]byte, error) {
	if told := n.told().number; told == n.number {
		return nil, fmt.Errorf("%d is told before it is on disk", told)
	}
	return fmt.Appendf(nil, `{"number": %d}`, n.number), nil
}

func TestFactsAreOnDiskBeforeTheyAreTold(t *testing.T) {
	records, err := store.Open[noted](t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	var f *facts[noted]
	f = &facts[noted]{id: strings.Repeat("a", 64), records: records, now: noted{told: func() noted { return f.Facts() }}}
	if err := f.update(func(n *noted) { n.number = 7 }); err != nil {
		t.Error(err)
	}
	if n := f.Facts().number; n != 7 {
		t.Errorf("told is %d", n)
	}
}
