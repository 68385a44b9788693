package pod

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
)

// manyLives is how many pods live in a test for leaks. The default is for the run of
// all tests; RUNSCD_TEST_LIVES has another number.
func manyLives(t *testing.T) int {
	t.Helper()
	text := os.Getenv("RUNSCD_TEST_LIVES")
	if text == "" {
		return 20
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// held is what this process has.
type held struct{ goroutines, files, heap int }

func (h held) String() string {
	return fmt.Sprintf("%d goroutines, %d files, %d KiB of heap", h.goroutines, h.files, h.heap>>10)
}

func holds() held {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return held{runtime.NumGoroutine(), len(entries("/proc/self/fd")), int(m.HeapAlloc)}
}

func TestManyLivesLeaveNothing(t *testing.T) {
	n, ctx := newNode(t), t.Context()
	live := func(i int) {
		id := n.runPod(fmt.Sprint("p", i))
		c := n.start(id, fmt.Sprint("c", i), "trap")
		n.ended(n.start(id, fmt.Sprint("d", i), "print", "text"), 0, "Completed")
		n.must(n.StopContainer(ctx, c.ID, time.Hour))
		n.must(n.StopPod(ctx, id))
		n.must(n.RemovePod(ctx, id))
	}
	const first = 10
	for i := range first {
		live(i)
	}
	few, lives := holds(), manyLives(t)
	for i := range lives {
		live(first + i)
	}
	many := holds()
	// What has ended may take a moment to be gone.
	for end := time.Now().Add(10 * time.Second); (many.goroutines > few.goroutines || many.files > few.files) && time.Now().Before(end); many = holds() {
		time.Sleep(time.Millisecond)
	}
	t.Logf("after %d lives: %v; after %d: %v", first, few, first+lives, many)
	if many.goroutines > few.goroutines || many.files > few.files || many.heap > few.heap+lives<<10+1<<20 {
		t.Error("more is held")
	}
	n.nothing()
}
