use std::os::unix::fs::symlink;
use std::time::Duration;

use cluster::save::LayerSpace;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use image::destination::{DiskSpace, DiskUse};
use image::layer::{Converter, LayerCache, ScratchSpace};
use image::options::{Options, Recipe};
use image::progress::Progress;
use registry::client::{Client, ClientConfig, Credentials, CredentialsError, Keyring, Token, TokenRequest};
use registry::server::ServerConfig;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::build::keys::{Attrs, EXPORTER_TYPE};
use crate::build::target::Target;
use crate::build::{Build, Builds, Preparation, Reported, Way};

const DEADLINE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Room that is enough.
const ROOM: u64 = 1 << 30;

/// A build that follows what is written to a content store, with one slot for that.
struct Lab {
    content: TempDir,
    spool: TempDir,
    space: Arc<SpoolSpace>,
    store: Arc<LocalStore>,
    builds: Arc<Builds>,
}

/// A client without credentials.
struct Nobody;

impl Keyring for Nobody {
    fn credentials<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Result<Credentials, CredentialsError>> {
        ready(Ok(Credentials::Anonymous)).boxed()
    }

    fn token(&self, _request: TokenRequest) -> BoxFuture<'_, Result<Option<Token>, CredentialsError>> {
        ready(Ok(None)).boxed()
    }

    fn name(&self) -> String {
        "nobody's credentials".to_owned()
    }
}

impl Lab {
    fn new(room: u64) -> Self {
        let (content, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["ingest", "blobs/sha256"] {
            std::fs::create_dir_all(content.path().join(name)).unwrap();
        }
        let space = SpoolSpace::new(spool.path(), room);
        let store = Arc::new(LocalStore::new(content.path(), Arc::clone(&space)));
        Self { content, spool, space, store, builds: Arc::default() }
    }

    /// The build, with an output of these keys.
    fn build(&self, keys: &[(&str, &str)]) -> Build {
        let keys = keys.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let attrs = Attrs::of(EXPORTER_TYPE, &keys, &Options::default()).unwrap();
        let client = Client::new(ClientConfig::default()).unwrap();
        let repository = attrs.by_repository().first().map(|(repository, _)| *repository);
        let target = Target::new(&attrs, repository, &client, Arc::new(Nobody), false, DEADLINE);
        let progress = Progress::new();
        let converter = Converter::new(Recipe::default(), 1, LayerCache::new(0));
        let scratch_space = ScratchSpace::new(Path::new("/"), 0);
        let nothing = &DiskUse { what: "", setting: "", of: "", instead: "" };
        let [document_space, together_space] = [(); 2].map(|()| DiskSpace::new(Path::new("/"), 0, nothing));
        let preparation = Preparation {
            converter,
            threads: 1,
            scratch_space,
            document_space,
            change_room: Arc::default(),
            together_space,
            layer_space: LayerSpace::new(0),
            name_turns: Arc::default(),
            client,
            files: None,
        };
        let cluster = Default::default();
        let output = Output::new(0, Way::Store, attrs, target, preparation, cluster, Arc::clone(&progress));
        let outputs = vec![Arc::new(output)];
        Build::new("r".to_owned(), "s".to_owned(), Reported::default(), outputs, progress)
    }

    fn follow(&self, build: &Arc<Build>) -> JoinHandle<()> {
        tokio::spawn(convert_ahead(Arc::clone(&self.store), Arc::clone(build), Arc::clone(&self.builds)))
    }

    /// Begins to write blobs that begin with `content` until one of them is followed, and returns its file.
    async fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let followed = async {
            // Until the store is watched, what is there is none of this build's.
            let mut written = Vec::new();
            for number in 0.. {
                let dir = self.content.path().join(format!("ingest/{name}-{number}"));
                std::fs::create_dir(&dir).unwrap();
                let path = dir.join("data");
                std::fs::write(&path, content).unwrap();
                written.push((FileId::of(&path.metadata().unwrap()), path));
                for _ in 0..20 {
                    let followed = |(id, _): &&(FileId, PathBuf)| self.store.ahead().contains_key(id);
                    if let Some((_, path)) = written.iter().find(followed) {
                        return path.clone();
                    }
                    sleep(LOOK).await;
                }
            }
            unreachable!("there are numbers enough")
        };
        timeout(DEADLINE, followed).await.expect("the layer is followed")
    }

    /// Waits until something has been made of what another client stalls in.
    async fn something_is_kept(&self) {
        let kept = async {
            while self.space.left() > ROOM - (1 << 20) {
                sleep(LOOK).await;
            }
        };
        timeout(DEADLINE, kept).await.expect("what is made of it is kept");
    }

    /// The blob at `path` is complete and announced.
    async fn announce(&self, build: &Build, path: &Path, content: &[u8]) -> bool {
        let digest = registry::digest::sha256(content);
        std::fs::rename(path, self.content.path().join("blobs/sha256").join(digest.digest())).unwrap();
        let output = build.store_output().unwrap();
        let total = content.len() as u64;
        let taken = timeout(DEADLINE, self.store.take(output, &digest, total, Claim::Absent(None))).await;
        taken.expect("an announced layer does not wait for others").unwrap().is_none()
    }
}

/// A tar with a file of `content`, which is to have `size` bytes.
fn tar_of(content: &[u8], size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_path("secret").unwrap();
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes
}

