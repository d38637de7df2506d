//! What the fuzz target calls: a worker that says anything. Errors are fine, panics are bugs.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::connection::{Listener, MEMORY_BYTES, WorkerConnection};
use super::errand::Brought;
use super::message::Question;
use crate::front::{ChunkError, ChunkKey, Content, Responses};

/// Believes nothing, and looks at everything.
struct AnyFront;

impl Responses for AnyFront {
    fn finished(&self, _: ChunkKey, outcome: Result<Content<'_>, ChunkError>) {
        match outcome {
            Ok(content) => assert!(content.bytes.len() as u64 <= MEMORY_BYTES),
            Err(error) => assert!(!error.to_string().contains('\n')),
        }
    }
}

impl Listener for AnyFront {
    fn brought(&self, _: u64, _: Result<Brought, String>) {}

    fn asked(&self, _: &Arc<WorkerConnection>, _: u64, _: Question) {}
}

/// Hears `bytes` as what a worker says until it hangs up: as messages with their lengths, and each piece between zeros as the
/// text of one.
pub fn hear(bytes: &[u8]) {
    let framed = bytes.split(|byte| *byte == 0).flat_map(|text| {
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
        [&length[..], text].concat()
    });
    for said in [bytes.to_vec(), framed.collect()] {
        let Ok((mut worker, ours)) = UnixStream::pair() else { return };
        let Ok((connection, _memory)) = WorkerConnection::new(ours) else { return };
        let connection = Arc::new(connection);
        // The fuzzer's inputs fit into the socket's buffer.
        if worker.write_all(&said).is_ok() {
            drop(worker);
            connection.listen(&AnyFront, &AnyFront);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::hear;

    /// A message, or something like it.
    fn message() -> impl Strategy<Value = String> {
        let hex = "[0-9a-f]{60,68}";
        let files = (hex, any::<u64>())
            .prop_map(|(hex, generation)| format!(r#""blob":"sha256:{hex}","generation":{generation}"#));
        let len = prop_oneof![0..100_000_u32, any::<u32>()];
        let chunks = proptest::collection::vec((any::<u32>(), len), 0..5);
        prop_oneof![
            (files, chunks, any::<u64>(), ".{0,9}").prop_map(|(files, chunks, at, from)| {
                let at = if at.is_multiple_of(2) { at % (32 << 20) } else { at };
                let chunks = serde_json::to_string(&chunks).unwrap();
                format!(r#"{{"delivered":{{{files},"chunks":{chunks},"at":{at},"from":{from:?}}}}}"#)
            }),
            any::<u64>().prop_map(|number| format!(r#"{{"pong":{{"number":{number}}}}}"#)),
            (any::<u64>(), ".{0,9}").prop_map(|(number, reason)| {
                let counts = format!(r#""requests":{number},"failures":0,"bytes":{number}"#);
                let source = format!(r#"{{{counts},"reason":{reason:?}}}"#);
                format!(r#"{{"sources":{{"number":{number},"sources":[null,{source}]}}}}"#)
            }),
            Just(
                r#"{"ready":{"guards":{"user":true,"capabilities":true,"landlock":true,"seccomp":true}}}"#
                    .to_owned()
            ),
            ".{0,40}",
        ]
    }

    proptest! {
        #[test]
        fn whatever_a_worker_says_is_heard_to_its_end(said in proptest::collection::vec(message(), 0..12)) {
            hear(said.join("\0").as_bytes());
        }

        #[test]
        fn whatever_bytes_a_worker_sends_are_heard_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            hear(&bytes);
        }
    }
}
