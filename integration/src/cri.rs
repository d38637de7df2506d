//! A small CRI client: what the kubelet asks of containerd, as blocking calls.
//!
//! Pods use the host's network, so no CNI plugin is needed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AuthConfig, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ImageSpec, ImageStatusRequest, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListContainersRequest,
    ListImagesRequest, ListPodSandboxRequest, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PullImageRequest, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StatusRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use crate::wait;

/// No call of the harness takes longer on a loaded machine, except a pull.
const CALL_DEADLINE: Duration = Duration::from_secs(120);
/// Pulls fetch and unpack whole images with containerd's own snapshotter.
const PULL_DEADLINE: Duration = Duration::from_secs(300);
/// How long a container may take to stop on SIGTERM, in seconds as CRI counts.
const STOP_SECONDS: i64 = 2;

/// A client of one containerd.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    pods: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// A running pod: what containers are created in.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its id.
    pub id: String,
    config: PodSandboxConfig,
}

/// A container to create.
#[derive(Debug, Clone, Default)]
pub struct ContainerSpec {
    /// A name unique in the pod.
    pub name: String,
    /// The image, as it was pulled.
    pub image: String,
    /// The command; the image's own if empty.
    pub command: Vec<String>,
    /// Variables in addition to the image's own.
    pub env: Vec<(String, String)>,
    /// Whether it cannot write to its root.
    pub read_only: bool,
}

impl ContainerSpec {
    /// A container of `image` that runs `command`.
    pub fn new(name: &str, image: &str, command: &[&str]) -> Self {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        Self { name: name.to_owned(), image: image.to_owned(), command, ..Self::default() }
    }

    /// Adds a variable.
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// It cannot write to its root.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }
}

/// What a command run in a container said.
#[derive(Debug, Clone)]
pub struct Executed {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Executed {
    /// Standard output, if the command succeeded.
    pub fn success(self) -> Result<String> {
        if self.code != 0 {
            let stderr = String::from_utf8_lossy(&self.stderr).into_owned();
            return Err(anyhow!("the command in the container ended with {}: {stderr}", self.code));
        }
        Ok(String::from_utf8_lossy(&self.stdout).into_owned())
    }
}

/// Creates a call's request with its deadline.
macro_rules! with_deadline {
    ($deadline:expr, $message:expr) => {{
        let mut request = tonic::Request::new($message);
        request.set_timeout($deadline);
        request
    }};
}

impl Cri {
    /// Connects to the Unix socket of containerd.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        // The address is not used: the connector knows the socket.
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = runtime
            .block_on(endpoint.connect_with_connector(connector))
            .with_context(|| format!("connecting to {}", socket.display()))?;
        let pods = RuntimeServiceClient::new(channel.clone());
        // Lists of many images exceed the default limit of a message.
        let images = ImageServiceClient::new(channel).max_decoding_message_size(64 << 20);
        Ok(Self { runtime, pods, images })
    }

    /// Whether containerd says that it can run containers (the network, which needs CNI, aside).
    pub fn runtime_is_ready(&self) -> Result<bool> {
        let request = with_deadline!(CALL_DEADLINE, StatusRequest { verbose: false });
        let answer = self.runtime.block_on(self.pods.clone().status(request))?.into_inner();
        let conditions = answer.status.map(|status| status.conditions).unwrap_or_default();
        Ok(conditions.iter().any(|condition| condition.r#type == "RuntimeReady" && condition.status))
    }

    /// Pulls an image; returns its id in containerd.
    pub fn pull(&self, image: &str) -> Result<String> {
        self.pull_with(image, None)
    }

    /// Pulls an image with the credentials of a pod (`imagePullSecrets`).
    pub fn pull_as(&self, image: &str, user: &str, password: &str) -> Result<String> {
        let auth =
            AuthConfig { username: user.to_owned(), password: password.to_owned(), ..AuthConfig::default() };
        self.pull_with(image, Some(auth))
    }

    fn pull_with(&self, image: &str, auth: Option<AuthConfig>) -> Result<String> {
        let message = PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config: None };
        let request = with_deadline!(PULL_DEADLINE, message);
        let answer = self.runtime.block_on(self.images.clone().pull_image(request));
        Ok(answer.with_context(|| format!("pulling {image}"))?.into_inner().image_ref)
    }

    /// Names of the images containerd has.
    pub fn images(&self) -> Result<Vec<String>> {
        let request = with_deadline!(CALL_DEADLINE, ListImagesRequest { filter: None });
        let answer = self.runtime.block_on(self.images.clone().list_images(request))?.into_inner();
        Ok(answer.images.into_iter().flat_map(|image| image.repo_tags).collect())
    }

    /// Whether containerd has the image.
    pub fn has_image(&self, image: &str) -> Result<bool> {
        let message = ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        let request = with_deadline!(CALL_DEADLINE, message);
        Ok(self.runtime.block_on(self.images.clone().image_status(request))?.into_inner().image.is_some())
    }

    /// Removes an image.
    pub fn remove_image(&self, image: &str) -> Result<()> {
        let request = with_deadline!(CALL_DEADLINE, RemoveImageRequest { image: Some(image_spec(image)) });
        let answer = self.runtime.block_on(self.images.clone().remove_image(request));
        answer.with_context(|| format!("removing image {image}"))?;
        Ok(())
    }

    /// Runs a pod on the host's network; logs of its containers go to `logs`.
    pub fn run_pod(&self, name: &str, logs: &Path) -> Result<Pod> {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            ..Default::default()
        };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let message = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let request = with_deadline!(PULL_DEADLINE, message);
        let answer = self.runtime.block_on(self.pods.clone().run_pod_sandbox(request));
        let id = answer.with_context(|| format!("running pod {name}"))?.into_inner().pod_sandbox_id;
        Ok(Pod { id, config })
    }

