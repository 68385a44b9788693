package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/runscd/runscd/internal/checkpoint"
)

// CheckpointReport is about pods that are saved and restored, by what is in them.
type CheckpointReport struct {
	Pods   map[string]SaveReport `json:"pods"`
	Clones ClonesReport          `json:"clones_at_once"`
}

// SaveReport is about one pod. Calls are CheckpointPod, "paused" of it, and "restore":
// RestorePod, the starts of all containers and an exec in each.
type SaveReport struct {
	Runs  int   `json:"runs"`
	Bytes int64 `json:"bytes"` // of the checkpoint's directory
	Calls Calls `json:"runscd"`
	// Floor is runsc checkpoint --leave-running; and create, restore of both and exec.
	Floor Calls `json:"bare_runsc,omitempty"`
	// Ratio is that of the medians of runscd to those of bare runsc.
	Ratio map[string]float64 `json:"ratio_to_bare_runsc,omitempty"`
}

// ClonesReport is about many pods that are restored from one checkpoint at once.
type ClonesReport struct {
	Pods  int   `json:"pods"`
	Calls Calls `json:"calls"` // "all", and "each" of them
}

// limit is the deadline that checkpoints and restores must have.
const limit = 10 * time.Minute

// ready is what a container has in its root file system, and its log, when it is to be saved.
const ready = "touch /ready; echo ready"

// saved is a pod to be measured.
type saved struct {
	name       string
	containers int
	command    []string
	mounts     []*runtime.Mount
	runs       int
	cold, bare bool // measure a start of the program, and bare runsc
}

// holding is a program that has read so many megabytes of random bytes, and holds
// them while nobody reads what it writes.
func holding(megabytes int) []string {
	return []string{"sh", "-c", fmt.Sprintf(
		"dd if=/dev/urandom iflag=fullblock bs=%dM count=1 | { head -c 1 >/dev/null; %s; exec sleep 1000000; }", megabytes, ready)}
}

// warm is a Python program that takes its time to get ready.
const warm = `import argparse, ast, asyncio, base64, bisect, calendar, collections, csv, ctypes, datetime, decimal, difflib
import email.message, fractions, heapq, hashlib, html.parser, http.client, inspect, json, logging, pickle, random, sqlite3
import ssl, statistics, subprocess, tarfile, tempfile, time, unittest, urllib.request, uuid, xml.etree.ElementTree, zipfile
table = {i: hashlib.sha256(str(i).encode()).hexdigest() for i in range(200000)}
open("/ready", "w").close()
print("ready", flush=True)
time.sleep(1000000)`

// checkpoints measures all kinds of pods.
func (n *node) checkpoints(ctx context.Context) (CheckpointReport, error) {
	r := CheckpointReport{Pods: map[string]SaveReport{}}
	idle := []string{"sh", "-c", ready + "; exec sleep 1000000"}
	pods := []saved{
		{name: "busybox", containers: 1, command: idle, runs: 10, bare: true},
		{name: "3-containers", containers: 3, command: idle, runs: 10},
		{name: "200-mb", containers: 1, command: holding(200), runs: 5, bare: true},
		{name: "2-gb", containers: 1, command: holding(2000), runs: 3},
	}
	const python = "/usr/bin/python3"
	if _, err := os.Stat(python); err == nil {
		s := saved{name: "python", containers: 1, command: []string{python, "-c", warm}, runs: 5, cold: true}
		for _, dir := range []string{"usr", "lib", "lib64"} {
			s.mounts = append(s.mounts, &runtime.Mount{ContainerPath: "/" + dir, HostPath: "/" + dir, Readonly: true})
		}
		pods = append(pods, s)
	}
	for _, s := range pods {
		var err error
		if r.Pods[s.name], err = n.save(ctx, s); err != nil {
			return r, fmt.Errorf("checkpoint of %s: %w", s.name, err)
		}
	}
	var err error
	r.Clones, err = n.clones(ctx, 20, 5)
	return r, err
}

// save measures one kind of pod.
func (n *node) save(ctx context.Context, s saved) (SaveReport, error) {
	r := SaveReport{Runs: s.runs}
	watch := newStopwatch()
	for i := 0; s.cold && i < s.runs; i++ {
		p, err := n.started(ctx, fmt.Sprint("cold-", i), s, watch)
		if err == nil {
			err = n.remove(ctx, p)
		}
		if err != nil {
			return r, err
		}
	}
	p, err := n.started(ctx, s.name, s, newStopwatch())
	if err != nil {
		return r, err
	}
	for i := range s.runs {
		if r.Bytes, err = n.saveOnce(ctx, p, fmt.Sprint(s.name, "-", i), watch); err != nil {
			return r, err
		}
	}
	r.Calls = watch.calls()
	if !s.bare {
		return r, n.remove(ctx, p)
	}
	b, err := n.bareOf(ctx, p)
	if err != nil {
		return r, err
	}
	if err := n.remove(ctx, p); err != nil {
		return r, err
	}
	r.Floor, err = b.saves(ctx, n.path("saved"), s.runs)
	r.Ratio = map[string]float64{}
	for name, f := range r.Floor {
		r.Ratio[name] = r.Calls[name].P50 / f.P50
	}
	return r, errors.Join(err, b.remove())
}

