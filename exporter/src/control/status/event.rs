//! What we put into Status messages.
//!
//! | message | fields |
//! |---|---|
//! | StatusResponse | 1 repeated Vertex, 2 repeated VertexStatus |
//! | Vertex | 1 digest, 3 name, 5 started, 6 completed, 7 error |
//! | VertexStatus | 1 ID (what plain output shows), 2 vertex, 3 name, 4 current, 5 total, 6 timestamp, 7 started, 8 completed |

use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::grpc::wire::field::put_bytes;
use image::progress::Update;

const VERTEXES: u64 = 1;
const STATUSES: u64 = 2;

const NANOSECONDS_A_SECOND: i128 = 1_000_000_000;

#[derive(Clone, Copy, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Vertex {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(message, optional, tag = "5")]
    started: Option<Timestamp>,
    #[prost(message, optional, tag = "6")]
    completed: Option<Timestamp>,
    #[prost(string, tag = "7")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct VertexStatus {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    vertex: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(int64, tag = "4")]
    current: i64,
    #[prost(int64, tag = "5")]
    total: i64,
    #[prost(message, optional, tag = "6")]
    timestamp: Option<Timestamp>,
    #[prost(message, optional, tag = "7")]
    started: Option<Timestamp>,
    #[prost(message, optional, tag = "8")]
    completed: Option<Timestamp>,
}

/// An update's times by buildkitd's clock.
pub(super) struct Times {
    now: Timestamp,
    started: Timestamp,
    completed: Option<Timestamp>,
}

impl Times {
    /// The times of `update`; `shift` is buildkitd's clock less ours in nanoseconds.
    pub(super) fn of(update: &Update, shift: i128) -> Self {
        let at = |time| timestamp(nanoseconds(time) + shift);
        Self { now: at(SystemTime::now()), started: at(update.started), completed: update.completed.map(at) }
    }
}

/// Appends a part of BuildKit's step `vertex`.
pub(super) fn put_status(vertex: &str, update: &Update, times: &Times, out: &mut Vec<u8>) {
    let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let status = VertexStatus {
        id: update.name.clone(),
        vertex: vertex.to_owned(),
        name: update.name.clone(),
        current: number(update.current),
        total: number(update.total),
        timestamp: Some(times.now),
        started: Some(times.started),
        completed: times.completed,
    };
    put_bytes(STATUSES, &status.encode_to_vec(), out);
}

/// Appends a step of its own.
pub(super) fn put_vertex(digest: &str, update: &Update, times: &Times, out: &mut Vec<u8>) {
    let vertex = Vertex {
        digest: digest.to_owned(),
        name: update.name.clone(),
        started: Some(times.started),
        completed: times.completed,
        error: update.error.clone().unwrap_or_default(),
    };
    put_bytes(VERTEXES, &vertex.encode_to_vec(), out);
}

/// Nanoseconds since 1970.
pub(super) fn nanoseconds(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

fn timestamp(nanoseconds: i128) -> Timestamp {
    let seconds = nanoseconds.div_euclid(NANOSECONDS_A_SECOND);
    let nanos = nanoseconds.rem_euclid(NANOSECONDS_A_SECOND);
    Timestamp { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanos: nanos as i32 }
}

/// Nanoseconds since 1970 of a time as Go writes it, `2026-01-02T03:04:05.678Z` or with an offset `+01:00`.
pub(super) fn parse_rfc3339(text: &str) -> Option<i128> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_nanosecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_go_writes_them_are_read() {
        let second = NANOSECONDS_A_SECOND;
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-03-01T00:00:00Z", 951_868_800 * second),
            ("2024-02-29T23:59:59.5Z", 1_709_251_199 * second + second / 2),
            ("2026-11-22T11:09:27.123456789+01:00", 1_795_342_167 * second + 123_456_789),
            ("1969-12-31T23:00:00-01:00", 0),
        ] {
            assert_eq!(parse_rfc3339(text), Some(expected), "{text}");
        }
        for text in ["", "2026", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00.é"] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_before_1970_has_positive_nanoseconds() {
        assert_eq!(timestamp(-1), Timestamp { seconds: -1, nanos: 999_999_999 });
    }
}
