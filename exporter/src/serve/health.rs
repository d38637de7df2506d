//! gRPC's health service. What asks for the health of anything but the exporter is told by buildkitd, as without us.

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use prost::Message;

use crate::grpc::frame::MessageReader;
use crate::grpc::{Code, Status};
use crate::http2::respond;
use crate::http2::unary::{call, deliver};
use crate::http2::upstream::Upstream;

/// The RPC that asks once.
pub(super) const CHECK: &str = "/grpc.health.v1.Health/Check";

/// The name by which the exporter itself is asked for.
const OWN: &str = "nydus-cluster.exporter";

/// A request has a name in it.
const REQUEST_LIMIT_BYTES: usize = 64 << 10;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SERVING`. An exporter that was told to stop is not asked: nobody can connect to it.
const SERVING: i32 = 1;

/// Answers one question.
pub(super) async fn check(
    request: Request<RecvStream>,
    mut downstream: SendResponse<Bytes>,
    upstream: &Upstream,
) {
    let (parts, body) = request.into_parts();
    let message = match MessageReader::new(body, REQUEST_LIMIT_BYTES).message().await {
        Ok(message) => message.unwrap_or_default(),
        Err(status) => return respond::refuse(&mut downstream, &status),
    };
    // What cannot be read is for buildkitd to refuse.
    let service = HealthCheckRequest::decode(message.clone()).map(|request| request.service);
    if service.is_ok_and(|service| service == OWN) {
        return answer(downstream, &HealthCheckResponse { status: SERVING }).await;
    }
    match upstream.get().await {
        Ok(connection) => {
            let ended = call(parts, &message, connection, upstream.peer(), &mut downstream).await;
            deliver(&mut downstream, ended).await;
        }
        Err(error) => respond::refuse(&mut downstream, &Status::from(error)),
    }
}

async fn answer(mut downstream: SendResponse<Bytes>, response: &HealthCheckResponse) {
    let Ok(mut send) = downstream.send_response(respond::head(), false) else { return };
    let status = match respond::message(&mut send, &response.encode_to_vec()).await {
        Ok(()) => Status::new(Code::Ok, ""),
        Err(status) => status,
    };
    respond::finish(&mut send, &status);
}
