package stream

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// tokenLife is how long a session can be begun after its URL was given out.
	tokenLife = time.Minute
	// maxTokens is how many sessions may wait to be begun.
	maxTokens = 1000
)

// tokens are the sessions that can be begun.
type tokens struct {
	now func() time.Time

	mu sync.Mutex
	// +checklocks:mu
	sessions map[string]offered
}

type offered struct {
	session http.HandlerFunc
	until   time.Time
}

func newTokens() *tokens { return &tokens{now: time.Now, sessions: map[string]offered{}} }

// give keeps a session and returns the token for it. The error is
// ErrResourceExhausted.
func (t *tokens) give(kind string, session http.HandlerFunc) (string, error) {
	token := kind + "/" + rand.Text()
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.sessions) >= maxTokens {
		for key, o := range t.sessions {
			if now.After(o.until) {
				delete(t.sessions, key)
			}
		}
	}
	if len(t.sessions) >= maxTokens {
		return "", fmt.Errorf("%d sessions that nobody has begun: %w", len(t.sessions), errdefs.ErrResourceExhausted)
	}
	t.sessions[token] = offered{session, now.Add(tokenLife)}
	return token, nil
}

// take returns the session of a token and forgets it; nil if there is none.
func (t *tokens) take(token string) http.HandlerFunc {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.sessions[token]
	delete(t.sessions, token)
	if t.now().After(o.until) {
		return nil
	}
	return o.session
}