// started runs a pod until it is ready to be saved.
func (n *node) started(ctx context.Context, name string, s saved, watch *stopwatch) (*pod, error) {
	p := n.newPod(name)
	p.mounts = s.mounts
	begin := time.Now()
	if err := n.runPod(ctx, p); err != nil {
		return nil, err
	}
	created := time.Now()
	for i := range s.containers {
		if err := n.create(ctx, p, s.command...); err != nil {
			return nil, err
		}
		if err := n.start(ctx, p); err != nil {
			return nil, err
		}
		for log := n.path("logs/" + p.configs[i].LogPath); ; {
			text, err := os.ReadFile(log)
			if err != nil {
				return nil, err
			}
			if strings.Contains(string(text), "stdout F ready\n") {
				break
			}
			if err := sleep(ctx, time.Millisecond); err != nil {
				return nil, err
			}
		}
	}
	watch.add("cold start with RunPodSandbox", time.Since(begin))
	watch.add("cold start from CreateContainer", time.Since(created))
	return p, nil
}

// saveOnce saves a pod, restores another of it, and removes that and the checkpoint.
func (n *node) saveOnce(ctx context.Context, p *pod, name string, watch *stopwatch) (int64, error) {
	dir := n.path("saved")
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	if err := watch.time("checkpoint", func() error { return n.checkpoint(ctx, p, dir) }); err != nil {
		return 0, err
	}
	m, err := checkpoint.Read(dir)
	if err != nil {
		return 0, err
	}
	watch.add("paused", m.Paused)
	size, err := sizeOf(dir)
	if err != nil {
		return 0, err
	}
	var q *pod
	if err := watch.time("restore", func() (err error) { q, err = n.restore(ctx, p, dir, name); return err }); err != nil {
		return 0, err
	}
	return size, errors.Join(n.remove(ctx, q), os.RemoveAll(dir))
}

func (n *node) checkpoint(ctx context.Context, p *pod, dir string) error {
	_, err := n.pods.CheckpointPod(ctx, &runtime.CheckpointPodRequest{PodSandboxId: p.id, ContainerIds: p.containers, OutputPath: dir})
	return err
}

// restore makes another pod of a checkpoint of p, until an exec in each container succeeds.
func (n *node) restore(ctx context.Context, p *pod, dir, name string) (*pod, error) {
	q := n.newPod("restored-" + name)
	for _, c := range p.configs {
		c = proto.CloneOf(c)
		c.LogPath = q.config.Metadata.Name + "-" + c.Metadata.Name + ".log"
		q.configs = append(q.configs, c)
	}
	r, err := n.pods.RestorePod(ctx, &runtime.RestorePodRequest{CheckpointPath: dir, Config: q.config, ContainerConfigs: q.configs})
	if err != nil {
		return nil, err
	}
	q.id = r.PodSandboxId
	for _, c := range r.RestoredContainers {
		q.containers = append(q.containers, c.ContainerId)
		if _, err := n.pods.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			return nil, err
		}
	}
	for _, c := range q.containers {
		if err := n.execIn(ctx, c); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// clones restores many pods at once from one checkpoint, some times.
func (n *node) clones(ctx context.Context, pods, runs int) (ClonesReport, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, dir := ClonesReport{Pods: pods}, n.path("saved")
	p, err := n.sleeper(ctx, "cloned", 1)
	if err != nil {
		return r, err
	}
	if err := errors.Join(os.Mkdir(dir, 0o700), n.checkpoint(ctx, p, dir)); err != nil {
		return r, err
	}
	watch := newStopwatch()
	for i := range runs {
		made := make([]*pod, pods)
		err := watch.time("all", func() error {
			g, ctx := errgroup.WithContext(ctx)
			for j := range made {
				g.Go(func() error {
					return watch.time("each", func() (err error) {
						made[j], err = n.restore(ctx, p, dir, fmt.Sprintf("clone-%d-%d", i, j))
						return err
					})
				})
			}
			return g.Wait()
		})
		if err != nil {
			return r, err
		}
		for _, q := range made {
			if err := n.remove(ctx, q); err != nil {
				return r, err
			}
		}
	}
	r.Calls = watch.calls()
	return r, errors.Join(n.remove(ctx, p), os.RemoveAll(dir))
}

// saves measures runsc alone.
func (b *bare) saves(ctx context.Context, dir string, runs int) (Calls, error) {
	if err := b.run(ctx); err != nil {
		return nil, err
	}
	for b.step("exec", b.containerID, "test", "-e", "/ready")(ctx) != nil {
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
	watch := newStopwatch()
	for range runs {
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
			return nil, err
		}
		if err := watch.steps(ctx, []step{
			{"checkpoint", b.step("checkpoint", "--image-path", dir, "--leave-running", b.sandboxID)},
		}); err != nil {
			return nil, err
		}
	}
	if err := b.delete(ctx); err != nil {
		return nil, err
	}
	for range runs {
		err := watch.steps(ctx, []step{{"restore", func(ctx context.Context) error {
			return inTurn(ctx, b.step("create", "--bundle", b.sandbox, b.sandboxID),
				b.step("restore", "--detach", "--image-path", dir, "--bundle", b.sandbox, b.sandboxID),
				b.step("restore", "--detach", "--image-path", dir, "--bundle", b.container, b.containerID),
				b.step("exec", b.containerID, "true"))
		}}})
		if err := errors.Join(err, b.delete(ctx)); err != nil {
			return nil, err
		}
	}
	return watch.calls(), os.RemoveAll(dir)
}

// sizeOf is the size of the files in a directory.
func sizeOf(dir string) (size int64, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return 0, err
		}
		size += info.Size()
	}
	return size, err
}
