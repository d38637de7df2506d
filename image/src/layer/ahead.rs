//! Conversions of layers of which it is not known yet whose they are: what they become stays on this machine until then.

use std::io::{BufWriter, Read};
use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};
use std::thread;

use futures::FutureExt as _;
use futures::future::try_join;
use rustix::process::nice;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::conversion::{Built, BuiltLayer, ConvertError, MadeBlob, build};
use super::slot::Slot;
use crate::destination::{Destination, SpoolSpace, SpoolWriter, SpooledBlob};
use crate::options::Recipe;

/// Writes to the file are gathered to this size.
const WRITE_BYTES: usize = 256 << 10;

/// How much its threads yield to others' (`nice`): a quarter of a core that it shares with one of them. Who writes the layer comes to
/// its end sooner, and what there is of the blob can be sent while the rest is made.
const NICENESS: i32 = 5;

/// A conversion under way of which nothing is sent before somebody says where; dropping it cancels it.
pub struct AheadConversion<R> {
    /// Its blob, once it has a slot.
    blob: Arc<OnceLock<SpooledBlob>>,
    task: AbortOnDropHandle<Result<BuiltLayer<R>, ConvertError>>,
}

impl<R: Read + Send + 'static> AheadConversion<R> {
    pub(super) fn start(
        recipe: Arc<Recipe>,
        slots: Arc<Semaphore>,
        space: Arc<SpoolSpace>,
        input: R,
    ) -> Self {
        let blob = Arc::new(OnceLock::new());
        let begun = Arc::clone(&blob);
        let task = tokio::spawn(async move {
            let _slot = Slot::take(slots).await;
            let (writer, blob) = space.begin().await?;
            // There is one task.
            _ = begun.set(blob.clone());
            drop(begun);
            let building = tokio::task::spawn_blocking(move || spool(&recipe, input, writer));
            Ok(BuiltLayer { blob: MadeBlob::Spooled(blob), built: building.await?? })
        });
        Self { blob, task: AbortOnDropHandle::new(task) }
    }

    /// Whether it has a slot; until then it waits for others to end.
    pub fn has_begun(&self) -> bool {
        self.blob.get().is_some()
    }

    /// The layer belongs to `destination`: sends there what there is of its blob, and the rest while it is made. Waits until the
    /// input has ended.
    pub async fn built_for(self, destination: Arc<dyn Destination>) -> Result<BuiltLayer<R>, ConvertError> {
        let Self { blob, task } = self;
        let building = blob.get().filter(|blob| !blob.is_complete()).cloned();
        drop(blob);
        // One that is complete has its digest: it need not be sent where it is already.
        let Some(blob) = building else { return task.await? };
        let sending = async move { blob.send(destination.as_ref()).await.map_err(ConvertError::from) };
        // A destination that refuses does so at once. A conversion that fails has given up its blob, which ends the sending.
        let (sent, built) = try_join(sending.boxed(), task.map(Ok)).await?;
        let built = match built {
            Ok(built) => built,
            Err(error) => Err(error.into()),
        };
        match (sent, built) {
            (Some(writer), Ok(built)) => Ok(BuiltLayer { blob: MadeBlob::Sent(writer), ..built }),
            (Some(writer), Err(error)) => {
                writer.cancel().await;
                Err(error)
            }
            (None, built) => built,
        }
    }

    /// Nobody wants the layer: waits until what was made of it is given up, for which its input has to end.
    pub async fn cancel(self) {
        if !self.has_begun() {
            return;
        }
        let Self { blob, task } = self;
        drop(blob);
        if let Ok(Err(error)) = task.await {
            tracing::debug!(%error, "conversion ahead ended");
        }
    }
}

