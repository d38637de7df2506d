//! What the snapshotter counts. The names are part of its interface: docs/node.md lists them, and they stay.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::Service;

use crate::daemon::Condition;
use crate::snapshots::Snapshotter;

/// What all names begin with.
const PREFIX: &str = "nydus_cluster_snapshotter";

/// Upper ends of the histogram of calls, in seconds: from a look at the database to an image that is mounted from afar.
const CALL_SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// The calls of the service, as their paths end and as they are named here: nobody makes others up.
const CALLS: [(&str, &str); 10] = [
    ("Prepare", "prepare"),
    ("View", "view"),
    ("Mounts", "mounts"),
    ("Commit", "commit"),
    ("Remove", "remove"),
    ("Stat", "stat"),
    ("Update", "update"),
    ("List", "list"),
    ("Usage", "usage"),
    ("Cleanup", "cleanup"),
];

type CallLabels = [(&'static str, &'static str); 1];
type OutcomeLabels = [(&'static str, &'static str); 2];

/// The calls of containerd.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    ended: Family<OutcomeLabels, Counter>,
    seconds: Family<CallLabels, Histogram, fn() -> Histogram>,
    /// All together.
    all: Arc<AtomicU64>,
}

impl Default for Calls {
    fn default() -> Self {
        let histogram = || Histogram::new(CALL_SECONDS);
        Self {
            ended: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            all: Arc::default(),
        }
    }
}

impl Calls {
    /// Calls that were answered so far.
    pub(crate) fn count(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    fn ended(&self, path: &str, code: Code, time: Duration) {
        self.all.fetch_add(1, Ordering::Relaxed);
        let name = path.rsplit('/').next().unwrap_or_default();
        let Some((_, call)) = CALLS.iter().find(|(of, _)| *of == name) else { return };
        self.ended.get_or_create(&[("call", call), ("code", word(code))]).inc();
        self.seconds.get_or_create(&[("call", call)]).observe(time.as_secs_f64());
    }
}

/// A code as gRPC's documentation writes it.
fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// A service whose calls are counted.
#[derive(Clone, Debug)]
pub(crate) struct Counted<S> {
    inner: S,
    calls: Calls,
}

impl<S> Counted<S> {
    pub(crate) fn new(inner: S, calls: Calls) -> Self {
        Self { inner, calls }
    }
}

impl<S, B, C> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<C>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (calls, path, begun) = (self.calls.clone(), request.uri().path().to_owned(), Instant::now());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            if let Ok(response) = &answer {
                // A call that failed says so in its headers; of one that did not the code comes at the end.
                let status = Status::from_header_map(response.headers());
                calls.ended(&path, status.map_or(Code::Ok, |status| status.code()), begun.elapsed());
            }
            answer
        })
    }
}

/// All of it, to be scraped.
pub(crate) fn registry(calls: &Calls, snapshotter: &Arc<Snapshotter>) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let help = "Calls of containerd that were answered, by call and gRPC code";
    registry.register("calls", help, calls.ended.clone());
    let help = "Time until a call was answered";
    registry.register_with_unit("call", help, Unit::Seconds, calls.seconds.clone());
    registry.register_collector(Box::new(Now(Arc::clone(snapshotter))));
    registry
}

/// What is asked for when it is scraped.
struct Now(Arc<Snapshotter>);

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Now").finish_non_exhaustive()
    }
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, value: u64| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let daemon = self.0.daemon();
        // A state that cannot be read is told of by those who need it.
        gauge("snapshots", "Snapshots that there are", self.0.count().unwrap_or_default())?;
        gauge("images_mounted", "Images that were mounted and not removed", self.0.images_mounted() as u64)?;
        let is_ready = matches!(daemon.condition(), Condition::Ready(_));
        gauge("daemon_ready", "Whether a daemon answers", is_ready.into())?;
        let help = "Mounts that outlive the daemon, as their descriptors are held";
        gauge("mounts_held", help, daemon.held_count() as u64)?;
        let found = ConstCounter::new(daemon.found_count());
        let help = "Daemons that were found or started, one after the other";
        found.encode(encoder.encode_descriptor("daemons", help, None, found.metric_type())?)
    }
}
