package cri

import (
	"time"

	"github.com/runscd/runscd/internal/pod"
	"github.com/runscd/runscd/internal/stats"
)

// seconds divides the host's and the sandbox's microseconds into seconds. The CRI has whole
// numbers only.
const seconds = 1_000_000

var generalSeries = []series{
	{
		name: "container_last_seen", help: "Last time a container was seen by the exporter", kind: gauge,
		pod:       func(s *pod.Stats) []sample { return moment(s.At) },
		container: func(s *pod.ContainerStats) []sample { return moment(s.AskedAt) },
	},
	{
		name: "container_creation_time_seconds", help: "Container creation time since unix epoch in seconds.", kind: gauge,
		pod:       func(s *pod.Stats) []sample { return moment(s.Pod.Facts().CreatedAt) },
		container: func(s *pod.ContainerStats) []sample { return moment(s.Facts().CreatedAt) },
	},
	{
		name: "container_start_time_seconds", help: "Start time of the container since unix epoch in seconds.", kind: gauge,
		pod:       func(s *pod.Stats) []sample { return moment(s.Pod.Facts().CreatedAt) },
		container: func(s *pod.ContainerStats) []sample { return moment(s.Facts().StartedAt) },
	},
	{
		name: "container_oom_events_total", help: "Count of out of memory events observed for the container", kind: counter,
		pod: host("memory.events.oom_kill", 1),
	},
}

var cpuSeries = []series{
	{
		name: "container_cpu_usage_seconds_total", help: "Cumulative cpu time consumed in seconds.", kind: counter, labels: []string{"cpu"},
		pod:       host("cpu.stat.usage_usec", seconds, "total"),
		container: told(func(s *pod.ContainerStats) uint64 { return s.CPU.Total() / seconds }, "total"),
	},
	{
		name: "container_cpu_user_seconds_total", help: "Cumulative user cpu time consumed in seconds.", kind: counter,
		pod:       host("cpu.stat.user_usec", seconds),
		container: told(func(s *pod.ContainerStats) uint64 { return s.CPU.User / seconds }),
	},
	{
		name: "container_cpu_system_seconds_total", help: "Cumulative system cpu time consumed in seconds.", kind: counter,
		pod:       host("cpu.stat.system_usec", seconds),
		container: told(func(s *pod.ContainerStats) uint64 { return s.CPU.System / seconds }),
	},
	{
		name: "container_cpu_cfs_periods_total", help: "Number of elapsed enforcement period intervals.", kind: counter,
		pod: host("cpu.stat.nr_periods", 1),
	},
	{
		name: "container_cpu_cfs_throttled_periods_total", help: "Number of throttled period intervals.", kind: counter,
		pod: host("cpu.stat.nr_throttled", 1),
	},
	{
		name: "container_cpu_cfs_throttled_seconds_total", help: "Total time duration the container has been throttled.", kind: counter,
		pod: host("cpu.stat.throttled_usec", seconds),
	},
}

