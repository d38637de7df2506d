//! Which of buildkitd's calls to its client are for an output of ours.

use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use h2::server::SendResponse;
use http::{HeaderMap, Request};

use crate::build::{Build, Output};
use crate::http2::forward::forward;
use crate::intake;

/// Header that names one of the client's content stores.
pub(super) const STORE_ID: &str = "buildkit-attachable-store-id";
/// The store that all image exports of a build go to.
pub(super) const EXPORT_STORE: &str = "export";
/// Header with the index of the export that a tar stream is for; absent before v0.13, when there was but one.
pub(super) const EXPORTER_ID: &str = "buildkit-attachable-exporter-id";

/// What is at the other end of a client's session, for errors.
pub(crate) const CLIENT: &str = "the BuildKit client's session";

/// A stream that is ours.
enum Ours {
    /// A call to the content store.
    Store(Arc<Output>),
    /// A tar stream.
    Tar(Arc<Output>),
}

/// Serves one stream that buildkitd opened in the session of `build`.
pub(super) async fn route(
    build: Arc<Build>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    client: SendRequest<Bytes>,
) {
    tracing::trace!(build = build.reference, call = request.uri().path(), "begins");
    match ours(&build, &request) {
        Some(Ours::Store(output)) => intake::store::serve(request, respond, &build, &output).await,
        Some(Ours::Tar(output)) => intake::tar::serve(request, respond, &build, &output).await,
        None => forward(request, respond, client, CLIENT).await,
    }
}

fn ours(build: &Build, request: &Request<RecvStream>) -> Option<Ours> {
    let headers = request.headers();
    let path = request.uri().path();
    if path.starts_with(intake::store::SERVICE) && header(headers, STORE_ID) == Some(EXPORT_STORE) {
        return build.store_output().cloned().map(Ours::Store);
    }
    if path == intake::tar::DIFF_COPY {
        let index = header(headers, EXPORTER_ID).map_or(Some(0), |index| index.parse().ok())?;
        return build.tar_output(index).cloned().map(Ours::Tar);
    }
    None
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
