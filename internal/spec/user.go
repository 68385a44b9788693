package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	passwd "github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxDatabase is how much is read of an image's user database, in bytes.
const maxDatabase = 4 << 20

// runAs returns whom a container runs as: what the configuration says, else what
// the image says, which is user[:group], by name or number. Names are looked up
// in the rootfs.
func runAs(security *runtime.LinuxContainerSecurityContext, image, rootfs string) (specs.User, error) {
	who, group, err := whom(security, image)
	if err != nil {
		return specs.User{}, err
	}
	users, err := readInRoot(rootfs, "etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	groups, err := readInRoot(rootfs, "etc/group")
	if err != nil {
		return specs.User{}, err
	}
	u, err := lookUp(who, group, users, groups)
	if err != nil {
		return specs.User{}, err
	}
	if security.GetSupplementalGroupsPolicy() == runtime.SupplementalGroupsPolicy_Strict {
		u.AdditionalGids = nil
	}
	for i, gid := range security.GetSupplementalGroups() {
		id, err := number(fmt.Sprintf("supplemental_groups[%d]", i), gid)
		if err != nil {
			return specs.User{}, err
		}
		u.AdditionalGids = append(u.AdditionalGids, id)
	}
	// The kernel checks the list for files, not only the group itself; without
	// it, a user could lose a group's denial by changing to another group.
	u.AdditionalGids = append(u.AdditionalGids, u.GID)
	slices.Sort(u.AdditionalGids)
	u.AdditionalGids = slices.Compact(u.AdditionalGids)
	return u, nil
}

// whom returns the name or number of the user and of the group, which may be
// empty.
func whom(security *runtime.LinuxContainerSecurityContext, image string) (who, group string, err error) {
	uid, name, gid := security.GetRunAsUser(), security.GetRunAsUsername(), security.GetRunAsGroup()
	switch {
	case uid != nil && name != "":
		return "", "", fmt.Errorf("run_as_user and run_as_username %q: %w", name, errdefs.ErrInvalidArgument)
	case uid != nil:
		if _, err := number("run_as_user", uid.GetValue()); err != nil {
			return "", "", err
		}
		who = strconv.FormatInt(uid.GetValue(), 10)
	case name != "":
		who = name
	case gid != nil:
		return "", "", fmt.Errorf("run_as_group %d without run_as_user: %w", gid.GetValue(), errdefs.ErrInvalidArgument)
	default:
		who, group, _ = strings.Cut(image, ":")
	}
	if gid != nil {
		if _, err := number("run_as_group", gid.GetValue()); err != nil {
			return "", "", err
		}
		group = strconv.FormatInt(gid.GetValue(), 10)
	}
	if who == "" {
		who = "0"
	}
	return who, group, nil
}

// number checks an ID of the configuration.
func number(field string, id int64) (uint32, error) {
	if id < 0 || id > math.MaxInt32 {
		return 0, fmt.Errorf("%s %d: %w", field, id, errdefs.ErrInvalidArgument)
	}
	return uint32(id), nil
}

// lookUp finds a user and its groups in the contents of a passwd and a group
// file. Numbers need not be there.
func lookUp(who, group string, users, groups []byte) (specs.User, error) {
	uid, numeric := id(who)
	entries, err := passwd.ParsePasswdFilter(bytes.NewReader(users), func(u passwd.User) bool {
		return numeric && u.Uid == uid || !numeric && u.Name == who
	})
	if err != nil {
		return specs.User{}, fmt.Errorf("/etc/passwd of the image: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	name, gid := "", 0
	if len(entries) > 0 {
		name, uid, gid = entries[0].Name, entries[0].Uid, entries[0].Gid
	} else if !numeric {
		return specs.User{}, fmt.Errorf("user %q is not in the image: %w", who, errdefs.ErrInvalidArgument)
	}

	explicit, numeric := id(group)
	entry := -1
	var member []uint32
	if _, err := passwd.ParseGroupFilter(bytes.NewReader(groups), func(g passwd.Group) bool {
		if entry < 0 && g.Name == group {
			entry = g.Gid
		}
		if name != "" && slices.Contains(g.List, name) && valid(g.Gid) {
			member = append(member, uint32(g.Gid))
		}
		return false
	}); err != nil {
		return specs.User{}, fmt.Errorf("/etc/group of the image: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch {
	case group == "":
	case numeric:
		gid = explicit
	case entry < 0:
		return specs.User{}, fmt.Errorf("group %q is not in the image: %w", group, errdefs.ErrInvalidArgument)
	default:
		gid = entry
	}
	if !valid(uid) || !valid(gid) {
		return specs.User{}, fmt.Errorf("user %q of the image has the ids %d:%d: %w", who, uid, gid, errdefs.ErrInvalidArgument)
	}
	return specs.User{UID: uint32(uid), GID: uint32(gid), AdditionalGids: member}, nil
}

// id returns the number that a user or group is given by. What is not a number
// is a name.
func id(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil
}

func valid(id int) bool { return id >= 0 && id <= math.MaxInt32 }

// readInRoot reads a file of an image, following links inside the rootfs only.
// A file that is not there is empty.
func readInRoot(rootfs, name string) ([]byte, error) {
	handle, err := pathrs.OpenInRoot(rootfs, name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s of the image: %w", name, err)
	}
	defer handle.Close()
	// The handle cannot read: to open a device or a FIFO could do anything.
	info, err := handle.Stat()
	if err != nil {
		return nil, fmt.Errorf("%s of the image: %w", name, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxDatabase {
		return nil, fmt.Errorf("%s of the image: %s of %d bytes: %w", name, info.Mode(), info.Size(), errdefs.ErrInvalidArgument)
	}
	f, err := pathrs.Reopen(handle, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("%s of the image: %w", name, err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxDatabase))
}
