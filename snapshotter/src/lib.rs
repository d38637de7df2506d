//! The containerd side: the snapshots service, its state, overlay mounts and the life of the daemon.
