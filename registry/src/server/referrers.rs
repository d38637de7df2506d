//! Which manifests have which subject.
//!
//! CNCF distribution's layout has no place for this, so it is found by reading the repository's manifests, once,
//! and kept up to date after that: nothing on disk can be missing or wrong after another registry had the folder.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http::header::HeaderName;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::error::Failure;
use super::manifests::Manifest;
use super::reply::Reply;
use super::request::Head;
use super::storage::Storage;
use super::{ServerState, blocking};
use crate::digest::Digest;
use crate::media_types::OCI_INDEX;

const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// An entry of the list.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    media_type: String,
    digest: String,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Map<String, Value>>,
}

/// How many repositories' referrers are kept, and how many bytes in all.
const KEPT_REPOSITORIES: usize = 256;
const KEPT_BYTES: usize = 32 << 20;

/// What is kept of a manifest has this, and what was taken over from it: that is no more than it is long.
const ENTRY_BYTES: usize = 500;

/// Referrers by the subject's digest.
type BySubject = HashMap<String, Vec<Referrer>>;

/// Referrers by repository: of those that were asked about last.
#[derive(Default)]
pub(super) struct Referrers(Mutex<Cache>);

#[derive(Default)]
struct Cache {
    repositories: HashMap<String, Kept>,
    /// Counts look-ups: what has the smallest number was used longest ago.
    clock: u64,
}

struct Kept {
    list: Arc<Mutex<List>>,
    used: u64,
    /// How many bytes its referrers had when they were last looked at.
    bytes: usize,
}

/// The referrers of one repository. Locked while the repository is read: who asks about it meanwhile waits, who asks about
/// another does not.
#[derive(Default)]
struct List(Option<BySubject>);

impl Cache {
    /// The list of `name`, if it is kept.
    fn get(&mut self, name: &str) -> Option<Arc<Mutex<List>>> {
        self.clock += 1;
        let kept = self.repositories.get_mut(name)?;
        kept.used = self.clock;
        Some(kept.list.clone())
    }

    fn get_or_insert(&mut self, name: &str) -> Arc<Mutex<List>> {
        if let Some(list) = self.get(name) {
            return list;
        }
        let list = Arc::<Mutex<List>>::default();
        let kept = Kept { list: list.clone(), used: self.clock, bytes: 0 };
        self.repositories.insert(name.to_owned(), kept);
        list
    }

    /// Notes that `name` has `bytes` of referrers, and lets go of what was used longest ago while there are too many.
    fn counted(&mut self, name: &str, bytes: usize) {
        if let Some(kept) = self.repositories.get_mut(name) {
            kept.bytes = bytes;
        }
        let mut all: usize = self.repositories.values().map(|kept| kept.bytes).sum();
        while self.repositories.len() > KEPT_REPOSITORIES || all > KEPT_BYTES {
            let oldest = self.repositories.iter().min_by_key(|(_, kept)| kept.used);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { return };
            all -= self.repositories.remove(&oldest).map_or(0, |kept| kept.bytes);
        }
    }
}

impl Referrers {
    /// Notes a manifest that was stored.
    pub(super) fn added(&self, name: &str, digest: &Digest, size: usize, manifest: &Manifest) {
        // A repository that was not read yet will be with this manifest in it.
        let Some(list) = lock(&self.0).get(name) else { return };
        let mut list = lock(&list);
        let Some(subjects) = &mut list.0 else { return };
        note(subjects, digest, size, manifest);
        let bytes = bytes(subjects);
        drop(list);
        lock(&self.0).counted(name, bytes);
    }

    /// Forgets a manifest that was deleted.
    pub(super) fn removed(&self, name: &str, digest: &Digest) {
        let Some(list) = lock(&self.0).get(name) else { return };
        for referrers in lock(&list).0.iter_mut().flat_map(HashMap::values_mut) {
            referrers.retain(|one| one.digest != digest.as_ref());
        }
    }

    fn of(&self, storage: &Storage, name: &str, subject: &Digest) -> Result<Vec<Referrer>, Failure> {
        // Names that somebody made up leave nothing behind. The specification has no 404 here: an empty list it is.
        if !storage.layout.has_repository(name)? {
            return Ok(Vec::new());
        }
        let list = lock(&self.0).get_or_insert(name);
        // Held while the repository is read: a manifest stored meanwhile waits to be noted.
        let mut list = lock(&list);
        let subjects = match &mut list.0 {
            Some(subjects) => subjects,
            unread => {
                let subjects = unread.insert(read(storage, name)?);
                lock(&self.0).counted(name, bytes(subjects));
                subjects
            }
        };
        Ok(subjects.get(subject.as_ref()).cloned().unwrap_or_default())
    }
}

fn read(storage: &Storage, name: &str) -> Result<BySubject, Failure> {
    let mut subjects = BySubject::new();
    for digest in storage.layout.revisions(name)? {
        let Some(content) = storage.layout.manifest(name, &digest)? else { continue };
        if let Ok(manifest) = serde_json::from_slice::<Manifest>(&content) {
            note(&mut subjects, &digest, content.len(), &manifest);
        }
    }
    Ok(subjects)
}

