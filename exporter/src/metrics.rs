//! What the exporter counts. The names are part of its interface: docs/build.md lists them, and they stay.

use std::sync::Arc;

use image::destination::SpoolSpace;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// What all names begin with.
const PREFIX: &str = "nydus_cluster_exporter";

/// Upper ends of the histogram of builds, in seconds: from a rebuild to a large image over a slow line.
const BUILD_SECONDS: [f64; 10] = [0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

type Labels = [(&'static str, &'static str); 1];

/// How a build ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// The image is where it belongs.
    Done,
    /// It is not; the client was told why.
    Failed,
    /// The client did not want it any more.
    Cancelled,
}

impl Outcome {
    /// The word for it, in metrics and in the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    builds: Family<Labels, Counter>,
    running: Gauge,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    layers: Family<Labels, Counter>,
    bytes: Counter,
    clients: Gauge,
}

/// What is counted of one build in the end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Layers of all its outputs.
    pub(crate) layers: u64,
    /// Those that were converted for it.
    pub(crate) converted: u64,
    /// Bytes of the blobs that those became.
    pub(crate) bytes: u64,
}

impl Tally {
    /// Both together.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            layers: self.layers + other.layers,
            converted: self.converted + other.converted,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            builds: Family::default(),
            running: Gauge::default(),
            seconds: Family::new_with_constructor(histogram),
            layers: Family::default(),
            bytes: Counter::default(),
            clients: Gauge::default(),
        }
    }
}

impl Metrics {
    /// All of it, to be scraped; `space` is where blobs of which it is not known yet whose they are lie.
    pub(crate) fn registry(&self, space: &Arc<SpoolSpace>) -> Registry {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register(
            "builds",
            "Builds with an image of ours that have ended, by outcome",
            self.builds.clone(),
        );
        registry.register("builds_running", "Builds with an image of ours under way", self.running.clone());
        let help = "Time from a build's request to its answer, by outcome";
        registry.register_with_unit("build", help, Unit::Seconds, self.seconds.clone());
        registry.register(
            "layers",
            "Layers of images, by whether they were converted or known",
            self.layers.clone(),
        );
        let help = "Size of the blobs that converted layers became";
        registry.register_with_unit("blob", help, Unit::Bytes, self.bytes.clone());
        registry.register("clients", "Connections of BuildKit clients", self.clients.clone());
        registry.register_collector(Box::new(Room(Arc::clone(space))));
        registry
    }

    /// A client that is connected until the result is dropped.
    pub(crate) fn client(&self) -> Counted {
        Counted::of(&self.clients)
    }

    /// A build that is under way until the result is dropped.
    pub(crate) fn build(&self) -> Counted {
        Counted::of(&self.running)
    }

    /// A build has ended.
    pub(crate) fn ended(&self, outcome: Outcome, seconds: f64, tally: Tally) {
        let labels = [("outcome", outcome.as_str())];
        self.builds.get_or_create(&labels).inc();
        self.seconds.get_or_create(&labels).observe(seconds);
        self.layers.get_or_create(&[("way", "converted")]).inc_by(tally.converted);
        self.layers.get_or_create(&[("way", "known")]).inc_by(tally.layers.saturating_sub(tally.converted));
        self.bytes.inc_by(tally.bytes);
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUILD_SECONDS)
}

/// One of what a gauge counts.
#[derive(Debug)]
pub(crate) struct Counted(Gauge);

impl Counted {
    fn of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The room left for blobs made ahead, asked for when it is scraped.
#[derive(Debug)]
struct Room(Arc<SpoolSpace>);

impl Collector for Room {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let room = ConstGauge::new(i64::try_from(self.0.left()).unwrap_or(i64::MAX));
        let help = "What is left of ahead_bytes for layers that buildkitd still writes";
        let encoder =
            encoder.encode_descriptor("ahead_free", help, Some(&Unit::Bytes), room.metric_type())?;
        room.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_in_the_documentation_are_those_that_are_scraped() {
        let metrics = Metrics::default();
        let build = metrics.build();
        metrics.ended(Outcome::Done, 1.5, Tally { layers: 3, converted: 2, bytes: 1000 });
        let mut text = String::new();
        let space = SpoolSpace::new(std::path::Path::new("/nowhere"), 7);
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry(&space)).unwrap();
        let documented = include_str!("../../docs/build.md");
        for line in [
            "nydus_cluster_exporter_builds_total{outcome=\"done\"} 1",
            "nydus_cluster_exporter_builds_running 1",
            "nydus_cluster_exporter_build_seconds_sum{outcome=\"done\"} 1.5",
            "nydus_cluster_exporter_layers_total{way=\"converted\"} 2",
            "nydus_cluster_exporter_layers_total{way=\"known\"} 1",
            "nydus_cluster_exporter_blob_bytes_total 1000",
            "nydus_cluster_exporter_clients 0",
            "nydus_cluster_exporter_ahead_free_bytes 7",
        ] {
            assert!(text.contains(line), "{line} in {text}");
            let name = line.split(['{', ' ']).next().unwrap().trim_end_matches("_sum");
            assert!(documented.contains(&format!("`{name}`")), "docs/build.md does not tell of {name}");
        }
        drop(build);
        assert_eq!(metrics.running.get(), 0);
    }
}
