//! A tar stream of an OCI layout, as buildkitd sends it by `FileSend/DiffCopy`: byte messages of 32 KiB. Blobs come in any
//! order, so the image is put together when all have come; buildkitd waits for our answer.

mod split;

use std::time::SystemTime;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::Request;
use prost::Message;
use registry::digest::Digest;

use crate::build::ingest::Ingest;
use crate::build::{Build, Output, OutputError};
use crate::client::BytesMessage;
use crate::grpc::frame::MessageReader;
use crate::grpc::{Code, Status};
use crate::http2::pump::until_reset;
use crate::http2::respond;
use split::{Event, TarSplitter};

const MESSAGE_LIMIT_BYTES: usize = 16 << 20;

/// Where blobs are in an OCI layout.
const BLOBS: &str = "blobs/sha256/";
/// The document that names the root.
const INDEX: &str = "index.json";
/// `index.json` names one image; this is far more than that takes.
const INDEX_LIMIT_BYTES: u64 = 1 << 20;

/// Serves one stream.
pub(crate) async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    build: &Build,
    output: &Output,
) {
    let Ok(mut send) = respond.send_response(respond::head(), false) else { return };
    let reader = MessageReader::new(request.into_body(), MESSAGE_LIMIT_BYTES);
    let status = tokio::select! {
        received = receive(reader, &mut send, build, output) => match received {
            Ok(()) => Status::new(Code::Ok, ""),
            Err(status) => status,
        },
        () = build.over.cancelled() => Status::new(Code::Cancelled, "the build is over"),
    };
    respond::finish(&mut send, &status);
}

async fn receive(
    mut reader: MessageReader,
    send: &mut SendStream<Bytes>,
    build: &Build,
    output: &Output,
) -> Result<(), Status> {
    let mut layout = Layout::new(output);
    while let Some(message) = until_reset(send, reader.message()).await.map_err(|error| error.status())?? {
        let message = BytesMessage::decode(message)
            .map_err(|error| Status::new(Code::InvalidArgument, format!("BytesMessage: {error}")))?;
        let taken = until_reset(send, layout.take(message.data)).await.map_err(|error| error.status())?;
        taken.map_err(|error| super::fail(build, &error))?;
    }
    let finished = until_reset(send, layout.finish()).await.map_err(|error| error.status())?;
    finished.map_err(|error| super::fail(build, &error))
}

/// An OCI layout on its way into an output.
struct Layout<'a> {
    output: &'a Output,
    splitter: TarSplitter,
    current: Current<'a>,
    index: Vec<u8>,
    started: SystemTime,
}

enum Current<'a> {
    Nothing,
    Index,
    Blob(Box<Ingest<'a>>),
}

impl<'a> Layout<'a> {
    fn new(output: &'a Output) -> Self {
        let (splitter, current) = (TarSplitter::default(), Current::Nothing);
        Self { output, splitter, current, index: Vec::new(), started: SystemTime::now() }
    }

    async fn take(&mut self, data: Bytes) -> Result<(), OutputError> {
        self.splitter.push(data);
        while let Some(event) = self.splitter.next()? {
            match event {
                Event::Begin { name, size } => self.begin(&name, size)?,
                Event::Data(data) => match &mut self.current {
                    Current::Nothing => {}
                    Current::Index => self.index.extend_from_slice(&data),
                    Current::Blob(ingest) => ingest.write(data).await?,
                },
                Event::End => {
                    if let Current::Blob(ingest) = std::mem::replace(&mut self.current, Current::Nothing) {
                        ingest.commit().await?;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, name: &str, size: u64) -> Result<(), OutputError> {
        self.current = match name.strip_prefix(BLOBS).filter(|hex| !hex.is_empty()) {
            Some(hex) => {
                let digest: Digest = format!("sha256:{hex}").parse().map_err(|_| OutputError::Layout {
                    reason: format!("{name:?}: expected a SHA-256 in hexadecimal as its name"),
                })?;
                Current::Blob(Box::new(Ingest::new(self.output, digest, size, None)?))
            }
            None if name == INDEX && size <= INDEX_LIMIT_BYTES => Current::Index,
            None if name == INDEX => {
                return Err(OutputError::Layout {
                    reason: format!("{INDEX} has {size} bytes: expected at most {INDEX_LIMIT_BYTES}"),
                });
            }
            None => Current::Nothing,
        };
        Ok(())
    }

    async fn finish(self) -> Result<(), OutputError> {
        if self.splitter.is_inside_entry() {
            return Err(OutputError::Layout { reason: "the tar stream ended inside an entry".to_owned() });
        }
        tracing::debug!(elapsed = ?self.started.elapsed().unwrap_or_default(), "OCI layout received");
        self.output.convert_from(&self.index).await
    }
}
