//! The registry's side of an upload: where it is, how far it is, and how to get it back after a failure.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderValue, Method, StatusCode};
use reqwest::Url;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::spool::Spool;
use crate::client::challenge::Scopes;
use crate::client::lane::Lane;
use crate::client::response::Response;
use crate::client::retry::Retry;
use crate::client::transport::{Exchange, header_value};
use crate::client::{Client, Error, Target};
use crate::digest::Digest;
use crate::reference::Repository;

/// The query parameter by which CNCF distribution carries an upload's state. Before version 3 it refuses an
/// upload whose state is not of exactly the bytes it has, also when only asked how far it is, so that nothing
/// can be resumed there.
const DISTRIBUTION_STATE: &str = "_state";

/// By this header a registry names the least size of all pieces but the last.
const MIN_LENGTH_HEADER: &str = "oci-chunk-min-length";

/// The longest piece that is collected because a registry asks for it: two are held in memory. Registries in front
/// of object stores ask for 5 to 32 MiB.
const LONGEST_PIECE_BYTES: usize = 128 << 20;

/// An upload as the registry knows it.
pub(super) struct Session {
    client: Client,
    repository: Repository,
    scopes: Scopes,
    /// The connections on which the blob goes.
    lane: Arc<Lane>,
    location: Url,
    /// Bytes in a piece, except for the last.
    piece_bytes: usize,
    /// Bytes that the registry has.
    offset: u64,
    keep: Keep,
    /// Whether the registry still holds what came.
    open: bool,
    _counted: TaskTrackerToken,
}

impl Drop for Session {
    /// Whoever leaves without a word, such as a build that is cancelled, leaves nothing at the registry.
    fn drop(&mut self) {
        if self.open
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (client, repository) = (self.client.clone(), self.repository.clone());
            let location = self.location.clone();
            let abandoned = async move { abandon(&client, &repository, location).await };
            self.client.transport.uploads.spawn_on(abandoned, &runtime);
        }
    }
}

/// Whether bytes are kept after the registry acknowledged them.
enum Keep {
    /// Not decided: no piece was sent yet.
    Undecided,
    /// The registry can resume, or the user wants no spool.
    No,
    Spool(Spool),
}

impl Session {
    pub(super) async fn begin(client: Client, repository: Repository) -> Result<Self, Error> {
        let scopes = Scopes::push(repository.name());
        let counted = client.transport.uploads.token();
        let lane = Arc::new(client.transport.known.lanes.take(client.silence));
        let Begun { location, piece_bytes } = start(&client, &repository, &scopes).await?;
        Ok(Self {
            client,
            repository,
            scopes,
            lane,
            location,
            piece_bytes,
            offset: 0,
            keep: Keep::Undecided,
            open: true,
            _counted: counted,
        })
    }

