//! Reading and deleting blobs.

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{Method, StatusCode};

use super::body::{Body, FileBody, read_at};
use super::error::{Code, Failure};
use super::reply::Reply;
use super::request::Head;
use super::{ServerState, blocking};
use crate::digest::Digest;

/// Answers up to this size are read while the file is opened: one change of threads for a small range.
const INLINE_BYTES: u64 = 1 << 20;

/// What part of a blob is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskedRange {
    Whole,
    Range { first: u64, last: u64 },
    Unsatisfiable,
}

/// What is asked of a blob.
pub(super) struct BlobRequest {
    digest: Digest,
    etag: String,
    range: Option<String>,
    /// Whether its bytes are to come.
    pub(super) send: bool,
    /// Whether whoever asks has it.
    pub(super) unchanged: bool,
}

impl BlobRequest {
    fn new(head: &Head, digest: Digest) -> Self {
        let etag = format!("\"{digest}\"");
        let range = head.header(RANGE).filter(|_| head.header(IF_RANGE).is_none_or(|tag| tag == etag));
        let range = range.map(str::to_owned);
        let unchanged = head.header(IF_NONE_MATCH).is_some_and(|tags| tags == "*" || tags.contains(&etag));
        Self { digest, etag, range, send: *head.method() == Method::GET, unchanged }
    }

    /// The part that is asked for of a blob of `size` bytes, where that begins, and how long it is.
    pub(super) fn part(&self, size: u64) -> (AskedRange, u64, u64) {
        match self.range.as_ref().map_or(AskedRange::Whole, |range| part(range, size)) {
            AskedRange::Whole => (AskedRange::Whole, 0, size),
            part @ AskedRange::Range { first, last } => (part, first, last - first + 1),
            AskedRange::Unsatisfiable => (AskedRange::Unsatisfiable, 0, 0),
        }
    }

    /// The answer: `body` has the `len` bytes of `part`, if they are to be sent.
    pub(super) fn reply(&self, size: u64, part: AskedRange, len: u64, body: Body) -> Reply {
        let reply = match part {
            _ if self.unchanged => {
                return Reply::empty(StatusCode::NOT_MODIFIED).header(ETAG, &self.etag).digest(&self.digest);
            }
            AskedRange::Unsatisfiable => {
                let failure = Failure::new(Code::RangeInvalid, format!("the blob has {size} bytes"));
                return Reply::failure(&failure).header(CONTENT_RANGE, &format!("bytes */{size}"));
            }
            AskedRange::Whole => Reply::empty(StatusCode::OK),
            AskedRange::Range { first, last } => Reply::empty(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_RANGE, &format!("bytes {first}-{last}/{size}")),
        };
        let reply = reply
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(ACCEPT_RANGES, "bytes")
            .header(ETAG, &self.etag)
            // What has this digest never changes.
            .header(CACHE_CONTROL, "max-age=31536000, immutable")
            .digest(&self.digest);
        reply.body(body).length(len)
    }
}

/// GET and HEAD of a blob.
pub(super) async fn get(
    state: &ServerState,
    head: &Head,
    name: String,
    digest: Digest,
) -> Result<Reply, Failure> {
    let request = BlobRequest::new(head, digest.clone());
    let stand_in = state.stand_in.as_ref();
    if let Some(elsewhere) = stand_in.and_then(|stand_in| stand_in.elsewhere.as_ref())
        && let Some(size) = elsewhere.size(&name, &digest)
    {
        return elsewhere.get(&request, &digest, size).await;
    }
    let absent = stand_in.and_then(|stand_in| stand_in.absent.clone());
    let storage = state.storage.clone();
    let opened = blocking(move || {
        let Some(blob) = storage.layout.blob(&name, &digest)? else {
            let reason = absent.map(|reason| format!(": {reason}")).unwrap_or_default();
            return Err(Failure::new(Code::BlobUnknown, format!("{digest}{reason}")));
        };
        let size = blob.size;
        let (part, offset, len) = request.part(size);
        let body = if !request.send || request.unchanged {
            Body::Bytes(Default::default())
        } else if len <= INLINE_BYTES {
            let bytes = read_at(&blob.file, blob.offset + offset, usize::try_from(len).unwrap_or_default());
            Body::Bytes(bytes.map_err(|source| {
                let path = digest.as_ref().into();
                Failure::Storage { doing: "reading blob", path, source }
            })?)
        } else {
            Body::File(FileBody::new(blob.file, blob.offset + offset, len))
        };
        Ok(request.reply(size, part, len, body))
    });
    opened.await
}

/// DELETE of a blob.
pub(super) async fn delete(state: &ServerState, name: String, digest: Digest) -> Result<Reply, Failure> {
    state.check_delete()?;
    let storage = state.storage.clone();
    let unknown = Failure::new(Code::BlobUnknown, digest.as_ref());
    match blocking(move || storage.unlink_blob(&name, &digest)).await? {
        true => Ok(Reply::empty(StatusCode::ACCEPTED)),
        false => Err(unknown),
    }
}

/// The part that `Range: TEXT` asks for of `size` bytes. Several ranges, and forms that are none, are answered with
/// everything, as HTTP allows.
pub(super) fn part(text: &str, size: u64) -> AskedRange {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return AskedRange::Whole;
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first > last => AskedRange::Whole,
        (Ok(first), Ok(_)) if first >= size => AskedRange::Unsatisfiable,
        (Ok(first), Ok(last)) => AskedRange::Range { first, last: last.min(size - 1) },
        (Ok(first), Err(_)) if last.is_empty() && first < size => AskedRange::Range { first, last: size - 1 },
        (Ok(_), Err(_)) if last.is_empty() => AskedRange::Unsatisfiable,
        (Err(_), Ok(0)) if first.is_empty() => AskedRange::Unsatisfiable,
        (Err(_), Ok(_)) if first.is_empty() && size == 0 => AskedRange::Unsatisfiable,
        (Err(_), Ok(suffix)) if first.is_empty() => {
            AskedRange::Range { first: size.saturating_sub(suffix), last: size - 1 }
        }
        _ => AskedRange::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_ranges_are_cut_to_the_blob_and_other_forms_mean_everything() {
        let range = |first, last| AskedRange::Range { first, last };
        for (text, size, expected) in [
            ("bytes=0-0", 10, range(0, 0)),
            ("bytes=2-5", 10, range(2, 5)),
            ("bytes=5-", 10, range(5, 9)),
            ("bytes=-3", 10, range(7, 9)),
            ("bytes=-30", 10, range(0, 9)),
            ("bytes=8-99", 10, range(8, 9)),
            ("bytes=10-11", 10, AskedRange::Unsatisfiable),
            ("bytes=10-", 10, AskedRange::Unsatisfiable),
            ("bytes=-0", 10, AskedRange::Unsatisfiable),
            ("bytes=0-", 0, AskedRange::Unsatisfiable),
            ("bytes=-1", 0, AskedRange::Unsatisfiable),
            ("bytes=0-18446744073709551615", 10, range(0, 9)),
            ("bytes=5-2", 10, AskedRange::Whole),
            ("bytes=0-1,3-4", 10, AskedRange::Whole),
            ("bytes=-", 10, AskedRange::Whole),
            ("items=0-1", 10, AskedRange::Whole),
            ("bytes=99999999999999999999-", 10, AskedRange::Whole),
        ] {
            assert_eq!(part(text, size), expected, "{text} of {size}");
        }
    }
}
