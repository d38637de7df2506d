//! The gRPC face: `containerd.services.snapshots.v1.Snapshots`. Translation alone, no logic.

#[expect(unreachable_pub, reason = "the generated code makes its messages public")]
mod commit;
mod convert;
mod serve;
mod status;

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Instrument;

pub(crate) use serve::serve;

use crate::containerd::{Caller, NAMESPACE};
use crate::filter::Filters;
use crate::snapshots::Snapshotter;
use api::messages::{
    CleanupRequest, CommitSnapshotRequest, Empty, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest,
    MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use api::snapshots_server::Snapshots;
use convert::{info, label_update, labels, mounts, parent};

/// The generated server and the messages it takes.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod api {
    /// The messages, from containerd's definitions.
    pub mod messages {
        pub use containerd_client::services::v1::snapshots::*;

        pub use super::super::commit::CommitSnapshotRequest;

        /// `google.protobuf.Empty`.
        pub type Empty = ();
    }

    include!(concat!(env!("OUT_DIR"), "/containerd.services.snapshots.v1.Snapshots.rs"));
}

/// The service.
pub(crate) struct Service {
    snapshotter: Arc<Snapshotter>,
}

type GrpcAnswer<T> = Result<Response<T>, Status>;

/// Who called.
fn caller<T>(request: &Request<T>, key: &str, snapshotter: &str) -> Caller {
    let namespace = request.metadata().get(NAMESPACE).and_then(|value| value.to_str().ok());
    Caller::of(key, namespace, snapshotter)
}

/// A span for one call.
fn span(call: &'static str, key: &str) -> tracing::Span {
    tracing::info_span!("snapshots", call, key)
}

#[tonic::async_trait]
impl Snapshots for Service {
    type ListStream = ReceiverStream<Result<ListSnapshotsResponse, Status>>;

    async fn prepare(&self, request: Request<PrepareSnapshotRequest>) -> GrpcAnswer<PrepareSnapshotResponse> {
        let span = span("prepare", &request.get_ref().key);
        let caller = caller(&request, &request.get_ref().key, &request.get_ref().snapshotter);
        let PrepareSnapshotRequest { key, parent: on, labels: with, .. } = request.into_inner();
        let made = self.snapshotter.prepare(&caller, key, parent(on), labels(with)).instrument(span).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts: mounts(made) }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> GrpcAnswer<ViewSnapshotResponse> {
        let span = span("view", &request.get_ref().key);
        let caller = caller(&request, &request.get_ref().key, &request.get_ref().snapshotter);
        let ViewSnapshotRequest { key, parent: on, labels: with, .. } = request.into_inner();
        let made = self.snapshotter.view(&caller, key, parent(on), labels(with)).instrument(span).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts: mounts(made) }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> GrpcAnswer<MountsResponse> {
        let span = span("mounts", &request.get_ref().key);
        let caller = caller(&request, &request.get_ref().key, &request.get_ref().snapshotter);
        let made = self.snapshotter.mounts(&caller, request.into_inner().key).instrument(span).await?;
        Ok(Response::new(MountsResponse { mounts: mounts(made) }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> GrpcAnswer<Empty> {
        let span = span("commit", &request.get_ref().key);
        let CommitSnapshotRequest { name, key, labels: with, parent: on, .. } = request.into_inner();
        self.snapshotter.commit(name, key, parent(on), labels(with)).instrument(span).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> GrpcAnswer<Empty> {
        let span = span("remove", &request.get_ref().key);
        self.snapshotter.remove(request.into_inner().key).instrument(span).await?;
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> GrpcAnswer<StatSnapshotResponse> {
        let key = request.into_inner().key;
        let record = self.snapshotter.stat(key.clone()).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info(key, record)) }))
    }

    async fn update(&self, request: Request<UpdateSnapshotRequest>) -> GrpcAnswer<UpdateSnapshotResponse> {
        let (key, update) = label_update(request.into_inner())?;
        let record = self.snapshotter.update(key.clone(), update).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info(key, record)) }))
    }

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> GrpcAnswer<Self::ListStream> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(crate::Error::from)?;
        let (answers, stream) = mpsc::channel(1);
        let snapshotter = Arc::clone(&self.snapshotter);
        tokio::spawn(async move {
            let blocks = answers.clone();
            let send = move |block: Vec<_>| {
                let info = block.into_iter().map(|(key, record)| info(key, record)).collect();
                blocks.blocking_send(Ok(ListSnapshotsResponse { info })).is_ok()
            };
            if let Err(error) = snapshotter.list(filters, send).await {
                // A client that is gone needs no answer.
                let _ = answers.send(Err(error.into())).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> GrpcAnswer<UsageResponse> {
        let usage = self.snapshotter.usage(request.into_inner().key).await?;
        Ok(Response::new(UsageResponse { size: usage.size, inodes: usage.inodes }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> GrpcAnswer<Empty> {
        self.snapshotter.cleanup().await?;
        Ok(Response::new(()))
    }
}
