//! Which of buildkitd's calls to its client are for an output of ours.

use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use h2::server::SendResponse;
use http::{HeaderMap, Request};

use crate::build::{Build, Output};
use crate::client::{CLIENT, EXPORT_STORE, EXPORTER_ID, FILE_SEND, STORE_ID};
use crate::content;
use crate::http2::forward::forward;
use crate::intake::{Intake, store, tar};

/// A stream that is ours.
enum Ours {
    /// A call to the content store.
    Store(Arc<Output>),
    /// A tar stream.
    Tar(Arc<Output>),
}

/// Serves one stream that buildkitd opened in the session of the build whose result `intake` takes.
pub(super) async fn route(
    intake: Arc<Intake>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    client: SendRequest<Bytes>,
) {
    let build = &intake.build;
    tracing::trace!(build = build.reference, call = request.uri().path(), "begins");
    match ours(build, &request) {
        Some(Ours::Store(output)) => store::serve(request, respond, &intake, &output).await,
        Some(Ours::Tar(output)) => tar::serve(request, respond, build, &output).await,
        None => forward(request, respond, client, CLIENT).await,
    }
}

fn ours(build: &Build, request: &Request<RecvStream>) -> Option<Ours> {
    let headers = request.headers();
    let path = request.uri().path();
    if path.starts_with(content::SERVICE) && header(headers, STORE_ID) == Some(EXPORT_STORE) {
        return build.store_output().cloned().map(Ours::Store);
    }
    if path == FILE_SEND {
        let index = header(headers, EXPORTER_ID).map_or(Some(0), |index| index.parse().ok())?;
        return build.tar_output(index).cloned().map(Ours::Tar);
    }
    None
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