/// The begin of a tar with a large file that does not compress.
fn foreign_layer() -> Vec<u8> {
    let mut state = 1_u64;
    let mut noise = Vec::new();
    while noise.len() < 8 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        noise.extend_from_slice(&state.to_be_bytes());
    }
    tar_of(&noise, noise.len() as u64 + 512)
}

/// A layer of one small file.
fn own_layer() -> Vec<u8> {
    let mut bytes = tar_of(&[7; 512], 512);
    bytes.extend([0; 1024]);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_client_has_buildkitd_write_never_leaves_the_machine() {
    let lab = Lab::new(ROOM);
    let registry = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("{}/app:v1", registry.local_addr().unwrap());
    let registered = lab.builds.register(lab.build(&[("name", &name)])).unwrap();
    let following = lab.follow(&registered.build);
    lab.write("foreign", &foreign_layer()).await;
    lab.something_is_kept().await;
    assert_eq!(std::fs::read_dir(lab.spool.path()).unwrap().count(), 0, "a crash would leave a file");
    drop(registered);
    timeout(DEADLINE, following).await.expect("following ends with the build").unwrap();
    assert_eq!(lab.space.left(), ROOM);
    let spoken_to = timeout(Duration::from_millis(1), registry.accept()).await;
    assert!(spoken_to.is_err(), "the registry was spoken to");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_client_stalls_in_keeps_no_announced_layer_waiting() {
    let lab = Lab::new(ROOM);
    let registered = lab.builds.register(lab.build(&[("name", "localhost/app"), ("push", "false")])).unwrap();
    let build = &registered.build;
    let following = lab.follow(build);
    lab.write("foreign", &foreign_layer()).await;
    lab.something_is_kept().await;
    let own = own_layer();
    let path = lab.write("own", &own).await;
    assert!(lab.announce(build, &path, &own).await, "the layer came over the session");
    drop(registered);
    timeout(DEADLINE, following).await.expect("following ends with the build").unwrap();
    assert_eq!(lab.space.left(), ROOM);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_does_not_fit_is_converted_when_it_is_complete() {
    let lab = Lab::new(1);
    let registered = lab.builds.register(lab.build(&[("name", "localhost/app"), ("push", "false")])).unwrap();
    let build = &registered.build;
    let following = lab.follow(build);
    let own = own_layer();
    let path = lab.write("own", &own).await;
    assert!(lab.announce(build, &path, &own).await, "the layer came over the session");
    drop(registered);
    timeout(DEADLINE, following).await.expect("following ends with the build").unwrap();
    assert_eq!(lab.space.left(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_file_that_was_given_up_is_not_taken_for_the_next_at_its_place() {
    let lab = Lab::new(ROOM);
    let storage = tempfile::tempdir().unwrap();
    let mut config = ServerConfig::new(storage.path());
    config.listen.set_port(0);
    config.access_log = Some(storage.path().join("access.log"));
    let stop = CancellationToken::new();
    let registry = registry::server::serve(config, stop.clone()).await.unwrap();
    let name = format!("{}/app:v1", registry.address());
    let registered = lab.builds.register(lab.build(&[("name", &name)])).unwrap();
    let build = &registered.build;
    let following = lab.follow(build);
    let foreign = lab.write("foreign", &foreign_layer()).await;
    lab.something_is_kept().await;
    let ahead = || lab.store.ahead();
    let place = FileId::of(&foreign.metadata().unwrap());
    std::fs::remove_dir_all(foreign.parent().unwrap()).unwrap();
    let closed = async {
        while ahead()[&place].file.upgrade().is_some() {
            sleep(LOOK).await;
        }
    };
    timeout(DEADLINE, closed).await.expect("a file that is given up is closed");
    // The file system gives its place to the build's own layer.
    let own = own_layer();
    let path = lab.content.path().join("ingest/own");
    std::fs::write(&path, &own).unwrap();
    let given_up = ahead().remove(&place).unwrap();
    ahead().insert(FileId::of(&path.metadata().unwrap()), given_up);
    assert!(lab.announce(build, &path, &own).await, "the layer came over the session");
    drop(registered);
    timeout(DEADLINE, following).await.expect("following ends with the build").unwrap();
    stop.cancel();
    registry.stopped().await;
    let asked = std::fs::read_to_string(storage.path().join("access.log")).unwrap();
    let uploads = asked.lines().filter(|line| line.contains("POST") && line.contains("/blobs/uploads/"));
    assert_eq!(uploads.count(), 1, "the build's own layer is pushed, and nothing else: {asked}");
}

#[test]
fn links_and_what_is_no_regular_file_are_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("file"), "content").unwrap();
    std::fs::create_dir(path("folder")).unwrap();
    symlink("file", path("link")).unwrap();
    symlink("folder", path("folder-link")).unwrap();
    std::fs::write(path("folder/file"), "content").unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap();
    assert!(pipe.success());
    let open = |name: &str| open_regular(dir.path(), Path::new(name));
    assert!(open("file").unwrap().is_some() && open("folder/file").unwrap().is_some());
    for name in ["folder", "pipe", "absent"] {
        assert!(open(name).unwrap().is_none(), "{name}");
    }
    for name in ["link", "folder-link/file", "../file"] {
        assert!(open(name).is_err(), "{name}");
    }
}