/// Builds the layer into `writer`; runs on a thread that may block.
fn spool<R: Read + Send>(
    recipe: &Recipe,
    input: R,
    mut writer: SpoolWriter,
) -> Result<Built<R>, ConvertError> {
    let runtime = Handle::current();
    // A thread of its own, which those of the builder take their niceness from: it cannot be taken back from one that is used again.
    let built = thread::scope(|scope| {
        let building = scope.spawn(|| {
            let _context = runtime.enter();
            // Best effort: it is a matter of speed.
            let _ = nice(NICENESS);
            build(recipe.build(), input, BufWriter::with_capacity(WRITE_BYTES, &mut writer))
        });
        building.join().unwrap_or_else(|panic| resume_unwind(panic))
    });
    match built {
        Ok(built) => {
            writer.complete();
            Ok(built)
        }
        // What the builder says of it follows from it.
        Err(error) => Err(writer.into_failure().map_or(error, ConvertError::from)),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;
    use std::sync::mpsc;
    use std::time::Duration;

    use test_support::{noise, tar_of};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;
    use crate::layer::watched::WatchedDestination;

    const DEADLINE: Duration = Duration::from_secs(60);

    /// Bytes of a file in a layer.
    const FILE_BYTES: usize = 8 << 20;

    /// A tar that comes in pieces, until there are no more.
    struct Coming {
        pieces: mpsc::Receiver<Vec<u8>>,
        piece: io::Cursor<Vec<u8>>,
    }

    impl Read for Coming {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            loop {
                match self.piece.read(out)? {
                    0 => match self.pieces.recv() {
                        Ok(piece) => self.piece = io::Cursor::new(piece),
                        Err(_) => return Ok(0),
                    },
                    length => return Ok(length),
                }
            }
        }
    }

    /// A layer with a file that does not compress, in two halves.
    fn halves() -> (Vec<u8>, Vec<u8>) {
        let mut first = tar_of(&[("noise", &noise(1, FILE_BYTES))]);
        let second = first.split_off(FILE_BYTES / 2);
        (first, second)
    }

    fn begin(dir: &Path) -> (mpsc::Sender<Vec<u8>>, AheadConversion<Coming>) {
        let (sender, pieces) = mpsc::channel();
        let input = Coming { pieces, piece: io::Cursor::default() };
        let (slots, space) = (Arc::new(Semaphore::new(1)), SpoolSpace::new(dir, 1 << 30));
        (sender, AheadConversion::start(Arc::default(), slots, space, input))
    }

    /// Waits until something has been made of the layer.
    async fn made(conversion: &AheadConversion<Coming>) {
        let made = async {
            while conversion.blob.get().is_none_or(|blob| blob.size() == 0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, made).await.expect("something is made");
    }

    /// Says where a layer belongs of which something is made, and waits until some of it is there.
    async fn sent(
        conversion: AheadConversion<Coming>,
    ) -> (WatchedDestination, JoinHandle<Result<BuiltLayer<Coming>, ConvertError>>) {
        made(&conversion).await;
        let watched = WatchedDestination::new();
        let mut arrived = watched.watch();
        let destination = Arc::new(watched.clone());
        let building = tokio::spawn(async move { conversion.built_for(destination).await });
        let some = arrived.wait_for(|arrived| arrived.bytes > 0);
        timeout(DEADLINE, some).await.expect("it is sent before its input has ended").unwrap();
        (watched, building)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_layer_is_sent_while_it_is_made_once_it_is_known_where_it_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, conversion) = begin(dir.path());
        let (first, second) = halves();
        sender.send(first).unwrap();
        let (watched, building) = sent(conversion).await;
        sender.send(second).unwrap();
        drop(sender);
        let built = timeout(DEADLINE, building).await.unwrap().unwrap().unwrap();
        let layer = built.store(&watched).await.unwrap();
        assert!(layer.size > FILE_BYTES as u64);
        assert_eq!(layer.size, layer.layer.blobs[0].stored_size);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_sent_of_a_layer_that_breaks_off_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, conversion) = begin(dir.path());
        sender.send(halves().0).unwrap();
        let (watched, building) = sent(conversion).await;
        drop(sender);
        let built = timeout(DEADLINE, building).await.unwrap().unwrap();
        assert!(matches!(built.err(), Some(ConvertError::Build(_))));
        assert!(watched.watch().borrow().given_up);
    }
}
