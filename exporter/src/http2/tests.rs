//! Forwarding between two real HTTP/2 connections in memory.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::forward::forward;
use super::pump::send;
use super::settings;

const DEADLINE: Duration = Duration::from_secs(20);
const PEER: &str = "the peer";

type Call = (Request<RecvStream>, SendResponse<Bytes>);

/// A server at the other end of `io`; gives its calls.
fn server(io: tokio::io::DuplexStream) -> mpsc::Receiver<Call> {
    let (calls, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut connection = settings::server().handshake::<_, Bytes>(io).await.unwrap();
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok(call)) => calls.send(call).await.unwrap(),
                    _ => break,
                },
                () = calls.closed() => break,
            }
        }
    });
    receiver
}

async fn client(io: tokio::io::DuplexStream) -> SendRequest<Bytes> {
    let (send, connection) = settings::client().handshake(io).await.unwrap();
    tokio::spawn(connection);
    send
}

/// A client, and the calls that come out behind the proxy.
async fn proxied() -> (SendRequest<Bytes>, mpsc::Receiver<Call>) {
    let (client_end, proxy_end) = tokio::io::duplex(1 << 16);
    let (upstream_end, server_end) = tokio::io::duplex(1 << 16);
    let calls = server(server_end);
    let upstream = client(upstream_end).await;
    let mut incoming = server(proxy_end);
    tokio::spawn(async move {
        while let Some((request, respond)) = incoming.recv().await {
            tokio::spawn(forward(request, respond, upstream.clone(), PEER));
        }
    });
    (client(client_end).await, calls)
}

async fn read(body: &mut RecvStream) -> (Bytes, Option<HeaderMap>) {
    let mut all = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    (all.freeze(), body.trailers().await.unwrap())
}

fn request() -> Request<()> {
    Request::post("http://localhost/any.Service/Method").header("x-unknown", "kept").body(()).unwrap()
}

fn trailers(value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("x-end".parse().unwrap(), HeaderValue::from_static(value))])
}

#[tokio::test]
async fn small_frames_that_have_come_go_on_as_large_ones() {
    let (client_end, proxy_end) = tokio::io::duplex(1 << 20);
    let (upstream_end, server_end) = tokio::io::duplex(1 << 20);
    let (mut incoming, mut calls) = (server(proxy_end), server(server_end));
    let (client, upstream) = (client(client_end).await, client(upstream_end).await);
    let work = async {
        let mut ready = client.clone().ready().await.unwrap();
        let (_response, mut body) = ready.send_request(request(), false).unwrap();
        let (request, respond) = incoming.recv().await.unwrap();
        let small = (0..100_u8).map(|number| vec![number; 100]).collect::<Vec<_>>();
        for data in &small {
            send(&mut body, Bytes::from(data.clone())).await.unwrap();
        }
        body.send_trailers(trailers("up")).unwrap();
        // What is sent after all of it has come.
        let _last = client.ready().await.unwrap().send_request(self::request(), true).unwrap();
        incoming.recv().await.unwrap();
        let forwarded = tokio::spawn(forward(request, respond, upstream, PEER));
        let mut received = calls.recv().await.unwrap().0.into_body();
        let mut frames = Vec::new();
        while let Some(frame) = received.data().await {
            frames.push(frame.unwrap());
        }
        assert!(frames.concat() == small.concat());
        assert!(frames.len() < small.len() / 10, "{} frames", frames.len());
        assert_eq!(received.trailers().await.unwrap(), Some(trailers("up")));
        forwarded.abort();
    };
    timeout(DEADLINE, work).await.unwrap();
}

#[tokio::test]
async fn headers_data_and_trailers_pass_in_both_directions() {
    let (client, mut calls) = proxied().await;
    // More than every window and buffer on the way.
    let (up, down) = (Bytes::from(vec![1; 9 << 20]), Bytes::from(vec![2; 11 << 20]));
    let work = async {
        let (response, mut body) = client.ready().await.unwrap().send_request(request(), false).unwrap();
        let (request, mut respond) = calls.recv().await.unwrap();
        assert_eq!(request.uri().path(), "/any.Service/Method");
        assert_eq!(request.headers()["x-unknown"], "kept");
        let mut received = request.into_body();
        let (sent, got) =
            tokio::join!(send(&mut body, up.clone()), async { body_of(&mut received, up.len()).await });
        sent.unwrap();
        body.send_trailers(trailers("up")).unwrap();
        assert!(got == up);
        assert_eq!(read(&mut received).await, (Bytes::new(), Some(trailers("up"))));

        let head = Response::builder().header("x-answer", "kept").body(()).unwrap();
        let mut answer = respond.send_response(head, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["x-answer"], "kept");
        let mut received = response.into_body();
        let (sent, got) = tokio::join!(
            async {
                send(&mut answer, down.clone()).await.unwrap();
                answer.send_trailers(trailers("down"))
            },
            read(&mut received)
        );
        sent.unwrap();
        assert!(got == (down, Some(trailers("down"))));
    };
    timeout(DEADLINE, work).await.unwrap();
}

/// The next `length` bytes.
async fn body_of(body: &mut RecvStream, length: usize) -> Bytes {
    let mut all = BytesMut::new();
    while all.len() < length {
        let data = body.data().await.unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    all.freeze()
}

#[tokio::test]
async fn a_response_that_is_trailers_alone_stays_that() {
    let (client, mut calls) = proxied().await;
    let work = async {
        let (response, _) = client.ready().await.unwrap().send_request(request(), true).unwrap();
        let (request, mut respond) = calls.recv().await.unwrap();
        assert!(request.body().is_end_stream());
        let head = Response::builder().header("grpc-status", "5").body(()).unwrap();
        respond.send_response(head, true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "5");
        assert!(response.body().is_end_stream());
    };
    timeout(DEADLINE, work).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_cancels_cancels_behind_the_proxy_before_and_after_the_response_begins() {
    for begun in [false, true] {
        let (client, mut calls) = proxied().await;
        let work = async {
            let (response, mut body) = client.ready().await.unwrap().send_request(request(), false).unwrap();
            let (_request, mut respond) = calls.recv().await.unwrap();
            let mut answer = None;
            if begun {
                answer = Some(respond.send_response(Response::new(()), false).unwrap());
                response.await.unwrap();
            }
            body.send_reset(Reason::CANCEL);
            let reason = match &mut answer {
                Some(answer) => poll_fn(|cx| answer.poll_reset(cx)).await,
                None => poll_fn(|cx| respond.poll_reset(cx)).await,
            };
            assert_eq!(reason.unwrap(), Reason::CANCEL);
        };
        timeout(DEADLINE, work).await.unwrap();
    }
}

#[tokio::test]
async fn a_reset_of_the_peer_reaches_the_caller_with_its_reason() {
    let (client, mut calls) = proxied().await;
    let work = async {
        let (response, _body) = client.ready().await.unwrap().send_request(request(), false).unwrap();
        let (_request, mut respond) = calls.recv().await.unwrap();
        respond.send_reset(Reason::REFUSED_STREAM);
        assert_eq!(response.await.unwrap_err().reason(), Some(Reason::REFUSED_STREAM));
    };
    timeout(DEADLINE, work).await.unwrap();
}

#[tokio::test]
async fn a_lost_peer_is_unavailable_and_named() {
    let (client, calls) = proxied().await;
    drop(calls);
    let work = async {
        let (response, _) = client.ready().await.unwrap().send_request(request(), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "14");
        let message = response.headers()["grpc-message"].to_str().unwrap();
        assert!(message.contains(PEER), "{message}");
    };
    timeout(DEADLINE, work).await.unwrap();
}
