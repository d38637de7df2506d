//! Between messages and our types.

use std::collections::HashMap;

use containerd_client::types;
use prost_types::Timestamp as WireTimestamp;

use super::api::messages::{Info, Kind as WireKind, UpdateSnapshotRequest};
use crate::error::Error;
use crate::overlay::Mount;
use crate::state::{Kind, LabelUpdate, Labels, Record, Timestamp};

/// A parent; none is an empty name.
pub(super) fn parent(name: String) -> Option<String> {
    if name.is_empty() { None } else { Some(name) }
}

/// Labels in order.
pub(super) fn labels(labels: HashMap<String, String>) -> Labels {
    labels.into_iter().collect()
}

/// Mounts as messages.
pub(super) fn mounts(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let mount = |Mount { kind, source, options }| types::Mount {
        r#type: String::from(kind),
        source,
        target: String::new(),
        options,
    };
    mounts.into_iter().map(mount).collect()
}

/// A snapshot as a message.
pub(super) fn info(key: String, record: Record) -> Info {
    let kind = match record.kind {
        Kind::View => WireKind::View,
        Kind::Active => WireKind::Active,
        Kind::Committed => WireKind::Committed,
    };
    Info {
        name: key,
        parent: record.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(timestamp(record.created)),
        updated_at: Some(timestamp(record.updated)),
        labels: record.labels.into_iter().collect(),
    }
}

fn timestamp(time: Timestamp) -> WireTimestamp {
    WireTimestamp { seconds: time.seconds, nanos: time.nanoseconds }
}

/// Which snapshot an update concerns and what it changes: `labels`, some `labels.<name>`, or, without a mask, all that
/// can change, which is the labels.
pub(super) fn label_update(request: UpdateSnapshotRequest) -> Result<(String, LabelUpdate), Error> {
    let Info { name: key, labels: given, .. } = request.info.unwrap_or_default();
    let paths = request.update_mask.unwrap_or_default().paths;
    if let Some(field) = paths.iter().find(|path| *path != "labels" && !path.starts_with("labels.")) {
        return Err(Error::ImmutableField { key, field: field.clone() });
    }
    if paths.is_empty() || paths.iter().any(|path| path == "labels") {
        return Ok((key, LabelUpdate::All(labels(given))));
    }
    let change = |path: &String| {
        let label = path.strip_prefix("labels.")?;
        Some((label.to_owned(), given.get(label).cloned()))
    };
    Ok((key, LabelUpdate::Some(paths.iter().filter_map(change).collect())))
}
