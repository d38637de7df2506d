//! A real buildkitd behind an exporter in this process, and a registry to push to.

pub(crate) mod gate;
pub(crate) mod hanging;
pub(crate) mod http1;
pub(crate) mod tokens;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use exporter::ExporterConfig;
use registry::client::{Client, ClientConfig};
use registry::media_types::OCI_INDEX;
use registry::nydus;
use registry::reference::Reference;
use registry::server::{Server, ServerConfig};
use serde_json::Value;
use test_support::{Need, has};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The longest that anything here may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Where a program is that `scripts/deps` built.
fn peer(name: &str, program: &str) -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let peers = folder("NYDUS_CLUSTER_CACHE")
        .map(|cache| cache.join("peers"))
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("nydus-cluster/peers")))
        .or_else(|| Some(folder("HOME")?.join(".cache/nydus-cluster/peers")))?;
    Some(peers.join(name).join("bin").join(program)).filter(|path| path.exists())
}

/// Whether `$NYDUS_CLUSTER_BUILDKIT` asks for the oldest BuildKit that the exporter supports. That one takes one output a build, and
/// knows neither attestations as artifacts nor `rewrite-timestamp`.
pub(crate) fn is_oldest() -> bool {
    match std::env::var("NYDUS_CLUSTER_BUILDKIT").as_deref() {
        Err(_) | Ok("newest") => false,
        Ok("oldest") => true,
        Ok(other) => panic!("NYDUS_CLUSTER_BUILDKIT={other}: expected oldest or newest"),
    }
}

/// Two stacks at a time: much of a build is waiting, but a machine that runs a dozen buildkitds misses their deadlines.
static TURN: Semaphore = Semaphore::const_new(2);

/// Everything that a build needs.
pub(crate) struct Stack {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) registry: String,
    buildctl: PathBuf,
    buildkitd_program: PathBuf,
    buildkitd: Child,
    stop: CancellationToken,
    stop_exporters: CancellationToken,
    _server: Server,
    _turn: SemaphorePermit<'static>,
}

/// What a `buildctl` did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    /// Standard output and error.
    pub(crate) text: String,
}

impl Outcome {
    /// The text of a build that succeeded.
    pub(crate) fn success(self) -> String {
        assert!(self.status.success(), "{}", self.text);
        self.text
    }

    /// The text of a build that failed.
    pub(crate) fn failure(self) -> String {
        assert!(!self.status.success(), "{}", self.text);
        self.text
    }
}

impl Stack {
    /// Starts everything; `None`, with a line that says so, where buildkitd is not to be had or cannot run.
    pub(crate) async fn start() -> Option<Self> {
        let buildkit = if is_oldest() { "buildkit-oldest" } else { "buildkit" };
        let (buildkitd, buildctl) = (peer(buildkit, "buildkitd"), peer(buildkit, "buildctl"));
        let are_there = buildkitd.is_some() && buildctl.is_some();
        if !has(&[Need::Root, Need::Other("buildkitd and buildctl", are_there)]) {
            return None;
        }
        let (buildkitd, buildctl) = (buildkitd?, buildctl?);
        let turn = TURN.acquire().await.unwrap();
        let dir = tempfile::Builder::new().prefix("nydus-cluster-exporter-").tempdir().unwrap();
        let stop = CancellationToken::new();
        let mut config = ServerConfig::new(dir.path().join("registry"));
        config.listen.set_port(0);
        config.access_log = Some(dir.path().join("access.log"));
        let server = registry::server::serve(config, stop.clone()).await.unwrap();
        let registry = server.address().to_string();
        let (buildkitd_program, buildkitd) = (buildkitd.clone(), spawn_buildkitd(&buildkitd, dir.path()));
        let stop_exporters = stop.child_token();
        let stack = Self {
            dir,
            registry,
            buildctl,
            buildkitd_program,
            buildkitd,
            stop,
            stop_exporters,
            _server: server,
            _turn: turn,
        };
        stack.serve_exporter(
            &stack.path("buildkitd.sock"),
            &stack.path("exporter.sock"),
            ClientConfig::default(),
        );
        wait_for("buildkitd", || stack.path("buildkitd.sock").exists()).await;
        wait_for("exporter", || stack.path("exporter.sock").exists()).await;
        Some(stack)
    }

    /// One more exporter.
    pub(crate) fn serve_exporter(&self, upstream: &Path, listen: &Path, registry: ClientConfig) {
        self.serve(upstream, listen, ExporterConfig { registry, ..ExporterConfig::default() });
    }

