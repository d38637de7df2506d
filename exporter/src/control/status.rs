//! Status: a build's progress. buildkitd's messages pass at message boundaries, ours are put between them, and the
//! stream of a build of ours ends when the build does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep_until};

use super::Rpc;
use super::message;
use crate::build::{Build, Builds};
use crate::grpc::frame::{self, MessageReader};
use crate::grpc::{Code, Status};
use crate::http2::forward::{lost, open, until_reset};
use crate::http2::pump::{self, PumpError};
use crate::http2::respond;
use image::progress::Update;

mod event;

/// The largest Status message taken; buildkitd's own limit is 16 MiB.
const MESSAGE_LIMIT_BYTES: usize = 32 << 20;

/// Response header with buildkitd's clock, by which clients shift all times.
const TIMESTAMP: &str = "buildkit-current-timestamp";

/// The least time between two messages of ours.
const INTERVAL: Duration = Duration::from_millis(150);

/// Handles one Status stream.
pub(crate) async fn handle(mut rpc: Rpc<'_>) {
    let (parts, body) = rpc.request.into_parts();
    let message = match MessageReader::new(body, MESSAGE_LIMIT_BYTES).message().await {
        Ok(message) => message.unwrap_or_default(),
        Err(status) => return respond::refuse(&mut rpc.downstream, &status),
    };
    // A request that cannot be read is for buildkitd to refuse.
    let reference = message::status_ref(&message).unwrap_or_default();
    let lost = |error: &h2::Error| lost(rpc.peer, error);
    let (response, mut send) = match open(Request::from_parts(parts, ()), false, rpc.upstream).await {
        Ok(opened) => opened,
        Err(error) => return respond::refuse(&mut rpc.downstream, &lost(&error)),
    };
    let opened = async {
        match pump::send(&mut send, frame::encode(&message)).await {
            Ok(()) => send.send_data(Bytes::new(), true)?,
            // An early answer; it says what there is to say.
            Err(error) => tracing::debug!(%error, "Status request not taken whole"),
        }
        response.await
    };
    let response = match until_reset(&mut rpc.downstream, opened).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return respond::refuse(&mut rpc.downstream, &lost(&error)),
        Err(error) => return send.send_reset(error.reason()),
    };
    let (head, body) = response.into_parts();
    let ended = body.is_end_stream();
    let clock = clock_shift(&head.headers);
    let mut to_client = match rpc.downstream.send_response(Response::from_parts(head, ()), ended) {
        Ok(to_client) if !ended => to_client,
        _ => return,
    };
    let relay = Relay::new(reference, Arc::clone(&rpc.exporter.builds), clock);
    match relay.run(body, &mut to_client).await {
        Ok(trailers) => {
            let ok = Status::new(Code::Ok, "").trailers();
            if let Err(error) = to_client.send_trailers(trailers.unwrap_or(ok)) {
                tracing::debug!(%error, "the caller left before the end of Status");
            }
        }
        Err(Ended::Caller(error)) => {
            send.send_reset(error.reason());
            to_client.send_reset(error.reason());
        }
        Err(Ended::Upstream(status)) => respond::finish(&mut to_client, &status.told_by(rpc.peer)),
    }
}

/// buildkitd's clock less ours, in nanoseconds.
fn clock_shift(headers: &HeaderMap) -> i128 {
    let theirs = headers.get(TIMESTAMP).and_then(|value| value.to_str().ok()).and_then(event::parse_rfc3339);
    match theirs {
        Some(theirs) => theirs - event::nanoseconds(SystemTime::now()),
        None => 0,
    }
}

/// Why a stream ends early.
enum Ended {
    Caller(PumpError),
    Upstream(Status),
}

/// One Status stream on its way.
struct Relay {
    reference: String,
    builds: Arc<Builds>,
    clock: i128,
    build: Option<Arc<Build>>,
    /// How far [`image::progress::Progress`] has been shown.
    version: u64,
    /// Digests of BuildKit's own export steps that the client has heard of: only to those can something be added.
    announced: BTreeSet<String>,
    /// When the next message of ours may go.
    next: Instant,
}

impl Relay {
    fn new(reference: String, builds: Arc<Builds>, clock: i128) -> Self {
        let (build, announced) = (None, BTreeSet::new());
        Self { reference, builds, clock, build, version: 0, announced, next: Instant::now() }
    }

