//! What a worker is told of where blobs are read from.

use registry::Repository;
use registry::client::RepositoryAccess;

use super::*;
use crate::process::launch::LaunchedWorker;

/// What concerns a repository.
#[derive(Debug, Eq, PartialEq)]
enum Heard {
    /// How it is read.
    Given,
    /// That it is no longer known for some blobs.
    Forgotten,
    /// That it is not read any more.
    TakenBack,
}

#[test]
fn a_repository_is_read_as_before_as_long_as_one_of_its_names_is_used() {
    let (said, heard) = mpsc::channel();
    let launch: Launch = Box::new(move |socket| {
        let said = said.clone();
        std::thread::spawn(move || {
            let mut peer = Peer::new(socket);
            peer.ready();
            while let Ok(Some(message)) = peer.receiver.next() {
                let heard = match serde_json::from_slice(&message).unwrap() {
                    ToWorker::Access { access: Some(_), .. } => Heard::Given,
                    ToWorker::Access { access: None, .. } => Heard::TakenBack,
                    ToWorker::Forget { .. } => Heard::Forgotten,
                    _ => continue,
                };
                let _ = said.send(heard);
            }
        });
        Ok(LaunchedWorker(None))
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let accesses = accesses();
    accesses.hand_out(&Repository::parse("docker.io/library/app").unwrap(), RepositoryAccess::default());
    let worker = remote_worker(launch, SOON, &accesses, runtime.handle());
    runtime.block_on(worker.try_start()).unwrap();
    let blob = BlobId(DigestAlgorithm::Sha256.digest(b"blob"));
    let register = |name: &str| {
        worker.register(&[blob], &BackendSpec::Registry { repository: name.to_owned() }, Place::Last)
    };
    let names = [register("app"), register("docker.io/library/app")];
    names.into_iter().for_each(drop);
    let told: Vec<_> = (0..4).map(|_| heard.recv_timeout(SOON).unwrap()).collect();
    assert_eq!(told, [Heard::Given, Heard::Forgotten, Heard::Forgotten, Heard::TakenBack]);
}