fn bytes(subjects: &BySubject) -> usize {
    subjects.values().flatten().map(|referrer| ENTRY_BYTES + referrer.size).sum()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn note(subjects: &mut BySubject, digest: &Digest, size: usize, manifest: &Manifest) {
    let Some(subject) = &manifest.subject else { return };
    let referrers = subjects.entry(subject.digest.clone()).or_default();
    if referrers.iter().any(|one| one.digest == digest.as_ref()) {
        return;
    }
    // An image stands for an artifact of its config's type.
    let config = manifest.config.as_ref().map(|config| config.media_type.clone());
    referrers.push(Referrer {
        media_type: manifest.kind().to_owned(),
        digest: digest.to_string(),
        size,
        artifact_type: manifest.artifact_type.clone().filter(|kind| !kind.is_empty()).or(config),
        annotations: manifest.annotations.clone(),
    });
}

/// GET of the manifests whose subject is `digest`.
pub(super) async fn get(
    state: &ServerState,
    head: &Head,
    name: String,
    digest: Digest,
) -> Result<Reply, Failure> {
    let (storage, referrers): (_, Arc<Referrers>) = (state.storage.clone(), state.referrers.clone());
    let mut found = blocking(move || referrers.of(&storage, &name, &digest)).await?;
    let kind = head.parameter("artifactType").filter(|kind| !kind.is_empty());
    if let Some(kind) = kind {
        found.retain(|one| one.artifact_type.as_deref() == Some(kind));
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found});
    let reply = Reply::json_as(OCI_INDEX, &index);
    Ok(if kind.is_some() { reply.header(FILTERS, "artifactType") } else { reply })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::sha256;

    #[test]
    fn only_repositories_that_exist_are_kept_and_only_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::new(crate::layout::Layout::directory(dir.path()));
        let (referrers, subject) = (Referrers::default(), sha256(b"subject"));
        for number in 0..1000 {
            assert!(referrers.of(&storage, &format!("made-up/{number}"), &subject).unwrap().is_empty());
        }
        assert_eq!(lock(&referrers.0).repositories.len(), 0);
        for number in 0..KEPT_REPOSITORIES + 10 {
            let name = format!("real/{number}");
            storage.link_blob(&name, &subject, &subject).unwrap();
            assert!(referrers.of(&storage, &name, &subject).unwrap().is_empty());
            referrers.of(&storage, "real/0", &subject).unwrap();
        }
        let kept = lock(&referrers.0);
        assert_eq!(kept.repositories.len(), KEPT_REPOSITORIES);
        assert!(kept.repositories.contains_key("real/0") && !kept.repositories.contains_key("real/1"));
    }

    #[test]
    fn a_repository_that_is_being_read_keeps_no_other_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::new(crate::layout::Layout::directory(dir.path()));
        let (referrers, subject) = (Arc::new(Referrers::default()), sha256(b"subject"));
        for name in ["slow", "other"] {
            storage.link_blob(name, &subject, &subject).unwrap();
        }
        let slow = lock(&referrers.0).get_or_insert("slow");
        let reading = lock(&slow);
        let ask = |name: &'static str| {
            let (referrers, storage, subject) = (referrers.clone(), storage.clone(), subject.clone());
            let (told, answer) = std::sync::mpsc::channel();
            std::thread::spawn(move || told.send(referrers.of(&storage, name, &subject).is_ok()));
            answer
        };
        let same = ask("slow");
        let deadline = std::time::Duration::from_secs(20);
        assert_eq!(ask("other").recv_timeout(deadline), Ok(true));
        assert!(same.try_recv().is_err(), "what is being read is not known yet");
        drop(reading);
        assert_eq!(same.recv_timeout(deadline), Ok(true));
    }

    #[test]
    fn what_is_kept_of_a_few_large_manifests_is_counted_too() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::new(crate::layout::Layout::directory(dir.path()));
        let (referrers, subject) = (Referrers::default(), sha256(b"subject"));
        storage.link_blob("app", &subject, &subject).unwrap();
        referrers.of(&storage, "app", &subject).unwrap();
        for number in 0..10_u8 {
            let note = "x".repeat(4_000_000);
            let content = serde_json::json!({"subject": {"digest": subject.to_string()}, "annotations": {"note": note}});
            let content = content.to_string().into_bytes();
            let manifest: Manifest = serde_json::from_slice(&content).unwrap();
            referrers.added("app", &sha256(&[number]), content.len(), &manifest);
        }
        assert!(lock(&referrers.0).repositories.is_empty());
    }

    #[test]
    fn a_repository_with_very_many_referrers_displaces_others() {
        let mut cache = Cache::default();
        for name in ["a", "b", "c"] {
            cache.get_or_insert(name);
            cache.counted(name, KEPT_BYTES / 2);
        }
        assert_eq!(cache.repositories.len(), 2);
        cache.counted("c", 2 * KEPT_BYTES);
        assert!(cache.repositories.is_empty(), "it is read again for every question");
    }
}
