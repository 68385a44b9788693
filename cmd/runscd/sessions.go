package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"

	"github.com/runscd/runscd/internal/config"
	"github.com/runscd/runscd/internal/stream"
)

// openSessions starts the server of exec, attach and port-forward.
func openSessions(pods stream.Pods, c config.Streaming) (*stream.Server, error) {
	// Its library logs what the client is told anyway.
	klog.SetLogger(funcr.New(func(_, args string) { logrus.WithField("server", "streaming").Debug(args) }, funcr.Options{}))
	o := stream.Options{BaseURL: c.BaseURL, IdleTimeout: time.Duration(c.IdleTimeout)}
	if c.TLSCert != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
			return &cert, err
		}
		if _, err := load(); err != nil {
			return nil, fmt.Errorf("streaming.tls_cert %q, streaming.tls_key %q: %w", c.TLSCert, c.TLSKey, err)
		}
		// Read anew each time: certificates are renewed while the daemon runs.
		o.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return load() }}
	}
	l, err := net.Listen("tcp", c.Address)
	if err != nil {
		return nil, fmt.Errorf("streaming.address %q: %w", c.Address, err)
	}
	server, err := stream.NewServer(pods, l.(*net.TCPListener), o)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	go func() {
		if err := server.Serve(); err != nil {
			logrus.WithError(err).Error("streaming server")
		}
	}()
	return server, nil
}
