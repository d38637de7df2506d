//! The table: what each way of shipping the image took.

use std::fmt;

use serde::Serialize;

/// What one way took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    /// All layers in the registry.
    pub(crate) image_bytes: u64,
    /// What the registry sent for the pull.
    pub(crate) pull_bytes: u64,
    /// Of that, content of files: everything but manifests, configuration and bootstrap.
    pub(crate) pull_blob_bytes: u64,
    /// What the registry sent from the pull to the application's first answer.
    pub(crate) bytes_to_answer: u64,
    /// Seconds from the build's warm cache to the registry.
    pub(crate) export_s: f64,
    /// Seconds of the pull.
    pub(crate) pull_s: f64,
    /// Seconds of creating and starting the container.
    pub(crate) start_s: f64,
    /// Seconds from the beginning of the pull to the first answer.
    pub(crate) answer_s: f64,
}

/// Both ways.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// A nydus image, with our snapshotter.
    pub(crate) lazy: Figures,
    /// A gzip OCI image, with containerd's overlayfs.
    pub(crate) plain: Figures,
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| format!("{:.2} MB", bytes as f64 / 1e6);
        let seconds = |seconds: f64| format!("{seconds:.2} s");
        let (lazy, plain) = (&self.lazy, &self.plain);
        let rows = [
            ("image in the registry", megabytes(lazy.image_bytes), megabytes(plain.image_bytes)),
            ("fetched for the pull", megabytes(lazy.pull_bytes), megabytes(plain.pull_bytes)),
            ("  of that, files' content", megabytes(lazy.pull_blob_bytes), megabytes(plain.pull_blob_bytes)),
            ("fetched until the answer", megabytes(lazy.bytes_to_answer), megabytes(plain.bytes_to_answer)),
            ("export", seconds(lazy.export_s), seconds(plain.export_s)),
            ("pull", seconds(lazy.pull_s), seconds(plain.pull_s)),
            ("start", seconds(lazy.start_s), seconds(plain.start_s)),
            ("pull to first answer", seconds(lazy.answer_s), seconds(plain.answer_s)),
        ];
        writeln!(out, "{:<28}{:>16}{:>20}", "", "lazy (nydus)", "plain (overlayfs)")?;
        for (name, lazy, plain) in rows {
            writeln!(out, "{name:<28}{lazy:>16}{plain:>20}")?;
        }
        Ok(())
    }
}
