//! A session of a build's own, beside its client's: what buildkitd calls in it is for this build, whatever other builds
//! the client runs in the session that they share. All that is not for an output of ours goes to the client.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderName, HeaderValue};

use super::sessions::SessionClient;
use super::{Tunnel, inner, route};
use crate::client::FILE_SEND;
use crate::grpc::{Code, Status, status};
use crate::http2::forward::{lost, open};
use crate::intake::Intake;

/// Header with a session's id.
pub(crate) const SESSION_ID: &str = "x-docker-expose-session-uuid";
/// Header, repeated, with the methods that the client serves.
const SESSION_METHOD: &str = "x-docker-expose-session-grpc-method";

/// The id of the own session of build `reference`, whose client's session is `client`. buildkitd knows no two builds of one
/// reference.
pub(crate) fn id_for(client: &str, reference: &str) -> String {
    format!("{client}-{reference}")
}

/// Opens the own session of the build whose result `intake` takes, by the id that it states, as its client opened its own.
/// It ends with the build, or with the client's session.
pub(crate) async fn open_own(
    intake: Arc<Intake>,
    client: SessionClient,
    upstream: SendRequest<Bytes>,
    peer: &str,
) -> Result<(), Status> {
    let build = Arc::clone(&intake.build);
    let mut request = client.request.clone();
    let id = HeaderValue::try_from(&build.session);
    let id = id.map_err(|_| {
        Status::new(
            Code::InvalidArgument,
            format!("the build's reference {:?}: expected printable ASCII", build.reference),
        )
    })?;
    // buildkitd asks only for what a session says that it serves: the receiver of tar streams is ours, even if the client has none.
    let headers = request.headers_mut();
    headers.insert(SESSION_ID, id);
    let method = HeaderName::from_static(SESSION_METHOD);
    if !headers.get_all(&method).iter().any(|served| served == FILE_SEND) {
        headers.append(method, HeaderValue::from_static(FILE_SEND));
    }
    let gone = |error: h2::Error| lost(peer, &error);
    let (response, to_buildkitd) = open(request, false, upstream).await.map_err(gone)?;
    let session = async move {
        let reason = match build.over.run_until_cancelled(response).await {
            None => None,
            Some(Ok(response)) if response.body().is_end_stream() => {
                status::of(response.headers()).err().map(|status| status.message)
            }
            Some(Ok(response)) => {
                let tunnel = Tunnel::to_server(response.into_body(), to_buildkitd);
                serve(tunnel, intake, client).await.err().map(|error| error.to_string())
            }
            Some(Err(error)) => Some(error.to_string()),
        };
        match reason {
            Some(reason) if !build.over.is_cancelled() => {
                tracing::warn!(build = build.reference, reason, "session of the build broke off");
                build.fail(&format!("the build's session with buildkitd broke off: {reason}"));
            }
            _ => tracing::debug!(build = build.reference, "session of the build ends"),
        }
    };
    tokio::spawn(session);
    Ok(())
}

async fn serve(tunnel: Tunnel, intake: Arc<Intake>, client: SessionClient) -> Result<(), h2::Error> {
    let (over, gone) = (intake.build.over.clone(), client.gone.clone());
    let ended = async move {
        tokio::select! {
            () = over.cancelled() => {}
            () = gone.cancelled() => {}
        }
        Ok(())
    };
    inner::serve(tunnel, ended, |request, respond| {
        route(Arc::clone(&intake), request, respond, client.streams.clone())
    })
    .await
}
