// Package stream serves the sessions of exec, attach and port-forward over
// HTTP, as the kubelet connects to them: SPDY, or WebSocket as far as
// k8s.io/cri-streaming speaks it.
//
// What it keeps true:
//
//   - A session is begun only with the URL that an RPC gave out for it, once,
//     and within a minute.
//   - The context of a session ends as soon as its client is gone, also while
//     nothing is read from the client.
//   - A client that does not read holds up its own session only, and that no
//     longer than the idle timeout.
//   - What a session has written reaches the client also when the client has
//     sent more than was wanted.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/runscd/runscd/internal/stdio"
)

// Pods are where sessions lead; internal/pod's Registry is it. ctx ends when the
// client is gone.
type Pods interface {
	// Exec runs a command in a container and returns its exit status.
	Exec(ctx context.Context, container string, command []string, tty bool, s stdio.Streams) (int, error)
	// Attach connects the client with a container's own streams until these end.
	Attach(ctx context.Context, container string, s stdio.Streams) error
	// PortForward connects the client with a port of a pod. conn's Close ends
	// what is sent to the client and nothing else.
	PortForward(ctx context.Context, pod string, port uint16, conn io.ReadWriteCloser) error
}

// Options are what a Server works with.
type Options struct {
	// BaseURL is what the URLs of sessions begin with, "" for the listener's
	// address. It is for a server that clients reach by another name.
	BaseURL string
	// TLS is how to speak HTTPS, nil for HTTP.
	TLS *tls.Config
	// IdleTimeout ends a connection on which nothing was sent or received for so
	// long.
	IdleTimeout time.Duration
}

const (
	// creationTimeout is how long a client may take to open a session's streams.
	creationTimeout = remotecommand.DefaultStreamCreationTimeout
	// headerTimeout is how long it may take to send the request.
	headerTimeout = 30 * time.Second
	// closeTimeout is how long Close waits for sessions to end.
	closeTimeout = 5 * time.Second
)

// Server is the HTTP server of sessions.
type Server struct {
	pods     Pods
	options  Options
	base     *url.URL
	listener net.Listener
	http     *http.Server
	tokens   *tokens
	end      context.CancelFunc // of all sessions
	sessions sync.WaitGroup
}

// NewServer returns a server of sessions with pods on a listener, which it takes
// over. The error is ErrInvalidArgument if the base URL is none.
func NewServer(pods Pods, l *net.TCPListener, o Options) (*Server, error) {
	base, err := baseURL(o, l.Addr())
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(context.Background())
	s := &Server{pods: pods, options: o, base: base, tokens: newTokens(), end: end, listener: listener{l, o.IdleTimeout}}
	if o.TLS != nil {
		s.listener = tls.NewListener(s.listener, o.TLS)
	}
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withConn,
		ErrorLog:          log.New(debugLog{}, "", 0),
	}
	return s, nil
}

// baseURL is what the URLs of sessions begin with.
func baseURL(o Options, addr net.Addr) (*url.URL, error) {
	if o.BaseURL == "" {
		scheme := "http"
		if o.TLS != nil {
			scheme = "https"
		}
		return &url.URL{Scheme: scheme, Host: addr.String()}, nil
	}
	return url.Parse(o.BaseURL)
}

// Serve serves sessions until Close.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("streaming server: %w", err)
	}
	return nil
}

// Close ends all sessions and what was started for them, and the server.
func (s *Server) Close() {
	s.end()
	s.http.Close()
	ended := make(chan struct{})
	go func() {
		s.sessions.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closeTimeout):
	}
}

// ServeHTTP begins the session that the URL was given out for.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "a session is begun by GET or POST", http.StatusMethodNotAllowed)
		return
	}
	dir, token := path.Split(path.Clean(r.URL.Path))
	session := s.tokens.take(path.Base(dir) + "/" + token)
	if session == nil {
		http.Error(w, "no such session: its URL is good once, and for a minute", http.StatusNotFound)
		return
	}
	s.sessions.Add(1)
	defer s.sessions.Done()
	session(w, r)
}

// offer returns the URL at which a session can be begun.
func (s *Server) offer(kind string, session http.HandlerFunc) (string, error) {
	token, err := s.tokens.give(kind, session)
	if err != nil {
		return "", err
	}
	u := *s.base
	u.Path = strings.TrimSuffix(u.Path, "/") + "/" + token
	return u.String(), nil
}

// debugLog takes what net/http says of clients that do not speak as they should.
type debugLog struct{}

func (debugLog) Write(line []byte) (int, error) {
	logrus.WithField("server", "streaming").Debug(strings.TrimSpace(string(line)))
	return len(line), nil
}
