package cri

import (
	"strings"
	"time"
)

// partSize is how many objects one message of a streamed list has. With the
// most of labels and annotations each, they stay below the message limit.
const partSize = 7

// inParts sends a list in parts, none of them empty.
func inParts[T any](items []T, send func([]T) error) error {
	for len(items) > 0 {
		n := min(partSize, len(items))
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// idMatches tells whether an id begins as the filter says.
func idMatches(filter, id string) bool { return strings.HasPrefix(id, filter) }

// labelsMatch tells whether all labels of the selector are there.
func labelsMatch(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func now() int64 { return time.Now().UnixNano() }
