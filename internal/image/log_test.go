package image

import (
	"testing"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
)

func TestDemoteLibraryLogs(t *testing.T) {
	before := log.L
	t.Cleanup(func() { log.L = before })
	l, hook := test.NewNullLogger()
	DemoteLibraryLogs(l) // at level info
	log.G(t.Context()).WithField("ref", "x").Warn("one")
	log.G(t.Context()).Info("not shown")
	log.G(t.Context()).Error("two")
	got := hook.AllEntries()
	if len(got) != 2 || got[0].Level != logrus.InfoLevel || got[0].Data["ref"] != "x" || got[1].Level != logrus.WarnLevel {
		t.Errorf("entries %+v", got)
	}
}
