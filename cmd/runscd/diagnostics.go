package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/runscd/runscd/internal/config"
	"github.com/runscd/runscd/internal/observe"
)

// diagnostics are what the daemon lets be seen of itself.
type diagnostics struct {
	*observe.Observer
	closers []func()
}

// flushTimeout bounds how long the last traces are tried to be sent.
const flushTimeout = 2 * time.Second

// openDiagnostics begins to trace and opens the debug socket, if the settings
// say so.
func openDiagnostics(ctx context.Context, c *config.Config) (*diagnostics, error) {
	d := &diagnostics{}
	var provider trace.TracerProvider
	if c.Tracing.Endpoint != "" {
		exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(c.Tracing.Endpoint))
		if err != nil {
			return nil, fmt.Errorf("tracing.endpoint %q: %w", c.Tracing.Endpoint, err)
		}
		about := resource.NewSchemaless(attribute.String("service.name", "runscd"), attribute.String("service.version", version))
		otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { logrus.WithError(err).Warn("traces") }))
		traces := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))
		d.closers = append(d.closers, func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
			defer cancel()
			if err := traces.Shutdown(ctx); err != nil {
				logrus.WithError(err).Warn("last traces")
			}
		})
		provider = traces
	}
	d.Observer = observe.New(version, provider)
	if c.Debug.Socket != "" {
		if err := d.serve("unix", c.Debug.Socket, profiles()); err != nil {
			d.close()
			return nil, fmt.Errorf("debug.socket: %w", err)
		}
	}
	return d, nil
}

// profiles serves Go's profiles. The library's own handler would serve the
// program's arguments besides.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// serveMetrics serves the daemon's own series, if the settings say where.
func (d *diagnostics) serveMetrics(c config.Metrics) error {
	if c.Address == "" {
		return nil
	}
	kind := "tcp"
	if filepath.IsAbs(c.Address) {
		kind = "unix"
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", d.Handler())
	if err := d.serve(kind, c.Address, mux); err != nil {
		return fmt.Errorf("metrics.address: %w", err)
	}
	return nil
}

// serve serves HTTP until close. A unix socket is for the daemon's user only.
func (d *diagnostics) serve(network, address string, h http.Handler) error {
	var l net.Listener
	var err error
	if network == "unix" {
		l, err = listenUnix(address, 0o600)
	} else {
		l, err = net.Listen(network, address)
	}
	if err != nil {
		return err
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			logrus.WithField("address", address).WithError(err).Error("diagnostics server")
		}
	}()
	d.closers = append(d.closers, func() {
		server.Close()
		<-done
	})
	return nil
}

// close ends what serves and sends the last traces.
func (d *diagnostics) close() {
	for _, f := range d.closers {
		f()
	}
}