var memorySeries = []series{
	{
		name: "container_memory_usage_bytes", help: "Current memory usage in bytes, including all memory regardless of when it was accessed", kind: gauge,
		pod:       host("memory.current", 1),
		container: told(func(s *pod.ContainerStats) uint64 { return s.Usage.Memory }),
	},
	{
		name: "container_memory_working_set_bytes", help: "Current working set in bytes.", kind: gauge,
		pod:       func(s *pod.Stats) []sample { return one(s.Host.WorkingSet()) },
		container: told(func(s *pod.ContainerStats) uint64 { return s.Usage.Memory }),
	},
	{
		name: "container_memory_rss", help: "Size of RSS in bytes.", kind: gauge,
		pod: func(s *pod.Stats) []sample { return one(s.Host.RSS()) },
	},
	{name: "container_memory_cache", help: "Number of bytes of page cache memory.", kind: gauge, pod: host("memory.stat.file", 1)},
	{name: "container_memory_mapped_file", help: "Size of memory mapped files in bytes.", kind: gauge, pod: host("memory.stat.file_mapped", 1)},
	{name: "container_memory_total_active_file_bytes", help: "Current total active file in bytes.", kind: gauge, pod: host("memory.stat.active_file", 1)},
	{name: "container_memory_total_inactive_file_bytes", help: "Current total inactive file in bytes.", kind: gauge, pod: host("memory.stat.inactive_file", 1)},
	{
		name: "container_memory_file_dirty_bytes", kind: gauge, pod: host("memory.stat.file_dirty", 1),
		help: "Number of bytes of file cache that has been modified but not yet written back to disk.",
	},
	{
		name: "container_memory_file_writeback_bytes", kind: gauge, pod: host("memory.stat.file_writeback", 1),
		help: "Number of bytes of file cache that is currently being written back to disk.",
	},
	{name: "container_memory_kernel_usage", help: "Size of kernel memory allocated in bytes.", kind: gauge, pod: host("memory.stat.kernel", 1)},
	{name: "container_memory_swap", help: "Container swap usage in bytes.", kind: gauge, pod: host("memory.swap.current", 1)},
	{name: "container_memory_max_usage_bytes", help: "Maximum memory usage recorded in bytes", kind: gauge, pod: host("memory.peak", 1)},
	{name: "container_memory_failcnt", help: "Number of memory usage hits limits", kind: counter, pod: host("memory.events.max", 1)},
	{
		name: "container_memory_failures_total", help: "Cumulative count of memory allocation failures.", kind: counter,
		labels: []string{"failure_type", "scope"}, pod: memoryFailures,
	},
	{
		name: "container_memory_events_high_total", kind: counter, pod: host("memory.events.high", 1),
		help: "Cumulative count of memory.high throttle events for the container",
	},
	{
		name: "container_memory_events_max_total", kind: counter, pod: host("memory.events.max", 1),
		help: "Cumulative count of memory.max limit hit events for the container",
	},
	{
		name: "container_memory_pgscan_total", kind: counter, pod: host("memory.stat.pgscan", 1),
		help: "Cumulative number of pages scanned by the page reclaim algorithm.",
	},
	{
		name: "container_memory_pgsteal_total", kind: counter, pod: host("memory.stat.pgsteal", 1),
		help: "Cumulative number of pages reclaimed by the page reclaim algorithm.",
	},
	{
		name: "container_memory_workingset_refault_file_total", kind: counter, pod: host("memory.stat.workingset_refault_file", 1),
		help: "Cumulative number of refaults of previously evicted file pages.",
	},
	{
		name: "container_memory_workingset_refault_anon_total", kind: counter, pod: host("memory.stat.workingset_refault_anon", 1),
		help: "Cumulative number of refaults of previously evicted anonymous pages.",
	},
}

// memoryFailures are the page faults. The sandbox's cgroup has none below it.
func memoryFailures(s *pod.Stats) (list []sample) {
	for _, kind := range []string{"pgfault", "pgmajfault"} {
		for _, scope := range []string{"container", "hierarchy"} {
			list = append(list, host("memory.stat."+kind, 1, kind, scope)(s)...)
		}
	}
	return list
}

var pressureSeries = []series{
	stalled("cpu", "stalled", "Total time duration no tasks in the container could make progress due to CPU congestion."),
	stalled("cpu", "waiting", "Total time duration tasks in the container have waited due to CPU congestion."),
	stalled("memory", "stalled", "Total time duration no tasks in the container could make progress due to memory congestion."),
	stalled("memory", "waiting", "Total time duration tasks in the container have waited due to memory congestion."),
	stalled("io", "stalled", "Total time duration no tasks in the container could make progress due to IO congestion."),
	stalled("io", "waiting", "Total time duration tasks in the container have waited due to IO congestion."),
}

func stalled(resource, what, help string) series {
	return series{
		name: "container_pressure_" + resource + "_" + what + "_seconds_total", help: help, kind: counter,
		pod: func(s *pod.Stats) []sample {
			p := s.Pressure[resource]
			switch {
			case p == nil:
				return nil
			case what == "stalled":
				return one(p.Full.Total / seconds)
			}
			return one(p.Some.Total / seconds)
		},
	}
}

