//! What a worker asks the front for, since it cannot have it itself.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::sync::oneshot;

use super::message::{FromWorker, Question, WorkerAnswer};
use super::wire::Sender;
use crate::control::{BackendSpec, BlobId};
use crate::worker::{Backend, BackendError};

type AnswerParts = (WorkerAnswer, Option<OwnedFd>);

/// Asks the front.
pub(super) struct FrontClient {
    sender: Arc<Sender>,
    open: Mutex<OpenQuestions>,
}

#[derive(Default)]
struct OpenQuestions {
    next: u64,
    questions: HashMap<u64, oneshot::Sender<AnswerParts>>,
}

impl FrontClient {
    pub(super) fn new(sender: Arc<Sender>) -> Self {
        Self { sender, open: Mutex::default() }
    }

    /// The answer to a question. Who asks has a deadline.
    pub(super) async fn ask(&self, question: Question) -> io::Result<AnswerParts> {
        let (answered, answer) = oneshot::channel();
        let number = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            // Of those who have given up nothing is left.
            open.questions.retain(|_, waiting| !waiting.is_closed());
            open.next += 1;
            let number = open.next;
            open.questions.insert(number, answered);
            number
        };
        self.sender.send(&FromWorker::Ask { number, question }, None);
        answer.await.map_err(|_| io::Error::other("the daemon did not answer"))
    }

    pub(super) fn answered(&self, number: u64, answer: WorkerAnswer, file: Option<OwnedFd>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = open.questions.remove(&number) {
            let _ = waiting.send((answer, file));
        }
    }
}

/// A directory of blobs that the front opens files in.
pub(super) struct PassedDirectory {
    pub(super) asker: Arc<FrontClient>,
    pub(super) path: PathBuf,
}

impl PassedDirectory {
    async fn open(
        asker: Arc<FrontClient>,
        directory: PathBuf,
        blob: BlobId,
        range: Range<u64>,
    ) -> Result<(File, u64), BackendError> {
        let path = directory.join(blob.0.to_string());
        let failed = |source| BackendError::File { path, range, source };
        match asker.ask(Question::File { directory, blob }).await {
            Ok((WorkerAnswer::File { bytes }, Some(file))) => Ok((file.into(), bytes)),
            Ok((WorkerAnswer::Refused { reason }, _)) => Err(failed(io::Error::other(reason))),
            Ok(_) => Err(failed(io::Error::other("the daemon sent no file"))),
            Err(error) => Err(failed(error)),
        }
    }
}

impl Backend for PassedDirectory {
    fn name(&self) -> String {
        BackendSpec::Directory { path: self.path.clone() }.to_string()
    }

    fn size(&self, blob: BlobId) -> BoxFuture<'_, Result<u64, BackendError>> {
        let open = Self::open(Arc::clone(&self.asker), self.path.clone(), blob, 0..0);
        async { open.await.map(|(_, bytes)| bytes) }.boxed()
    }

    fn read(&self, blob: BlobId, range: Range<u64>) -> BoxStream<'static, Result<Bytes, BackendError>> {
        let open = Self::open(Arc::clone(&self.asker), self.path.clone(), blob, range.clone());
        let path = self.path.join(blob.0.to_string());
        let read = async move {
            let (file, bytes) = open.await?;
            let wanted = range.clone();
            tokio::task::spawn_blocking(move || read_file(&file, bytes, &wanted))
                .await
                .unwrap_or_else(|panic| Err(io::Error::other(panic)))
                .map_err(|source| BackendError::File { path, range, source })
        };
        futures::stream::once(read).boxed()
    }
}

fn read_file(file: &File, bytes: u64, range: &Range<u64>) -> io::Result<Bytes> {
    if range.end > bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let len = usize::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
    let mut read = vec![0; len];
    file.read_exact_at(&mut read, range.start)?;
    Ok(read.into())
}
