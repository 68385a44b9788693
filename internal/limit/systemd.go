package limit

import (
	"context"
	"fmt"
	"math"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"k8s.io/utils/cpuset"
)

// setUnit tells systemd the limits of a unit. It sets them by itself, perhaps
// later.
func setUnit(ctx context.Context, unit string, l Limits) error {
	properties, err := l.properties()
	if err != nil {
		return err
	}
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("systemd: %w", err)
	}
	defer conn.Close()
	if err := conn.SetUnitPropertiesContext(ctx, unit, true, properties...); err != nil {
		return fmt.Errorf("systemd unit %s: %w", unit, err)
	}
	return nil
}

// properties are the limits in systemd's words, see systemd.resource-control(5).
func (l Limits) properties() ([]dbus.Property, error) {
	const none = uint64(math.MaxUint64)
	perSecond, period := none, uint64(defaultPeriod)
	if l.Quota > 0 {
		// systemd knows whole percents, and must not have less than we set.
		const percent = 10_000
		period = uint64(l.Period)
		perSecond = (uint64(l.Quota)*1_000_000/period + percent - 1) / percent * percent
	}
	properties := []dbus.Property{
		property("CPUWeight", l.Weight()),
		property("CPUQuotaPeriodUSec", period),
		property("CPUQuotaPerSecUSec", perSecond),
	}
	for _, size := range []struct {
		property, name string
		unset          uint64
	}{
		{"MemoryMin", "memory.min", 0},
		{"MemoryLow", "memory.low", 0},
		{"MemoryHigh", "memory.high", none},
		{"MemoryMax", "memory.max", none},
		{"MemorySwapMax", swapMax, none},
	} {
		value := size.unset
		if !l.unlimited(size.name) {
			value = uint64(l.Sizes[size.name])
		}
		properties = append(properties, property(size.property, value))
	}
	for _, set := range []struct{ property, list string }{{"AllowedCPUs", l.CPUs}, {"AllowedMemoryNodes", l.Mems}} {
		bits, err := bitmap(set.list)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", set.property, set.list, err)
		}
		properties = append(properties, property(set.property, bits))
	}
	return properties, nil
}

func property(name string, value any) dbus.Property {
	return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
}

// bitmap is a list of numbers as a set of bits, the lowest first.
func bitmap(list string) ([]byte, error) {
	set, err := cpuset.Parse(list)
	if err != nil {
		return nil, err
	}
	bits := []byte{}
	for _, n := range set.List() { // in their order
		for len(bits) <= n/8 {
			bits = append(bits, 0)
		}
		bits[n/8] |= 1 << (n % 8)
	}
	return bits, nil
}
