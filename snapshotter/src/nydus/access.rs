//! Whether this node may read an image's blobs, asked while containerd still pulls it.
//!
//! containerd fetches the bootstrap alone, with credentials and mirrors of its own. If the blobs are out of reach for us,
//! that has to be known before a container starts and reads them. So the registry is asked for all of them when the first
//! layer comes, at the same time, and the answers are awaited when the bootstrap comes, the last layer.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use registry::client::Client;
use registry::digest::Digest;
use registry::nydus::{LABEL_CRI_IMAGE_LAYERS, LABEL_CRI_IMAGE_REF, LABEL_CRI_LAYER_DIGEST};
use registry::reference::Reference;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use crate::broker::Broker;
use crate::daemon::describe;
use crate::error::Error;
use crate::state::Labels;

/// Images that are being pulled. A pull that ends early leaves its answers behind.
const REMEMBERED: usize = 64;
/// Questions to one registry at the same time, over all images: where it does not answer, others are asked all the same.
const AT_ONCE: usize = 16;
/// How long a pull waits for answers. A registry that is slow now may not be when a container reads.
const PATIENCE: Duration = Duration::from_secs(20);

/// What registries were asked.
pub(crate) struct Access {
    broker: Arc<Broker>,
    client: Client,
    asked: Mutex<HashMap<String, Answers>>,
    /// By registry, as long as something is asked of it.
    permits: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// The answers for one image, by blob, each possibly still to come.
type Answers = HashMap<Digest, AbortOnDropHandle<Result<(), Refusal>>>;

/// Why a blob cannot be read.
#[derive(Debug)]
enum Refusal {
    /// The registry does not allow it, or does not have it.
    Final(String),
    /// No answer that says so.
    Unknown(String),
}

impl Access {
    pub(crate) fn new(broker: Arc<Broker>) -> Self {
        let client = broker.reader();
        Self { broker, client, asked: Mutex::default(), permits: Mutex::default() }
    }

    /// Begins to ask for the blobs that a data layer's labels name: those of this layer and all above, as far as the list
    /// is not cut.
    pub(crate) fn ask(&self, labels: &Labels) {
        let Some((image, reference)) = image_of(labels) else { return };
        let layers = labels.get(LABEL_CRI_IMAGE_LAYERS).map(|layers| digests(layers.split(',')));
        let mut asked = self.asked();
        if asked.len() >= REMEMBERED && !asked.contains_key(image) {
            asked.clear();
        }
        let answers = asked.entry(image.to_owned()).or_default();
        self.ask_for(answers, &reference, layers.into_iter().flatten());
    }

    /// Waits for the answers when an image's bootstrap comes, whose data layers are `blobs`. An image is refused where its
    /// registry says that it does not give them.
    pub(crate) async fn check(&self, labels: &Labels, blobs: BTreeSet<String>) -> Result<(), Error> {
        let Some((image, reference)) = image_of(labels) else { return Ok(()) };
        let mut answers = self.asked().remove(image).unwrap_or_default();
        self.ask_for(&mut answers, &reference, digests(blobs.iter().map(String::as_str)));
        // The bootstrap itself is containerd's to fetch.
        let bootstrap = labels.get(LABEL_CRI_LAYER_DIGEST);
        answers.retain(|digest, _| Some(digest.as_ref()) != bootstrap.map(String::as_str));
        let waiting = async {
            for (blob, answer) in answers {
                match answer.await {
                    Ok(Ok(())) => {}
                    Ok(Err(Refusal::Final(message))) => {
                        return Err(Error::BlobRefused { image: image.to_owned(), message });
                    }
                    Ok(Err(Refusal::Unknown(problem))) => {
                        warn!(image, %blob, problem, "cannot tell whether a blob can be read");
                    }
                    Err(error) => warn!(image, %blob, %error, "asking for a blob ended in a bug"),
                }
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| {
            warn!(image, "the registry did not say in time whether its blobs can be read");
            Ok(())
        })
    }

    fn ask_for(&self, answers: &mut Answers, reference: &Reference, blobs: impl Iterator<Item = Digest>) {
        for blob in blobs {
            answers.entry(blob.clone()).or_insert_with(|| {
                let (client, permits) = (self.client.clone(), self.permits_of(reference.host()));
                let broker = Arc::clone(&self.broker);
                let repository = reference.repository().clone();
                let asking = async move {
                    let _permit = permits.acquire_owned().await;
                    // With what there is now: the pod that it is pulled for may just have come with its secrets.
                    broker.find_out(&repository, Some(&blob)).await;
                    let answer = client.blob_size(&repository, &blob).await;
                    debug!(%blob, found = answer.is_ok(), "asked for a blob");
                    // Without credentials that cannot be read now a refusal says nothing, and registries say as well that they
                    // do not have what one may not see.
                    let refused = |answer: String| match broker.failure(&repository) {
                        None => Refusal::Final(answer),
                        Some(failure) => Refusal::Unknown(format!("{answer}; {failure}")),
                    };
                    match answer {
                        Ok(Some(_)) => Ok(()),
                        Ok(None) => Err(refused(format!(
                            "registry {}, repository {}: HEAD blob {blob}: 404 Not Found",
                            repository.host(),
                            repository.name()
                        ))),
                        Err(error) if error.is_not_found() || error.is_denied() => {
                            Err(refused(describe(&error)))
                        }
                        Err(error) => Err(Refusal::Unknown(describe(&error))),
                    }
                };
                AbortOnDropHandle::new(tokio::spawn(asking))
            });
        }
    }

    fn permits_of(&self, registry: &str) -> Arc<Semaphore> {
        let mut known = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(permits) = known.get(registry).and_then(Weak::upgrade) {
            return permits;
        }
        known.retain(|_, permits| permits.strong_count() > 0);
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        known.insert(registry.to_owned(), Arc::downgrade(&permits));
        permits
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<String, Answers>> {
        // A map stays whole whatever its user does.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The image that is being pulled, where labels say so. Without the list of layers it is no pull.
fn image_of(labels: &Labels) -> Option<(&String, Reference)> {
    labels.get(LABEL_CRI_IMAGE_LAYERS)?;
    let image = labels.get(LABEL_CRI_IMAGE_REF)?;
    Some((image, Reference::parse(image).ok()?))
}

fn digests<'t>(texts: impl Iterator<Item = &'t str>) -> impl Iterator<Item = Digest> {
    texts.filter_map(|text| text.trim().parse().ok())
}
