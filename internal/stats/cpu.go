package stats

import "time"

// CPU is time spent, in microseconds.
type CPU struct{ User, System uint64 }

// Total is all of it.
func (c CPU) Total() uint64 { return c.User + c.System }

// since is what c has more than before, without the part of a clock that has
// gone back.
func (c CPU) since(before CPU) CPU {
	return CPU{c.User - min(before.User, c.User), c.System - min(before.System, c.System)}
}

// Account is the CPU time of one container.
type Account struct {
	counted CPU // by the sandbox
	granted CPU
}

// Granted is the time that the container is held to have spent. It never
// decreases.
func (a *Account) Granted() CPU { return a.granted }

// Budget settles the CPU time of a sandbox's containers. The sandbox counts in
// ticks whatever it believes to be running, the host what was spent; under a CPU
// limit the sandbox's count may be several times too high. So in each period the
// containers get what the sandbox counted for them, but together no more than
// what the host counted for all of the sandbox.
type Budget struct {
	host uint64 // counted so far
	left uint64
}

// slack is how much of a period's time may be spent in a later one: several
// ticks of the sandbox's clock of 10 ms, which are counted late, or early.
const slack = 100_000

// Settle grants what was spent since the last call. host is the time that the
// host has counted so far, in microseconds, counted what the sandbox has.
func (b *Budget) Settle(host uint64, counted map[*Account]CPU) {
	available := host - min(b.host, host) + b.left
	b.host = max(b.host, host)
	var spent uint64
	for a, c := range counted {
		spent += c.since(a.counted).Total()
	}
	share := 1.0
	if spent > available {
		share = float64(available) / float64(spent)
	}
	for a, c := range counted {
		s := c.since(a.counted)
		a.granted.User += uint64(float64(s.User) * share)
		a.granted.System += uint64(float64(s.System) * share)
		a.counted = c
	}
	b.left = min(available-min(spent, available), slack)
}

// window is the shortest time over which a rate is told. Callers that ask more
// often get the rate of the last window.
const window = time.Second

// Rate is how fast a CPU clock goes.
type Rate struct {
	at    time.Time
	total uint64
	cores *uint64
}

// Add takes a reading of the clock, in microseconds, and returns the rate since
// the one before, which is at least a second old, in billionths of a core. It is
// nil at the first reading.
func (r *Rate) Add(at time.Time, total uint64) *uint64 {
	passed := at.Sub(r.at)
	if passed < window {
		return r.cores
	}
	if !r.at.IsZero() {
		spent := total - min(r.total, total)
		cores := uint64(float64(spent) * float64(time.Microsecond) / passed.Seconds())
		r.cores = &cores
	}
	r.at, r.total = at, total
	return r.cores
}