var networkSeries = []series{
	traffic("receive_bytes", "Cumulative count of bytes received", func(i stats.Interface) uint64 { return i.Rx.Bytes }),
	traffic("receive_packets", "Cumulative count of packets received", func(i stats.Interface) uint64 { return i.Rx.Packets }),
	traffic("receive_packets_dropped", "Cumulative count of packets dropped while receiving", func(i stats.Interface) uint64 { return i.Rx.Dropped }),
	traffic("receive_errors", "Cumulative count of errors encountered while receiving", func(i stats.Interface) uint64 { return i.Rx.Errors }),
	traffic("transmit_bytes", "Cumulative count of bytes transmitted", func(i stats.Interface) uint64 { return i.Tx.Bytes }),
	traffic("transmit_packets", "Cumulative count of packets transmitted", func(i stats.Interface) uint64 { return i.Tx.Packets }),
	traffic("transmit_packets_dropped", "Cumulative count of packets dropped while transmitting", func(i stats.Interface) uint64 { return i.Tx.Dropped }),
	traffic("transmit_errors", "Cumulative count of errors encountered while transmitting", func(i stats.Interface) uint64 { return i.Tx.Errors }),
}

func traffic(what, help string, count func(stats.Interface) uint64) series {
	return series{
		name: "container_network_" + what + "_total", help: help, kind: counter, labels: []string{"interface"},
		pod: func(s *pod.Stats) (list []sample) {
			for _, i := range s.Interfaces {
				list = append(list, sample{value: count(i), labels: []string{i.Name}})
			}
			return list
		},
	}
}

var processSeries = []series{
	{
		name: "container_processes", help: "Number of processes running inside the container.", kind: gauge,
		container: told(func(s *pod.ContainerStats) uint64 { return s.Usage.Processes }),
	},
	{
		name: "container_threads", help: "Number of threads running inside the container", kind: gauge,
		container: told(func(s *pod.ContainerStats) uint64 { return s.Usage.Threads }),
	},
}

// specSeries are what the configuration says, but for the memory of a pod, which
// the kubelet may change behind it. A limit of 0 is none.
var specSeries = []series{
	asked("cpu_period", "CPU period of the container.", func(c *pod.ContainerStats) int64 { return c.Resources().GetCpuPeriod() }),
	{
		name: "container_spec_cpu_quota", help: "CPU quota of the container.", kind: gauge,
		container: func(s *pod.ContainerStats) []sample {
			if quota := s.Resources().GetCpuQuota(); quota > 0 {
				return one(uint64(quota))
			}
			return nil
		},
	},
	asked("cpu_shares", "CPU share of the container.", func(c *pod.ContainerStats) int64 { return c.Resources().GetCpuShares() }),
	{
		name: "container_spec_memory_limit_bytes", help: "Memory limit for the container.", kind: gauge,
		pod: func(s *pod.Stats) []sample { return one(s.Limit) },
		container: func(s *pod.ContainerStats) []sample {
			return one(uint64(s.Resources().GetMemoryLimitInBytes()))
		},
	},
}

func asked(what, help string, of func(*pod.ContainerStats) int64) series {
	return series{
		name: "container_spec_" + what, help: help, kind: gauge,
		container: func(s *pod.ContainerStats) []sample { return one(uint64(of(s))) },
	}
}

func diskSeries(disk *stats.FileSystem) []series {
	of := func(v func(*pod.ContainerStats) uint64) func(*pod.ContainerStats) []sample {
		return func(s *pod.ContainerStats) []sample {
			if disk == nil || s.LayerAt.IsZero() {
				return nil
			}
			return []sample{{value: v(s), labels: []string{disk.Device}}}
		}
	}
	device := []string{"device"}
	return []series{
		{
			name: "container_fs_usage_bytes", help: "Number of bytes that are consumed by the container on this filesystem.", kind: gauge, labels: device,
			container: of(func(s *pod.ContainerStats) uint64 { return s.Layer.Bytes }),
		},
		{
			name: "container_fs_limit_bytes", help: "Number of bytes that can be consumed by the container on this filesystem.", kind: gauge, labels: device,
			container: of(func(*pod.ContainerStats) uint64 { return disk.Bytes }),
		},
		{
			name: "container_fs_inodes_total", help: "Number of Inodes", kind: gauge, labels: device,
			container: of(func(*pod.ContainerStats) uint64 { return disk.Inodes }),
		},
		{
			name: "container_fs_inodes_free", help: "Number of available Inodes", kind: gauge, labels: device,
			container: of(func(*pod.ContainerStats) uint64 { return disk.InodeFree }),
		},
	}
}

func one(v uint64) []sample { return []sample{{value: v}} }

// moment is a time in seconds of Unix; there is none that is zero.
func moment(t time.Time) []sample {
	if t.IsZero() {
		return nil
	}
	return one(uint64(t.Unix()))
}
