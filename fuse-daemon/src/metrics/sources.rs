//! What is counted of where blobs come from, by host: whoever looks after many nodes is told which registry does not answer.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::control::SourceState;
use crate::process::{SourceFigures, SourceHost};
use crate::worker::{ANSWER_MS, FailureCause, HostTotals};

/// What the worker said last, in the order in which hosts came to be known.
#[derive(Clone, Debug, Default)]
pub(super) struct SourceMetrics(Arc<Mutex<Vec<SourceFigures>>>);

impl SourceMetrics {
    /// Tells this from now on.
    pub(super) fn set(&self, figures: Vec<SourceFigures>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }
}

/// Labels of a host, and one more.
type HostLabels<'a> = Vec<(&'static str, &'a str)>;

fn labels<'a>(host: &'a SourceHost, more: Option<(&'static str, &'a str)>) -> HostLabels<'a> {
    [("kind", host.kind), ("host", host.name.as_str())].into_iter().chain(more).collect()
}

impl Collector for SourceMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        states(&mut encoder, &all)?;
        let help = "Requests to sources of blobs";
        counter(&mut encoder, "source_requests", help, None, &all, |totals| totals.requests)?;
        let help = "Requests to sources of blobs that clients sent again";
        counter(&mut encoder, "source_retries", help, None, &all, |totals| totals.retries)?;
        let help = "Bytes of blobs that came from sources";
        counter(&mut encoder, "source", help, Some(&Unit::Bytes), &all, |totals| totals.bytes)?;
        failures(&mut encoder, &all)?;
        let help =
            "How often sources refused credentials, or that there were none, so that others were looked for";
        let mut family =
            encoder.encode_descriptor("source_credentials_refused", help, None, MetricType::Counter)?;
        for SourceFigures { count, .. } in &all {
            ConstCounter::new(count.refused).encode(family.encode_family(&labels(&count.host, None))?)?;
        }
        answers(&mut encoder, &all)
    }
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    all: &[SourceFigures],
    value: impl Fn(&HostTotals) -> u64,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
    for SourceFigures { count, .. } in all {
        let value = ConstCounter::new(value(&count.totals));
        value.encode(family.encode_family(&labels(&count.host, None))?)?;
    }
    Ok(())
}

fn states(encoder: &mut DescriptorEncoder<'_>, all: &[SourceFigures]) -> fmt::Result {
    let help = "Sources that blobs of mounts are read from, by how they answer";
    let mut family = encoder.encode_descriptor("sources", help, None, MetricType::Gauge)?;
    for SourceFigures { count, states } in all {
        for state in SourceState::ALL {
            let number = states.iter().filter(|other| **other == state).count();
            let gauge = ConstGauge::new(i64::try_from(number).unwrap_or(i64::MAX));
            let word = state.to_string();
            gauge.encode(family.encode_family(&labels(&count.host, Some(("state", &word))))?)?;
        }
    }
    Ok(())
}

fn failures(encoder: &mut DescriptorEncoder<'_>, all: &[SourceFigures]) -> fmt::Result {
    let help = "Requests to sources of blobs that failed, by cause";
    let mut family = encoder.encode_descriptor("source_failures", help, None, MetricType::Counter)?;
    for SourceFigures { count, .. } in all {
        for (cause, number) in FailureCause::ALL.into_iter().zip(count.totals.failures) {
            let labels = labels(&count.host, Some(("cause", cause.word())));
            ConstCounter::new(number).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn answers(encoder: &mut DescriptorEncoder<'_>, all: &[SourceFigures]) -> fmt::Result {
    let help = "Time from a request to a source of blobs until its first bytes came";
    let unit = Some(&Unit::Seconds);
    let mut family = encoder.encode_descriptor("source_answer", help, unit, MetricType::Histogram)?;
    for SourceFigures { count, .. } in all {
        let HostTotals { answers, answer_us, .. } = &count.totals;
        let seconds = ANSWER_MS.iter().map(|ms| *ms as f64 / 1e3).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = seconds.zip(answers.iter().copied()).collect();
        let number = answers.iter().fold(0, |sum: u64, bucket| sum.saturating_add(*bucket));
        let labels = labels(&count.host, None);
        let mut histogram = family.encode_family(&labels)?;
        histogram.encode_histogram::<NoLabelSet>(*answer_us as f64 / 1e6, number, &buckets, None)?;
    }
    Ok(())
}