    /// Relays until both buildkitd's stream and, if it is ours, the build have ended.
    async fn run(mut self, body: RecvStream, to: &mut SendStream<Bytes>) -> Result<Option<HeaderMap>, Ended> {
        let mut reader = MessageReader::new(body, MESSAGE_LIMIT_BYTES);
        loop {
            let message = tokio::select! {
                message = reader.message() => message.map_err(Ended::Upstream)?,
                () = self.due() => {
                    self.inject(to).await?;
                    continue;
                }
                error = reset(to) => return Err(Ended::Caller(error)),
            };
            // The Solve may have come after this Status.
            self.build = self.build.take().or_else(|| self.builds.by_ref(&self.reference));
            let Some(message) = message else { break };
            let message = self.rename(message);
            pump::send(to, frame::encode(&message)).await.map_err(Ended::Caller)?;
        }
        let trailers = reader.trailers().await.map_err(Ended::Upstream)?;
        self.outlast(to).await?;
        Ok(trailers)
    }

    /// Goes on until the build is over, buildkitd's own stream having ended.
    async fn outlast(&mut self, to: &mut SendStream<Bytes>) -> Result<(), Ended> {
        let Some(build) = self.build.clone() else { return Ok(()) };
        loop {
            tokio::select! {
                () = build.over.cancelled() => break,
                () = self.due() => self.inject(to).await?,
                error = reset(to) => return Err(Ended::Caller(error)),
            }
        }
        self.inject(to).await
    }

    /// Waits until there is something to inject and time for it.
    async fn due(&self) {
        let Some(build) = &self.build else { return std::future::pending().await };
        let mut watch = build.progress.watch();
        // The sender lives as long as the build, which is held here.
        if watch.wait_for(|version| *version > self.version).await.is_err() {
            return std::future::pending().await;
        }
        sleep_until(self.next).await;
    }

    /// Sends what is new of our progress.
    async fn inject(&mut self, to: &mut SendStream<Bytes>) -> Result<(), Ended> {
        let Some(build) = self.build.clone() else { return Ok(()) };
        let (updates, version) = build.progress.since(self.version);
        self.version = version;
        self.next = Instant::now() + INTERVAL;
        let mut message = Vec::new();
        for update in &updates {
            self.put(&build, update, &mut message);
        }
        if message.is_empty() {
            return Ok(());
        }
        pump::send(to, frame::encode(&message)).await.map_err(Ended::Caller)
    }

    fn put(&self, build: &Build, update: &Update, out: &mut Vec<u8>) {
        let times = event::Times::of(update, self.clock);
        let export =
            export_digests(&build.session, update.output).into_iter().find(|d| self.announced.contains(d));
        match export {
            Some(export) if !update.step => event::put_status(&export, update, &times, out),
            _ => {
                let own = digest(&format!("{}-nydus-{}-{}", build.reference, update.output, update.name));
                event::put_vertex(&own, update, &times, out);
            }
        }
    }

    /// buildkitd's message, its export steps under the name of what they are for.
    fn rename(&mut self, message: Bytes) -> Bytes {
        let Some(build) = &self.build else { return message };
        let announced = &mut self.announced;
        let renamed = message::rename_vertexes(&message, |digest| {
            let ours = |index: usize| export_digests(&build.session, index).iter().any(|ours| ours == digest);
            let output = build.outputs.iter().find(|output| ours(output.index()))?;
            announced.insert(digest.to_owned());
            Some(format!("exporting to nydus image {}", output.title()))
        });
        match renamed {
            Ok(Some(renamed)) => renamed.into(),
            Ok(None) => message,
            Err(error) => {
                tracing::debug!(%error, "Status message passed unread");
                message
            }
        }
    }
}

async fn reset(to: &mut SendStream<Bytes>) -> PumpError {
    match std::future::poll_fn(|cx| to.poll_reset(cx)).await {
        Ok(reason) => PumpError::Stopped(reason),
        Err(error) => PumpError::Sink(error),
    }
}

/// The digests that BuildKit gives its step for an output: from v0.13, and before.
fn export_digests(session: &str, output: usize) -> [String; 2] {
    [digest(&format!("{session}-export-{output}")), digest(&format!("{session}-export"))]
}

fn digest(text: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(text)))
}
