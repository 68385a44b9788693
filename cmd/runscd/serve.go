package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	runc "github.com/containerd/go-runc"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/config"
	"github.com/runscd/runscd/internal/cri"
	"github.com/runscd/runscd/internal/image"
	"github.com/runscd/runscd/internal/monitor"
	"github.com/runscd/runscd/internal/network"
	"github.com/runscd/runscd/internal/observe"
	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/runsc"
	"github.com/runscd/runscd/internal/spec"
	"github.com/runscd/runscd/internal/store"
	"github.com/runscd/runscd/internal/systemd"
)

func serveCommand(file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Serve the CRI; the daemon",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(*file)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c)
		},
	}
}

// serve recovers what an earlier daemon left, then serves until ctx ends. It
// leaves the pods as they are: they do not notice that the daemon ends.
func serve(ctx context.Context, c *config.Config) error {
	if err := setLogging(c.Log); err != nil {
		return err
	}
	for _, dir := range []string{c.Root, c.State} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		claim, err := store.Lock(dir)
		if err != nil {
			return err
		}
		defer claim.Close()
	}
	unit, err := systemd.Take()
	if err != nil {
		return err
	}
	socket, err := openSocket(c, unit)
	if err != nil {
		return err
	}
	defer socket.Close()
	reaper, err := monitor.New()
	if err != nil {
		return err
	}
	defer reaper.Close()
	runc.Monitor = reaper

	d, err := openDiagnostics(ctx, c)
	if err != nil {
		return err
	}
	defer d.close()
	images, err := openImages(ctx, c, d.Observer)
	if err != nil {
		return err
	}
	defer images.Close()
	pods, err := openPods(ctx, c, d.Observer, pod.Options{Images: d.Images(images), Monitor: reaper, Unit: unit})
	if err != nil {
		return err
	}
	defer pods.Close()
	pods.Check(ctx)
	d.Watch(observe.Node{Pods: pods, Reaped: reaper.Reaped})
	if err := d.serveMetrics(c.Metrics); err != nil {
		return err
	}

	info, err := statusInfo(c, pods.Handlers)
	if err != nil {
		return err
	}
	sessions, err := openSessions(d.Sessions(pods), c.Streaming)
	if err != nil {
		return err
	}
	defer sessions.Close()
	server := grpc.NewServer(append(cri.ServerOptions(), d.ServerOptions()...)...)
	service := cri.NewRuntimeServer(pods, cri.Options{
		Version: version, Sessions: sessions, Info: info,
	})
	runtime.RegisterRuntimeServiceServer(server, service)
	cri.RegisterPods(server, service)
	runtime.RegisterImageServiceServer(server, cri.NewImageServer(d.Pulls(images), func(handler string) error {
		_, err := pods.Handler(handler)
		return err
	}))
	return listen(ctx, server, socket, unit)
}

// openImages opens the image store.
func openImages(ctx context.Context, c *config.Config, o *observe.Observer) (*image.Store, error) {
	if err := clearTempMounts(filepath.Join(c.State, "mounts")); err != nil {
		return nil, err
	}
	images, err := image.Open(ctx, image.Options{
		Root:            filepath.Join(c.Root, "images"),
		CertsDir:        c.Image.CertsDir,
		Pinned:          c.Image.Pinned,
		ProgressTimeout: time.Duration(c.Image.ProgressTimeout),
		Downloads:       c.Image.ParallelDownloads,
		OnReceive:       o.Received,
	})
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return images, nil
}

// clearTempMounts makes the directory where layers are mounted for a moment with
// the ids of a user namespace, and unmounts those that a killed daemon left.
func clearTempMounts(dir string) error {
	if err := mount.SetTempMountLocation(dir); err != nil {
		return err
	}
	warnings, err := mount.CleanupTempMounts(unix.MNT_DETACH)
	return errors.Join(append(warnings, err)...)
}

// openPods recovers the pods and containers. It completes the options by the
// configuration.
func openPods(ctx context.Context, c *config.Config, o *observe.Observer, options pod.Options) (*pod.Registry, error) {
	handlers, err := handlersOf(c, o)
	if err != nil {
		return nil, err
	}
	lowest, err := spec.MinOOMScoreAdj()
	if err != nil {
		return nil, err
	}
	if lowest > -1000 {
		logrus.WithField("lowest", lowest).Warn("oom_score_adj cannot be lowered without CAP_SYS_RESOURCE; pods get no less")
	}
	since := time.Now()
	options.Root, options.State, options.KubeletRoot = c.Root, c.State, c.Kubelet.Root
	options.Handlers, options.Default, options.CDISpecDirs = handlers, c.Runtime.Default, c.Runtime.CDISpecDirs
	options.SystemdCgroup, options.MinOOMScoreAdj = c.Cgroup.DriverInUse() == "systemd", lowest
	options.Network = o.Network(networkOf(c))
	pods, err := pod.Open(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("recovery: %w", err)
	}
	o.Recovered(time.Since(since))
	return pods, nil
}

// handlersOf makes the runtime handlers.
func handlersOf(c *config.Config, o *observe.Observer) (map[string]*pod.Handler, error) {
	handlers := map[string]*pod.Handler{}
	for name, h := range c.Runtime.Handlers {
		path, err := c.Runtime.Runsc(h)
		if err != nil {
			return nil, fmt.Errorf("runtime handler %q: %w", name, err)
		}
		flags := []string{"--platform=" + h.Platform, "--shared-root=" + c.State}
		if c.Cgroup.DriverInUse() == "systemd" {
			flags = append(flags, "--systemd-cgroup")
		}
		if h.NetRaw {
			flags = append(flags, "--net-raw")
		}
		handlers[name] = &pod.Handler{
			Annotations: h.Annotations, Devices: h.Devices(),
			Runtime: runsc.New(runsc.Options{
				Path: path, Root: pod.RunscRoot(c.State, name), Flags: append(flags, h.Args()...),
				OnCommand: o.Command, OnCall: o.Call,
				LayerSize: h.LayerSize,
			}),
		}
	}
	return handlers, nil
}

func networkOf(c *config.Config) pod.Network {
	if c.Network.Mode == "none" {
		return network.None{}
	}
	return network.NewCNI(network.Options{
		ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs,
		CacheDir: filepath.Join(c.Root, "cni"), // leases outlive a reboot
	})
}

// statusInfo is what the verbose Status tells of the daemon.
func statusInfo(c *config.Config, handlers map[string]*pod.Handler) (map[string]string, error) {
	var settings bytes.Buffer
	if err := c.Print(&settings); err != nil {
		return nil, err
	}
	versions := map[string]string{}
	for name, h := range handlers {
		versions[name] = h.Version
	}
	info := map[string]string{}
	for key, v := range map[string]any{"config": settings.String(), "runsc": versions, "version": version} {
		data, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		info[key] = string(data)
	}
	return info, nil
}

func setLogging(c config.Log) error {
	level, err := logrus.ParseLevel(c.Level)
	if err != nil {
		return err
	}
	logrus.SetLevel(level)
	logrus.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, TimestampFormat: time.RFC3339Nano})
	if c.Format == "json" {
		logrus.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	}
	image.DemoteLibraryLogs(logrus.StandardLogger())
	return nil
}
