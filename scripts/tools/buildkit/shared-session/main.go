// Command shared-session runs several builds at once in one session, as programs that use BuildKit's client as a library
// may do, and prints the digest of each image.
//
// usage: shared-session ADDRESS CONTEXT TARGET:OUTPUT…      OUTPUT: as for `buildctl build --output`
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: shared-session ADDRESS CONTEXT TARGET:OUTPUT…")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "shared-session:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, address, dir string, builds []string) error {
	c, err := client.New(ctx, address)
	if err != nil {
		return err
	}
	defer c.Close()
	files, err := fsutil.NewFS(dir)
	if err != nil {
		return err
	}
	shared, err := session.NewSession(ctx, "")
	if err != nil {
		return err
	}
	shared.Allow(filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": files, "dockerfile": files}))
	ended := make(chan error, 1)
	go func() { ended <- shared.Run(ctx, grpchijack.Dialer(c.ControlClient())) }()

	// One that fails does not end the others: whether it does is what is to be seen.
	var group errgroup.Group
	for _, build := range builds {
		group.Go(func() error { return solve(ctx, c, shared, build) })
	}
	err = group.Wait()
	return errors.Join(err, shared.Close(), <-ended)
}

func solve(ctx context.Context, c *client.Client, shared *session.Session, build string) error {
	target, output, found := strings.Cut(build, ":")
	if !found {
		return fmt.Errorf("%q is not TARGET:OUTPUT", build)
	}
	entry := client.ExportEntry{Attrs: map[string]string{}}
	for _, pair := range strings.Split(output, ",") {
		key, value, _ := strings.Cut(pair, "=")
		if key == "type" {
			entry.Type = value
		} else {
			entry.Attrs[key] = value
		}
	}
	answer, err := c.Solve(ctx, nil, client.SolveOpt{
		Exports:               []client.ExportEntry{entry},
		Frontend:              "dockerfile.v0",
		FrontendAttrs:         map[string]string{"target": target},
		SharedSession:         shared,
		SessionPreInitialized: true,
	}, nil)
	if err != nil {
		return fmt.Errorf("target %s: %w", target, err)
	}
	fmt.Println(target, answer.ExporterResponse["containerimage.digest"])
	return nil
}
