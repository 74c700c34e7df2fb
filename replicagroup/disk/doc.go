// Package disk keeps replicas on disk: it implements [latchkey/replicagroup.Store] on one Pebble database per peer.
package disk

import _ "github.com/cockroachdb/pebble/v2"
