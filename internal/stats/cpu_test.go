package stats

import (
	"testing"
	"time"
)

func TestBudget(t *testing.T) {
	const s = 1_000_000
	var b Budget
	one, three := &Account{}, &Account{}
	settle := func(host, c1, c3, want1, want3 uint64) {
		t.Helper()
		b.Settle(host, map[*Account]CPU{one: {User: c1}, three: {User: c3 / 2, System: c3 / 2}})
		if g1, g3 := one.Granted().Total(), three.Granted().Total(); g1 != want1 || g3 != want3 {
			t.Errorf("host %d, counted %d and %d: granted %d and %d, want %d and %d", host, c1, c3, g1, g3, want1, want3)
		}
	}
	// The sandbox has spent half a second itself.
	settle(9*s/2, 1*s, 3*s, 1*s, 3*s)
	// Now it is held to a quarter of what its clock believes; a tenth of a second
	// is left from before.
	settle(11*s/2, 43*s/10, 41*s/10, 1_825_000, 3_275_000)
	settle(11*s/2, 43*s/10, 41*s/10, 1_825_000, 3_275_000)
}

func TestBudgetInTicks(t *testing.T) {
	var b Budget
	a := &Account{}
	// A clock of 10 ms, read every 3 ms, of a program that always runs.
	for now := uint64(0); now <= 3_000_000; now += 3_000 {
		b.Settle(now+200_000, map[*Account]CPU{a: {User: (now + 9_999) / 10_000 * 10_000}})
	}
	if got := a.Granted().Total(); got < 2_990_000 || got > 3_000_000 {
		t.Errorf("granted %d of 3000000", got)
	}
}

func TestBudgetNeverGoesBack(t *testing.T) {
	var b Budget
	idle, busy := &Account{}, &Account{}
	b.Settle(100_000_000, map[*Account]CPU{idle: {User: 90_000_000}, busy: {}})
	for i := range uint64(100) {
		b.Settle(100_000_000+i*50_000, map[*Account]CPU{idle: {User: 90_000_000}, busy: {User: i * 1_000_000}})
	}
	if got := idle.Granted().Total(); got != 90_000_000 {
		t.Errorf("the idle one has %d", got)
	}
	if got := busy.Granted().Total(); got > 99*50_000+slack {
		t.Errorf("the throttled one has %d, the host counted %d", got, 99*50_000)
	}
	// A host whose clock has gone back, and a sandbox that counts anew.
	b.Settle(0, map[*Account]CPU{idle: {}, busy: {}})
	if idle.Granted().Total() != 90_000_000 {
		t.Errorf("%d", idle.Granted().Total())
	}
}

func TestRate(t *testing.T) {
	var r Rate
	begin := time.Unix(1e9, 0)
	add := func(at time.Duration, total uint64, want int64) {
		t.Helper()
		got := r.Add(begin.Add(at), total)
		if want < 0 {
			if got != nil {
				t.Errorf("at %v: %d, want none", at, *got)
			}
			return
		}
		if got == nil || *got != uint64(want) {
			t.Errorf("at %v: %v, want %d", at, got, want)
		}
	}
	add(0, 5_000_000, -1)
	add(999*time.Millisecond, 6_000_000, -1)
	add(2*time.Second, 6_000_000, 500_000_000)
	add(2500*time.Millisecond, 9_000_000, 500_000_000) // of the last window
	add(12*time.Second, 26_000_000, 2_000_000_000)
	add(11*time.Second, 0, 2_000_000_000) // overtaken
	add(14*time.Second, 26_000_000, 0)
}
