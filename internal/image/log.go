package image

import (
	"io"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// DemoteLibraryLogs sends what containerd's libraries log to l, one level less
// important than they think: what matters to a request they return as its
// error, and much of the rest is about what this daemon does by design. It sets
// the libraries' global logger, so it is to be called once, before Open, with l
// at its final level.
func DemoteLibraryLogs(l *logrus.Logger) {
	libraries := logrus.New()
	libraries.SetOutput(io.Discard)
	libraries.SetFormatter(noFormat{})
	libraries.AddHook(demote{l})
	// Nothing is made only to be thrown away.
	libraries.SetLevel(max(l.GetLevel(), logrus.ErrorLevel) - 1)
	log.L = logrus.NewEntry(libraries)
}

type demote struct{ to *logrus.Logger }

func (demote) Levels() []logrus.Level { return logrus.AllLevels }

func (d demote) Fire(e *logrus.Entry) error {
	d.to.WithFields(e.Data).Log(min(e.Level+1, logrus.TraceLevel), e.Message)
	return nil
}

type noFormat struct{}

func (noFormat) Format(*logrus.Entry) ([]byte, error) { return nil, nil }
