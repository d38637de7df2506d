//! The embedded registry's access log: one JSON object a line for each request answered.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

/// One request as the registry saw it.
#[derive(Debug, Clone, Deserialize)]
pub struct Request {
    /// HTTP method.
    pub method: String,
    /// Path, without the query: the log has that apart.
    pub path: String,
    /// Status answered.
    pub status: u16,
    /// The `Range` header, if there was one.
    pub range: Option<String>,
    /// Bytes of body that were sent.
    pub bytes_sent: u64,
    /// Bytes of body that were received.
    #[serde(default)]
    pub bytes_received: u64,
}

impl Request {
    /// Whether it reads a blob with this digest (`sha256:…`).
    pub fn reads_blob(&self, digest: &str) -> bool {
        self.method == "GET" && self.blob() == Some(digest)
    }

    /// The digest of the blob that it is for.
    pub fn blob(&self) -> Option<&str> {
        self.path.rsplit_once("/blobs/").map(|(_, digest)| digest)
    }
}

/// The log file, and how far it has been read.
#[derive(Debug)]
pub struct AccessLog {
    path: PathBuf,
}

/// A place in the log: requests after it are those made since. The default is the log's begin.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mark(usize);

impl AccessLog {
    /// The log at `path`; it need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The present end of the log.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(self.text()?.len()))
    }

    /// Requests logged since `mark`.
    pub fn since(&self, mark: Mark) -> Result<Vec<Request>> {
        let text = self.text()?;
        let new = &text[mark.0.min(text.len())..];
        // The last line may be half-written.
        let whole = new.rfind('\n').map_or("", |end| &new[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("access log line: {line}")))
            .collect()
    }

    fn text(&self) -> Result<String> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error).with_context(|| format!("reading {}", self.path.display())),
        }
    }
}

/// Bytes sent for all of `requests`.
pub fn bytes_sent(requests: &[Request]) -> u64 {
    requests.iter().map(|request| request.bytes_sent).sum()
}
