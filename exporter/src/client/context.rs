//! Files of the BuildKit client's build context, by the service `moby.filesync.v1.FileSync` that it serves in its session.
//!
//! The client sends, in messages of fsutil's: STAT for each file of the directory that the headers ask for, numbered in this
//! order, and one without a file at their end; DATA for each number that REQ asks for, the last one empty. FIN ends it, from
//! both sides.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use prost::Message;
use tokio::time::timeout;

use super::CLIENT;
use crate::grpc::{Code, Status};
use crate::http2::call::Call;

const DIFF_COPY: &str = "/moby.filesync.v1.FileSync/DiffCopy";

/// The name that clients give the build context.
const CONTEXT: &str = "context";

/// A list of paths has at most this many bytes: far more than any image has files.
const LIST_LIMIT_BYTES: usize = 64 << 20;

/// For all of it: a small file of the client's own disk.
const DEADLINE: Duration = Duration::from_secs(60);

/// Kinds of messages.
mod kind {
    pub(super) const STAT: i32 = 0;
    pub(super) const REQ: i32 = 1;
    pub(super) const DATA: i32 = 2;
    pub(super) const FIN: i32 = 3;
    pub(super) const ERR: i32 = 4;
}

#[derive(Clone, PartialEq, Message)]
struct Packet {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    stat: Option<Stat>,
    #[prost(uint32, tag = "3")]
    id: u32,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct Stat {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(uint32, tag = "2")]
    mode: u32,
}

/// The bits of Go's file mode that say a type: none of them is a regular file's.
const MODE_TYPE: u32 = 0x8f28_0000;

/// The files of a client's build context.
#[derive(Clone)]
pub(crate) struct ContextFiles(SendRequest<Bytes>);

impl ContextFiles {
    /// Those of the client behind `streams`.
    pub(crate) fn new(streams: SendRequest<Bytes>) -> Self {
        Self(streams)
    }

    /// The content of the regular file at `path`, relative to the context.
    pub(crate) async fn read(&self, path: &str) -> Result<Vec<u8>, Status> {
        let relative = path.trim_start_matches("./");
        let outside =
            relative.is_empty() || relative.starts_with('/') || relative.split('/').any(|name| name == "..");
        if outside
            || !relative.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
            || relative.contains(['*', '?', '[', '\\', '!'])
        {
            let message = "expected the path of a file in the build context, relative to it".to_owned();
            return Err(Status::new(Code::InvalidArgument, message));
        }
        let late = |_| {
            let message = format!("{CLIENT} did not send it within {} s", DEADLINE.as_secs());
            Status::new(Code::Unavailable, message)
        };
        timeout(DEADLINE, self.exchange(relative)).await.map_err(late)?
    }

    async fn exchange(&self, path: &str) -> Result<Vec<u8>, Status> {
        let headers = [("dir-name", CONTEXT.to_owned()), ("include-patterns", path.to_owned())];
        let mut call = Call::open(self.0.clone(), CLIENT, DIFF_COPY, &headers).await?;
        // Dropped, the call is reset: whatever the client still says does not matter.
        receive(&mut call, path).await
    }
}

/// Takes what comes until the file at `path` is there.
async fn receive(call: &mut Call, path: &str) -> Result<Vec<u8>, Status> {
    let (mut number, mut wanted) = (0, None);
    let mut content = Vec::new();
    loop {
        let message = call.receive().await;
        // Before the first file, an error is about the directory.
        let message = if number == 0 { message.map_err(|status| no_context(&status)) } else { message };
        let Some(message) = message? else {
            return Err(Status::new(Code::InvalidArgument, format!("{CLIENT} ended its answer early")));
        };
        let packet = Packet::decode(message)
            .map_err(|error| Status::new(Code::Internal, format!("{CLIENT} sent no packet: {error}")))?;
        match (packet.kind, packet.stat) {
            (kind::STAT, Some(stat)) => {
                if stat.path == path && stat.mode & MODE_TYPE == 0 {
                    wanted = Some(number);
                    let request = Packet { kind: kind::REQ, id: number, ..Packet::default() };
                    call.send(&request.encode_to_vec()).await?;
                }
                number += 1;
            }
            (kind::STAT, None) if wanted.is_none() => {
                let message = "there is no such regular file in the build context";
                return Err(Status::new(Code::InvalidArgument, message));
            }
            (kind::DATA, _) if Some(packet.id) == wanted => {
                if packet.data.is_empty() {
                    let fin = Packet { kind: kind::FIN, ..Packet::default() };
                    // The content is here, whether or not the client hears of it.
                    let _ = call.send(&fin.encode_to_vec()).await;
                    return Ok(content);
                }
                content.extend_from_slice(&packet.data);
                if content.len() > LIST_LIMIT_BYTES {
                    let message = format!("expected at most {LIST_LIMIT_BYTES} bytes");
                    return Err(Status::new(Code::InvalidArgument, message));
                }
            }
            (kind::ERR, _) => {
                let reason = String::from_utf8_lossy(&packet.data).into_owned();
                return Err(Status::new(Code::Unknown, format!("{CLIENT}: {reason}")));
            }
            _ => {}
        }
    }
}

fn no_context(status: &Status) -> Status {
    let message = format!("{CLIENT} sends no build context (`--local context=DIR`): {}", status.message);
    Status::new(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_context_is_regular_and_a_directory_or_link_is_not() {
        // Go's os.ModeDir, os.ModeSymlink, os.ModeNamedPipe, os.ModeDevice, os.ModeCharDevice, os.ModeSocket.
        for bit in [31, 27, 25, 26, 21, 24] {
            assert!((1u32 << bit | 0o644) & MODE_TYPE != 0, "{bit}");
        }
        assert_eq!(0o4755 & MODE_TYPE, 0);
    }
}