    /// Stops and removes a pod and its containers.
    pub fn remove_pod(&self, id: &str) -> Result<()> {
        let pod_sandbox_id = id.to_owned();
        let request =
            with_deadline!(CALL_DEADLINE, StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() });
        self.runtime.block_on(self.pods.clone().stop_pod_sandbox(request)).context("stopping a pod")?;
        let request = with_deadline!(CALL_DEADLINE, RemovePodSandboxRequest { pod_sandbox_id });
        self.runtime.block_on(self.pods.clone().remove_pod_sandbox(request)).context("removing a pod")?;
        Ok(())
    }

    /// Ids of all pods.
    pub fn pods(&self) -> Result<Vec<String>> {
        let request = with_deadline!(CALL_DEADLINE, ListPodSandboxRequest { filter: None });
        let answer = self.runtime.block_on(self.pods.clone().list_pod_sandbox(request))?.into_inner();
        Ok(answer.items.into_iter().map(|pod| pod.id).collect())
    }

    /// Removes all pods: containers, their mounts and the processes that look after them.
    pub fn remove_all_pods(&self) -> Result<()> {
        self.pods()?.iter().try_for_each(|id| self.remove_pod(id))
    }

    /// Creates a container in `pod`; returns its id.
    pub fn create_container(&self, pod: &Pod, spec: &ContainerSpec) -> Result<String> {
        let envs = spec.env.iter();
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: spec.name.clone(), attempt: 0 }),
            image: Some(image_spec(&spec.image)),
            command: spec.command.clone(),
            envs: envs.map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() }).collect(),
            log_path: format!("{}.log", spec.name),
            linux: spec.read_only.then(read_only_root),
            ..Default::default()
        };
        let message = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let request = with_deadline!(CALL_DEADLINE, message);
        let answer = self.runtime.block_on(self.pods.clone().create_container(request));
        let answer = answer.with_context(|| format!("creating container {}", spec.name))?;
        Ok(answer.into_inner().container_id)
    }

    /// Starts a container.
    pub fn start_container(&self, id: &str) -> Result<()> {
        let request = with_deadline!(CALL_DEADLINE, StartContainerRequest { container_id: id.to_owned() });
        self.runtime.block_on(self.pods.clone().start_container(request)).context("starting a container")?;
        Ok(())
    }

    /// Creates and starts a container; returns its id.
    pub fn run_container(&self, pod: &Pod, spec: &ContainerSpec) -> Result<String> {
        let id = self.create_container(pod, spec)?;
        self.start_container(&id)?;
        Ok(id)
    }

    /// Runs a command in a container and waits for its end.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<Executed> {
        let message = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: i64::try_from(CALL_DEADLINE.as_secs())?,
        };
        let request = with_deadline!(CALL_DEADLINE, message);
        let answer = self.runtime.block_on(self.pods.clone().exec_sync(request));
        let answer = answer.with_context(|| format!("running {command:?} in a container"))?.into_inner();
        Ok(Executed { code: answer.exit_code, stdout: answer.stdout, stderr: answer.stderr })
    }

    /// Waits for the end of a container; returns its exit code.
    pub fn wait_exit(&self, id: &str, deadline: Duration) -> Result<i32> {
        wait::until("the container ended", deadline, || {
            let message = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
            let request = with_deadline!(CALL_DEADLINE, message);
            let answer = self.runtime.block_on(self.pods.clone().container_status(request))?.into_inner();
            let status = answer.status.ok_or_else(|| anyhow!("containerd gave no status of {id}"))?;
            Ok((status.state() == ContainerState::ContainerExited).then_some(status.exit_code))
        })
    }

    /// What a container has written to its standard streams so far.
    pub fn logs(&self, id: &str) -> Result<String> {
        let message = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let request = with_deadline!(CALL_DEADLINE, message);
        let answer = self.runtime.block_on(self.pods.clone().container_status(request))?.into_inner();
        let path = answer.status.map(|status| status.log_path).unwrap_or_default();
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading the log {path}"))?;
        // Each line is "TIME STREAM TAG text".
        let texts = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        Ok(texts.map(|line| format!("{line}\n")).collect())
    }

    /// Ids and names of all containers.
    pub fn containers(&self) -> Result<Vec<(String, String)>> {
        let request = with_deadline!(CALL_DEADLINE, ListContainersRequest { filter: None });
        let answer = self.runtime.block_on(self.pods.clone().list_containers(request))?.into_inner();
        let named = answer.containers.into_iter();
        Ok(named.map(|item| (item.id, item.metadata.map(|data| data.name).unwrap_or_default())).collect())
    }

    /// Stops a container.
    pub fn stop_container(&self, id: &str) -> Result<()> {
        let message = StopContainerRequest { container_id: id.to_owned(), timeout: STOP_SECONDS };
        let request = with_deadline!(CALL_DEADLINE, message);
        self.runtime.block_on(self.pods.clone().stop_container(request)).context("stopping a container")?;
        Ok(())
    }

    /// Stops and removes a container.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        self.stop_container(id)?;
        let request = with_deadline!(CALL_DEADLINE, RemoveContainerRequest { container_id: id.to_owned() });
        self.runtime.block_on(self.pods.clone().remove_container(request)).context("removing a container")?;
        Ok(())
    }
}

fn read_only_root() -> LinuxContainerConfig {
    let context = LinuxContainerSecurityContext { readonly_rootfs: true, ..Default::default() };
    LinuxContainerConfig { security_context: Some(context), ..Default::default() }
}

fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}
