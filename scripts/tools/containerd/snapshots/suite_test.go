// Package snapshots runs containerd's own test suite for snapshotters against one that listens on a Unix socket.
package snapshots

import (
	"context"
	"os"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Names the socket.
const address = "SNAPSHOTTER_ADDRESS"

// Under any other name the suite renames a directory of a lower layer, which overlayfs refuses with EXDEV.
const name = "overlayfs"

func TestSnapshotter(t *testing.T) {
	socket := os.Getenv(address)
	if socket == "" {
		t.Fatalf("%s has to name the snapshotter's socket", address)
	}
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	// After the tests, which are parallel: they begin when this function ends.
	t.Cleanup(func() { connection.Close() })
	client := proxy.NewSnapshotter(api.NewSnapshotsClient(connection), name)
	testsuite.SnapshotterSuite(t, name, func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		return client, func() error { return nil }, nil
	})
}
