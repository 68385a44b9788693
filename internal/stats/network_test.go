package stats

import (
	"os"
	"slices"
	"testing"
)

func TestInterfaces(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
 tunl0:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
    lo:      11      12    0    0    0     0          0         0       11      12    0    0    0     0       0          0
  eth0: 10434032    1023    2    3    0     0          0         0   552001    1006    4    5    0     0       0          0
`
	eth0 := Interface{"eth0", Traffic{10434032, 1023, 2, 3}, Traffic{552001, 1006, 4, 5}}
	for first, want := range map[string][]Interface{"eth0": {eth0, {Name: "tunl0"}}, "net1": {{Name: "tunl0"}, eth0}} {
		if got := interfaces(text, first); !slices.Equal(got, want) {
			t.Errorf("%s first: %v", first, got)
		}
	}
	if got := interfaces("nonsense\neth0: 1 2\n", ""); got != nil {
		t.Errorf("%v", got)
	}
	if _, err := Interfaces(os.Getpid(), "eth0"); err != nil {
		t.Errorf("of this process: %v", err)
	}
}
