//! Several credentials for one registry: each is tried, and the one that is taken is kept.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use registry::client::{AccessSource, Client, Credentials, Error, Found, Place, RepositoryAccess};
use registry::digest::Digest;
use registry::reference::Repository;
use tracing::{debug, info};

use crate::daemon::describe;

/// How long one trial may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// So begins the origin of what is shown although all candidates were refused.
const REFUSED: &str = "refused: ";

/// The first of `candidates` with which `place` says that it has `blob`. If none does, the first with which it at least
/// says that it has not; else the first of all. Where nothing can be found out the first stays. To whom it does not know a registry
/// says of what it hides as well that it has not: that counts as refused where it refuses others.
pub(super) async fn best(
    client: &Client,
    repository: &Repository,
    place: &Place,
    candidates: Vec<Found>,
    blob: &Digest,
) -> Found {
    let (mut lacking, mut refused) = (None, Vec::new());
    for candidate in &candidates {
        match attempt(client, repository, place, candidate, blob).await {
            Some(Ok(Some(_))) => {
                info!(%repository, host = place.host, origin = candidate.origin, "these credentials are taken");
                return candidate.clone();
            }
            Some(Ok(None)) if !refused.is_empty() && candidate.credentials == Credentials::Anonymous => {
                refused.push(candidate.origin.clone());
            }
            Some(Ok(None)) => lacking = lacking.or(Some(candidate.clone())),
            Some(Err(error)) if error.is_denied() => refused.push(candidate.origin.clone()),
            Some(Err(error)) => {
                debug!(%repository, error = describe(&error), "credentials cannot be tried");
                break;
            }
            None => {
                debug!(%repository, host = place.host, "credentials cannot be tried in time");
                break;
            }
        }
    }
    if let Some(lacking) = lacking {
        return lacking;
    }
    let everybody = refused.len() == candidates.len();
    let Some(first) = candidates.into_iter().next() else { return place.credentials.clone() };
    if everybody { Found { origin: format!("{REFUSED}{}", refused.join("; ")), ..first } } else { first }
}

/// What was shown last, as a candidate.
pub(super) fn again(last: &Found) -> Found {
    // The list of all that were refused with it would grow with each trial.
    let origin = if last.origin.starts_with(REFUSED) { "what was shown last" } else { last.origin.as_str() };
    Found { credentials: last.credentials.clone(), origin: origin.to_owned() }
}

/// What the registry says of the blob to these credentials.
async fn attempt(
    client: &Client,
    repository: &Repository,
    place: &Place,
    candidate: &Found,
    blob: &Digest,
) -> Option<Result<Option<u64>, Error>> {
    let place = Place { credentials: candidate.clone(), ..place.clone() };
    let only = Arc::new(Only(Arc::new(RepositoryAccess { places: vec![place] })));
    let client = client.with_access(only);
    tokio::time::timeout(DEADLINE, client.blob_size(repository, blob)).await.ok()
}

/// One way to read, whatever is asked for.
struct Only(Arc<RepositoryAccess>);

impl AccessSource for Only {
    fn access(&self, _registry: &str, _repository: &str) -> Option<Arc<RepositoryAccess>> {
        Some(Arc::clone(&self.0))
    }

    fn renew<'a>(&'a self, _registry: &'a str, _repository: &'a str) -> BoxFuture<'a, ()> {
        futures::future::ready(()).boxed()
    }
}