    /// One more exporter, with settings of its own; the task ends with it. What layers became is remembered for this stack alone.
    pub(crate) fn serve(&self, upstream: &Path, listen: &Path, config: ExporterConfig) -> JoinHandle<()> {
        let config = ExporterConfig {
            upstream: upstream.to_owned().try_into().unwrap(),
            listen: listen.to_owned().try_into().unwrap(),
            layer_cache_dir: self.path("layers"),
            ..config
        };
        let stop = self.stop_exporters.clone();
        tokio::spawn(async move { exporter::serve(config, stop).await.unwrap() })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A context of a Dockerfile and files.
    pub(crate) fn context(&self, name: &str, dockerfile: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let context = self.path(name);
        std::fs::create_dir_all(&context).unwrap();
        std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        for (file, content) in files {
            std::fs::write(context.join(file), content).unwrap();
        }
        context
    }

    /// `buildctl` through the socket of this name.
    pub(crate) fn buildctl_command(&self, socket: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.buildctl);
        let address = format!("unix://{}", self.path(socket).display());
        command.arg("--addr").arg(address).args(args).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// `buildctl build` of `context`, through `socket`.
    pub(crate) fn buildctl(&self, socket: &Path, context: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(&self.buildctl);
        command
            .arg("--addr")
            .arg(format!("unix://{}", socket.display()))
            .args(["build", "--progress=plain", "--frontend=dockerfile.v0"])
            .arg(format!("--local=context={}", context.display()))
            .arg(format!("--local=dockerfile={}", context.display()))
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// `shared-session`, which runs a build of each `TARGET:OUTPUT` of `context` at once, in one session.
    pub(crate) fn shared_session(&self, context: &Path, builds: &[String]) -> Command {
        // It comes with the newest BuildKit, whichever runs.
        let newest = peer("buildkit", "shared-session");
        let program = newest.unwrap_or_else(|| self.buildctl.with_file_name("shared-session"));
        let mut command = Command::new(program);
        let address = format!("unix://{}", self.path("exporter.sock").display());
        command.arg(address).arg(context).args(builds).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// `buildx` with the exporter as its builder, in which it connects to it as to any remote buildkitd; `None` if buildx is
    /// not here, which CI does not allow.
    pub(crate) async fn buildx(&self) -> Option<impl Fn(&[&str]) -> Command + use<>> {
        let program = peer("buildx", "buildx");
        has(&[Need::Other("buildx", program.is_some())]);
        let program = program?;
        let config = self.path("buildx");
        let buildx = move |args: &[&str]| {
            let mut command = Command::new(&program);
            command.env("BUILDX_CONFIG", &config).env("DOCKER_CONFIG", &config).env_remove("BUILDX_BUILDER");
            command.args(args).stdin(Stdio::null()).kill_on_drop(true);
            command
        };
        let address = format!("unix://{}", self.path("exporter.sock").display());
        run(buildx(&["create", "--name=exporter", "--driver=remote", "--use", &address])).await.success();
        Some(buildx)
    }

    /// `oras`, which asks a registry without TLS; `None` if it is not here, which CI does not allow.
    pub(crate) fn oras(&self, args: &[&str]) -> Option<Command> {
        let program = peer("oras", "oras");
        has(&[Need::Other("oras", program.is_some())]);
        let mut command = Command::new(program?);
        command.args(args).arg("--plain-http").stdin(Stdio::null()).kill_on_drop(true);
        Some(command)
    }

    /// Builds through the exporter.
    pub(crate) async fn build(&self, context: &Path, args: &[&str]) -> Outcome {
        run(self.buildctl(&self.path("exporter.sock"), context, args)).await
    }

    /// The directory of buildkitd's content store.
    pub(crate) fn content_store(&self) -> PathBuf {
        self.path("buildkit/runc-native/content")
    }

    /// Builds past the exporter.
    pub(crate) async fn build_directly(&self, context: &Path, args: &[&str]) -> Outcome {
        run(self.buildctl(&self.path("buildkitd.sock"), context, args)).await
    }

    /// `--output` for an image in the registry.
    pub(crate) fn output(&self, name: &str) -> String {
        format!("type=nydus-cluster,name={}/{name}", self.registry)
    }

    /// The manifest or index under a name in the registry.
    pub(crate) async fn manifest(&self, name: &str) -> (String, Value) {
        let reference = Reference::parse(&format!("{}/{name}", self.registry)).unwrap();
        let client = Client::new(ClientConfig::default()).unwrap();
        let (descriptor, content) = client.manifest(&reference).await.unwrap();
        (descriptor.digest().to_string(), serde_json::from_slice(&content).unwrap())
    }

    /// Puts an index under a name in the registry.
    pub(crate) async fn put_index(&self, name: &str, index: &str) {
        let reference = Reference::parse(&format!("{}/{name}", self.registry)).unwrap();
        let client = Client::new(ClientConfig::default()).unwrap();
        client.put_manifest(&reference, OCI_INDEX, index.to_owned().into()).await.unwrap();
    }

    /// The tags of a repository of the registry, from its storage.
    pub(crate) fn tags(&self, repository: &str) -> Vec<String> {
        let dir = format!("registry/docker/registry/v2/repositories/{repository}/_manifests/tags");
        let Ok(entries) = std::fs::read_dir(self.path(&dir)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A blob of the registry.
    pub(crate) async fn blob(&self, name: &str, digest: &str) -> Vec<u8> {
        let reference = Reference::parse(&format!("{}/{name}", self.registry)).unwrap();
        let client = Client::new(ClientConfig::default()).unwrap();
        let mut reader = client.blob(reference.repository(), &digest.parse().unwrap()).unwrap();
        let mut content = Vec::new();
        while let Some(data) = reader.next().await.unwrap() {
            content.extend_from_slice(&data);
        }
        content
    }

    /// The registry's log so far: lines of method and path.
    pub(crate) fn access_log(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.path("access.log")).unwrap_or_default();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Tells the exporters to stop.
    pub(crate) fn stop_exporter(&self) {
        self.stop_exporters.cancel();
    }

    /// Kills buildkitd as no daemon wants to die.
    pub(crate) async fn kill_buildkitd(&mut self) {
        self.buildkitd.kill().await.unwrap();
    }

    /// Starts buildkitd again.
    pub(crate) async fn restart_buildkitd(&mut self) {
        let socket = self.path("buildkitd.sock");
        std::fs::remove_file(&socket).unwrap();
        self.buildkitd = spawn_buildkitd(&self.buildkitd_program, self.dir.path());
        wait_for("buildkitd", || socket.exists()).await;
    }

    /// Stops everything that was started.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        let id = self.buildkitd.id().unwrap_or_default().to_string();
        let asked = Command::new("kill").arg(&id).status().await;
        let ended = tokio::time::timeout(Duration::from_secs(20), self.buildkitd.wait()).await;
        if asked.is_err() || ended.is_err() {
            self.buildkitd.kill().await.unwrap();
        }
    }
}

fn spawn_buildkitd(program: &Path, dir: &Path) -> Child {
    let log = File::create(dir.join("buildkitd.log")).unwrap();
    let mut command = Command::new(program);
    // BuildKit's own nydus compression calls nydus-image.
    if let Some(builder) = peer("nydus", "nydus-image") {
        command.env("NYDUS_BUILDER", builder);
    }
    command
        .arg("--root")
        .arg(dir.join("buildkit"))
        .arg("--addr")
        .arg(format!("unix://{}", dir.join("buildkitd.sock").display()))
        .args(["--containerd-worker=false", "--oci-worker-snapshotter=native", "--oci-worker-net=host"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// The entries of an index: what each is, and its digest.
pub(crate) fn entries(index: &Value) -> Vec<(&'static str, String)> {
    let entries = index["manifests"].as_array().unwrap();
    let kind = |entry: &Value| match (entry["artifactType"].as_str(), entry["platform"]["os"].as_str()) {
        (Some(nydus::ARTIFACT_TYPE_MANIFEST), _) => "nydus",
        (_, Some("unknown")) => "attestation",
        _ => "plain",
    };
    entries.iter().map(|entry| (kind(entry), entry["digest"].as_str().unwrap().to_owned())).collect()
}

/// Runs a command to its end.
pub(crate) async fn run(mut command: Command) -> Outcome {
    let output =
        tokio::time::timeout(DEADLINE, command.output()).await.expect("the command ends in time").unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Outcome { status: output.status, text }
}

/// Ends a buildctl as Ctrl-C does, which it does at once and with an error.
pub(crate) async fn interrupt(buildctl: &mut Child) {
    let id = buildctl.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().await.unwrap().success());
    let ended = tokio::time::timeout(Duration::from_secs(20), buildctl.wait()).await;
    assert!(!ended.expect("buildctl ends").unwrap().success());
}

/// Waits until `ready`.
pub(crate) async fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !ready() {
        assert!(begin.elapsed() < DEADLINE, "{what} is not ready in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