    /// How many bytes each piece but the last is to have.
    pub(super) fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }

    /// Sends `piece`, which starts at `start` of the blob.
    pub(super) async fn send(mut self: Box<Self>, start: u64, piece: &Bytes) -> Result<Box<Self>, Error> {
        if matches!(self.keep, Keep::Undecided) {
            self.keep = self.decide().await?;
        }
        self.keep_piece(start, piece).await;
        let (target, lane) = (self.target(Method::PATCH), Arc::clone(&self.lane));
        let mut retry = Retry::new(&self.client.config().retries, &target).on(&lane);
        lane.silence.bound(&target, 0, self.advance(start, piece, &mut retry)).await?;
        Ok(self)
    }

    /// Sends the rest, which starts at `start` of the blob, and has the registry store the blob as `digest`.
    pub(super) async fn finish(
        mut self: Box<Self>,
        start: u64,
        rest: Bytes,
        digest: &Digest,
    ) -> Result<(), Error> {
        self.keep_piece(start, &rest).await;
        let (target, lane) = (Target::blob(Method::PUT, &self.repository, digest), Arc::clone(&self.lane));
        let stored_bytes = start + rest.len() as u64;
        lane.silence.bound(&target, stored_bytes, self.store(start, rest, digest)).await
    }

    async fn store(&mut self, start: u64, rest: Bytes, digest: &Digest) -> Result<(), Error> {
        let target = self.target(Method::PUT);
        let mut retry = Retry::new(&self.client.config().retries, &target).on(&self.lane);
        loop {
            // A blob of one piece goes with the closing request: two round trips in all.
            let whole = start == 0 && self.offset == 0;
            if !whole {
                self.advance(start, &rest, &mut retry).await?;
            }
            let body = if whole { rest.clone() } else { Bytes::new() };
            let Err(error) = self.commit(&target, digest, body).await else {
                self.open = false;
                return Ok(());
            };
            let lost = is_lost(&error);
            if !lost && !error.is_transient() {
                return Err(error);
            }
            retry.again(error).await?;
            // The answer may have been lost, not the request.
            if self.client.has_blob(&self.repository, digest).await? {
                self.open = false;
                return Ok(());
            }
            self.recover(start, false).await?;
        }
    }

    pub(super) async fn abandon(mut self: Box<Self>) {
        abandon(&self.client, &self.repository, self.location.clone()).await;
        self.open = false;
    }

    fn target(&self, method: Method) -> Target {
        Target::new(method, &self.repository, "blob upload")
    }

    /// Whether acknowledged bytes have to be kept for this registry.
    async fn decide(&self) -> Result<Keep, Error> {
        let settings = &self.client.config().upload;
        if !settings.spool || !self.location.query_pairs().any(|(name, _)| name == DISTRIBUTION_STATE) {
            return Ok(Keep::No);
        }
        // A version that can resume tells how far the upload is without the state; others know no upload then.
        let mut plain = self.location.clone();
        plain.set_query(None);
        match self.status(&plain).await {
            Ok(_) => Ok(Keep::No),
            Err(error) if error.status().is_some() => {
                tracing::debug!(location = %plain, "registry cannot resume uploads: keeping the blob until it is pushed");
                let spool = Spool::create(&settings.spool_dir);
                Ok(spool.map_or_else(|error| unkept(&self.repository, &error), Keep::Spool))
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps `piece`, which starts at `start` of the blob, if pieces are kept. A disk that is full fails no push: the copy is only for
    /// when a connection breaks, which then is an error.
    async fn keep_piece(&mut self, start: u64, piece: &Bytes) {
        if let Keep::Spool(spool) = &mut self.keep
            && let Err(error) = spool.append(start, piece).await
        {
            self.keep = unkept(&self.repository, &error);
        }
    }

    /// Brings the registry to the end of `piece`, which starts at `start`, whatever has to be sent again for it.
    async fn advance(&mut self, start: u64, piece: &Bytes, retry: &mut Retry) -> Result<(), Error> {
        let end = start + piece.len() as u64;
        while self.offset < end {
            let body = self.bytes_from_offset(start, piece).await?;
            match self.patch(body).await {
                Ok(()) => retry.progressed(),
                Err(error) => {
                    let out_of_step = error.status() == Some(StatusCode::RANGE_NOT_SATISFIABLE);
                    if !out_of_step && !is_lost(&error) && !error.is_transient() {
                        return Err(error);
                    }
                    retry.again(error).await?;
                    self.recover(start, out_of_step).await?;
                }
            }
        }
        Ok(())
    }

    /// What the registry needs next: from the piece in hand, or from before it.
    async fn bytes_from_offset(&mut self, start: u64, piece: &Bytes) -> Result<Bytes, Error> {
        if let Some(inside) = self.offset.checked_sub(start) {
            return Ok(piece.slice(usize::try_from(inside).unwrap_or(usize::MAX)..));
        }
        match &mut self.keep {
            Keep::Spool(spool) => spool.read(self.offset, self.piece_bytes).await,
            _ => Err(self.lost(start, format!("it has {} of them", self.offset))),
        }
    }

    async fn patch(&mut self, body: Bytes) -> Result<(), Error> {
        let target = self.target(Method::PATCH);
        let len = body.len() as u64;
        let range = format!("{}-{}", self.offset, self.offset + len - 1);
        let mut exchange = Exchange::new(Method::PATCH, self.location.clone());
        exchange.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        exchange.headers.insert(CONTENT_RANGE, header_value(&target, &range)?);
        exchange.body = Some(body);
        let good = [StatusCode::ACCEPTED, StatusCode::CREATED, StatusCode::NO_CONTENT];
        let response = self.call(&target, exchange, &good).await?;
        let reached = received(&target, &response)?.unwrap_or(self.offset + len);
        if reached <= self.offset || reached > self.offset + len {
            let reason = format!("after bytes {range} the registry says it has {reached} bytes");
            return Err(Error::protocol(&target, reason));
        }
        self.relocate(&response)?;
        self.offset = reached;
        Ok(())
    }

    async fn commit(&mut self, target: &Target, digest: &Digest, body: Bytes) -> Result<(), Error> {
        let mut url = self.location.clone();
        url.query_pairs_mut().append_pair("digest", digest.as_ref());
        let mut exchange = Exchange::new(Method::PUT, url);
        exchange.patience = Some(self.client.config().timeouts.commit);
        if !body.is_empty() {
            exchange.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            exchange.body = Some(body);
        }
        let good = [StatusCode::CREATED, StatusCode::NO_CONTENT, StatusCode::OK];
        self.call(target, exchange, &good).await.map(drop)
    }

    /// Finds out how far the registry is, and begins again if it lost the upload. `start` is the first byte that is
    /// still in memory; `out_of_step` that the registry refused the offset assumed.
    async fn recover(&mut self, start: u64, out_of_step: bool) -> Result<(), Error> {
        let kept = start == 0 || matches!(self.keep, Keep::Spool(_));
        let location = self.location.clone();
        match self.status(&location).await {
            Ok(response) => {
                let target = self.target(Method::GET);
                let reported = received(&target, &response)?.unwrap_or(0);
                // "0-0" means one byte and, with CNCF distribution, also none: the other one if the first was refused.
                let reported = match reported {
                    1 if !(out_of_step && self.offset == 0) => 0,
                    reported => reported,
                };
                if reported < start && !kept {
                    return Err(self.lost(start, format!("it says it has {reported}")));
                }
                self.relocate(&response)?;
                self.offset = reported;
                tracing::info!(repository = %self.repository, offset = reported, "resuming upload");
                Ok(())
            }
            // Any refusal: the upload as we know it cannot go on.
            Err(error) if error.status().is_some() && !error.is_transient() && !error.is_denied() => {
                if !kept {
                    return Err(self.lost(start, error.to_string()));
                }
                tracing::info!(repository = %self.repository, "the registry lost the upload, sending it again");
                self.location = self::start(&self.client, &self.repository, &self.scopes).await?.location;
                self.offset = 0;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Asks how far the upload is.
    async fn status(&self, location: &Url) -> Result<Response, Error> {
        let target = self.target(Method::GET);
        let good = [StatusCode::NO_CONTENT, StatusCode::OK, StatusCode::ACCEPTED];
        let location = location.clone();
        let question = |_: &_| Ok(Exchange::new(Method::GET, location.clone()));
        self.client.small(&target, &self.scopes, &good, question).await
    }

    async fn call(
        &self,
        target: &Target,
        mut exchange: Exchange,
        good: &[StatusCode],
    ) -> Result<Response, Error> {
        let transport = &self.client.transport;
        exchange.lane = Some(Arc::clone(&self.lane));
        let endpoint = transport.origin(self.repository.host());
        transport.call_expecting(target, &endpoint, &self.scopes, exchange, good).await
    }

    fn relocate(&mut self, response: &Response) -> Result<(), Error> {
        // Each answer may name a new place; one without a name keeps the old.
        if response.header(http::header::LOCATION).is_some() {
            self.location = response.location()?;
        }
        Ok(())
    }

    fn lost(&self, acknowledged: u64, reason: String) -> Error {
        Error::UploadLost { target: Box::new(self.target(Method::PATCH)), acknowledged, reason }
    }
}

/// The blob cannot be kept while it is pushed: its push goes on without.
fn unkept(repository: &Repository, error: &Error) -> Keep {
    tracing::warn!(%error, %repository, "a blob is pushed without a copy: if its connection breaks, the push fails");
    Keep::No
}

/// An upload that the registry has begun.
struct Begun {
    location: Url,
    piece_bytes: usize,
}

async fn start(client: &Client, repository: &Repository, scopes: &Scopes) -> Result<Begun, Error> {
    let target = Target::new(Method::POST, repository, "blob upload");
    let response = client
        .small(&target, scopes, &[StatusCode::ACCEPTED], |endpoint| {
            Ok(Exchange::new(Method::POST, endpoint.url(&target, repository, "blobs/uploads/")?))
        })
        .await?;
    let least = response.header(MIN_LENGTH_HEADER).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if least > LONGEST_PIECE_BYTES {
        let reason = format!(
            "the registry takes pieces of {least} bytes or more, at most {LONGEST_PIECE_BYTES} are sent"
        );
        return Err(Error::protocol(&target, reason));
    }
    let piece_bytes = client.config().upload.piece_bytes.max(least);
    Ok(Begun { location: response.location()?, piece_bytes })
}

/// Cancels the upload at `location`; failure is only noted.
pub(super) async fn abandon(client: &Client, repository: &Repository, location: Url) {
    let target = Target::new(Method::DELETE, repository, "blob upload");
    let endpoint = client.transport.origin(repository.host());
    let good = [StatusCode::NO_CONTENT, StatusCode::ACCEPTED, StatusCode::OK];
    let exchange = Exchange::new(Method::DELETE, location);
    let scopes = Scopes::push(repository.name());
    let call = client.transport.call_expecting(&target, &endpoint, &scopes, exchange, &good);
    match tokio::time::timeout(client.config().timeouts.idle, call).await {
        Ok(Err(error)) => tracing::debug!(%error, "upload not cancelled at the registry"),
        Err(_) => tracing::debug!(%target, "upload not cancelled at the registry: no answer"),
        Ok(Ok(_)) => {}
    }
}

/// Whether the registry says that it does not know the upload, or not in this state.
fn is_lost(error: &Error) -> bool {
    match error {
        Error::Status { status, message, .. } => {
            matches!(*status, StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::GONE)
                || message.has("BLOB_UPLOAD_UNKNOWN")
                || message.has("BLOB_UPLOAD_INVALID")
        }
        _ => false,
    }
}

/// The number of bytes that the answer's `Range` says have arrived.
fn received(target: &Target, response: &Response) -> Result<Option<u64>, Error> {
    let Some(text) = response.header(RANGE) else { return Ok(None) };
    match received_bytes(text) {
        Some(len) => Ok(Some(len)),
        None => Err(Error::protocol(target, format!("upload status with Range {text:?}"))),
    }
}

/// The number of bytes that `0-LAST` means.
pub(in crate::client) fn received_bytes(text: &str) -> Option<u64> {
    let range = text.strip_prefix("bytes=").unwrap_or(text);
    let (first, last) = range.split_once('-')?;
    if first == "0" { last.parse::<u64>().ok()?.checked_add(1) } else { None }
}
