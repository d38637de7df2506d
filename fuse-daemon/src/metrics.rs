//! What the daemon counts. The names are part of its interface: docs/node.md lists them, and they stay.

mod sources;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use service::metrics::Scraped;

use crate::mounts::Table;
use sources::SourceMetrics;

/// What all names begin with.
const PREFIX: &str = "nydus_cluster_daemon";

/// Upper ends of the histogram of waits, in seconds: from a chunk that was just arriving to a read's deadline.
const WAIT_SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

type Labels = [(&'static str, &'static str); 1];

/// What the front counts.
#[derive(Debug)]
pub(crate) struct Counters {
    cached: Counter,
    waited: Counter,
    failed: Counter,
    wait: Histogram,
    chunks: Family<Labels, Counter>,
    bytes: Counter,
}

/// What became of a chunk that was ordered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chunk {
    /// It was verified, and is in the cache.
    Kept {
        /// Its size in bytes.
        bytes: u64,
    },
    /// It was verified, and there was no room for it.
    NotCached,
    /// It was not what its digest says, from one backend.
    Corrupt,
    /// It was given up while a reader waited for it.
    Failed,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            cached: Counter::default(),
            waited: Counter::default(),
            failed: Counter::default(),
            wait: Histogram::new(WAIT_SECONDS),
            chunks: Family::default(),
            bytes: Counter::default(),
        }
    }
}

impl Counters {
    /// The cache has answered a read.
    pub(crate) fn cached(&self) {
        self.cached.inc();
    }

    /// A read was answered after it had waited for chunks.
    pub(crate) fn waited(&self, time: Duration) {
        self.waited.inc();
        self.wait.observe(time.as_secs_f64());
    }

    /// A program was told of an error.
    pub(crate) fn failed(&self) {
        self.failed.inc();
    }

    /// A chunk that was ordered has come to its end, or to another backend.
    pub(crate) fn chunk(&self, outcome: Chunk) {
        let word = match outcome {
            Chunk::Kept { bytes } => {
                self.bytes.inc_by(bytes);
                "kept"
            }
            Chunk::NotCached => "not_cached",
            Chunk::Corrupt => "corrupt",
            Chunk::Failed => "failed",
        };
        self.chunks.get_or_create(&[("outcome", word)]).inc();
    }

    fn register(&self, registry: &mut Registry) {
        let help = "Reads that the cache answered";
        registry.register("reads_cached", help, self.cached.clone());
        let help = "Reads that waited for chunks";
        registry.register("reads_waited", help, self.waited.clone());
        let help = "Reads that programs were told an error of";
        registry.register("reads_failed", help, self.failed.clone());
        let help = "Time that a read waited for chunks";
        registry.register_with_unit("read_wait", help, Unit::Seconds, self.wait.clone());
        let help = "Chunks that were fetched, by outcome";
        registry.register("chunks", help, self.chunks.clone());
        let help = "Size of the chunks that were fetched and kept, uncompressed";
        registry.register_with_unit("chunk", help, Unit::Bytes, self.bytes.clone());
    }
}

/// All of it, to be scraped.
pub(crate) struct DaemonMetrics {
    registry: Registry,
    table: Arc<Table>,
    sources: SourceMetrics,
}

impl DaemonMetrics {
    /// What is counted of these mounts.
    pub(crate) fn new(table: Arc<Table>) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        table.engine().counters().register(&mut registry);
        registry.register_collector(Box::new(Now(Arc::clone(&table))));
        let sources = SourceMetrics::default();
        registry.register_collector(Box::new(sources.clone()));
        Self { registry, table, sources }
    }
}

impl Scraped for DaemonMetrics {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The worker alone talks to sources, and is asked for what it has counted.
    async fn refresh(&self) {
        self.sources.set(self.table.engine().worker().figures().await);
    }
}

/// What is asked for when it is scraped.
struct Now(Arc<Table>);

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Now").finish_non_exhaustive()
    }
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let engine = self.0.engine();
        let worker = engine.worker().condition();
        // A cache that cannot be read is told of by those who need it.
        let cached = engine.cache().list().unwrap_or_default();
        let bytes = cached.iter().map(|blob| blob.bytes).sum();
        let mut gauge = |name, help, unit, value: u64| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        gauge("mounts", "Images that are mounted", None, self.0.count() as u64)?;
        gauge("chunks_awaited", "Chunks that are on their way", None, engine.chunks_awaited() as u64)?;
        gauge("cached_blobs", "Blobs that the cache has chunks of", None, cached.len() as u64)?;
        gauge("cache", "What the cache takes on disk", Some(&Unit::Bytes), bytes)?;
        gauge("worker_ready", "Whether the process that fetches works", None, worker.pid.is_some().into())?;
        let restarts = ConstCounter::new(worker.restarts);
        let help = "How often a process that fetches took the place of another";
        restarts.encode(encoder.encode_descriptor("worker_restarts", help, None, restarts.metric_type())?)
    }
}
