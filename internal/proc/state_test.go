package proc

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const matrix = `
          creating created running stopped deleted
create    yes      -       -       -       -        exclusive
start     -        yes     -       -       -        exclusive
exec in   -        -       yes     -       -
kill      yes      yes     yes     yes     yes
resize    -        yes     yes     -       -
update    -        yes     yes     -       -
stat      -        yes     yes     -       -
save      -        -       yes     -       -
pause     -        -       yes     -       -
delete    yes      yes     yes     yes     yes      exclusive
`

// The matrix is read off the behaviour of Begin, not off its table.
func TestMatrix(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-9s", "")
	for s := Creating; s <= Deleted; s++ {
		fmt.Fprintf(&b, " %s", s)
	}
	b.WriteByte('\n')
	for op := OpCreate; op <= OpDelete; op++ {
		row := fmt.Sprintf("%-9s", op)
		exclusive := false
		for s := Creating; s <= Deleted; s++ {
			l := NewLife(s)
			end, err := l.Begin(t.Context(), op)
			cell := "yes"
			if err != nil {
				cell = "-"
				if !errdefs.IsFailedPrecondition(err) {
					t.Errorf("%s in state %s: error %v is not a failed precondition", op, s, err)
				}
			} else {
				exclusive = exclusive || len(l.claim) > 0
				end()
			}
			if len(l.claim) > 0 {
				t.Errorf("%s in state %s: the claim is held after its end", op, s)
			}
			row += fmt.Sprintf(" %-*s", len(s.String()), cell)
		}
		if exclusive {
			row += "  exclusive"
		}
		b.WriteString(strings.TrimRight(row, " ") + "\n")
	}
	if got := b.String(); got != matrix {
		t.Errorf("the matrix is%swant%s", got, matrix)
	}
}

func TestAdvanceOnlyGoesForward(t *testing.T) {
	for from := Creating; from <= Deleted; from++ {
		for to := Creating; to <= Deleted; to++ {
			l := NewLife(from)
			l.Advance(to)
			if got := l.State(); got != max(from, to) {
				t.Errorf("from %s to %s: state is %s", from, to, got)
			}
		}
	}
}

func TestExclusiveOperationsFollowEachOther(t *testing.T) {
	l := NewLife(Created)
	end, err := l.Begin(t.Context(), OpStart)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Begin(ctx, OpDelete); err == nil {
		t.Error("a deletion began while the start was running")
	}
	if kill, err := l.Begin(t.Context(), OpKill); err != nil {
		t.Errorf("kill during start: %v", err)
	} else {
		kill()
	}
	second := make(chan error)
	go func() {
		_, err := l.Begin(context.Background(), OpStart)
		second <- err
	}()
	l.Advance(Running)
	end()
	if err := <-second; !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: error %v, want failed precondition", err)
	}
}
