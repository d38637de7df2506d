//! Registries that take only what a pod's pull secrets say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fuse_daemon::control::protocol::Request;
use registry::client::Credentials;
use registry::digest::{Digest, sha256};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::access::{Registry, ask, pull};
use crate::fake_daemon::{refuse, requests};
use crate::harness::{Harness, eventually};
use crate::nydus::Node;

const TOKEN: &str = "the node's token";
const NODE: &str = "node-1";
/// The bcrypt hash of `myPassword`.
const HASH: &str = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";
const PASSWORD: &str = "myPassword";

/// The parts of an API server that a node may see: its own pods, and secrets by name.
struct ApiServer {
    address: String,
    objects: Arc<Mutex<Objects>>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Objects {
    pods: Vec<Value>,
    /// By `NAMESPACE/NAME`.
    secrets: BTreeMap<String, Value>,
    asked: Vec<String>,
    /// What is answered with a failure begins so.
    broken: Option<&'static str>,
}

/// Answers each request with what `answer` makes of its head and of the address that it returns.
async fn serving(
    answer: impl Fn(&str, &str) -> String + Send + Sync + 'static,
) -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (answer, own) = (Arc::new(answer), address.clone());
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, own) = (Arc::clone(&answer), own.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let answer = answer(&String::from_utf8(head).unwrap(), &own);
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (address, AbortOnDropHandle::new(task))
}

impl ApiServer {
    async fn start() -> Self {
        let objects: Arc<Mutex<Objects>> = Arc::default();
        let shared = Arc::clone(&objects);
        let answer = move |head: &str, _: &str| {
            let (status, body) = shared.lock().unwrap().answer(head);
            let body = body.to_string();
            let length = body.len();
            format!(
                "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
                 connection: close\r\n\r\n{body}"
            )
        };
        let (address, task) = serving(answer).await;
        Self { address, objects, _task: task }
    }

    /// Whatever begins so cannot be asked for.
    fn set_broken(&self, path: Option<&'static str>) {
        self.objects.lock().unwrap().broken = path;
    }

    fn kubeconfig(&self, dir: &Path) -> std::path::PathBuf {
        let path = dir.join("kubelet.conf");
        let text = format!(
            "current-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\nusers: [{{name: u, user: {{token: {TOKEN:?}}}}}]\n",
            self.address
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// A pod on the node that runs `image`, with pull secrets of its namespace.
    fn add_pod(&self, namespace: &str, image: &str, secrets: &[&str]) {
        let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
        let spec = json!({"nodeName": NODE, "containers": [{"name": "c", "image": image}], "imagePullSecrets": secrets});
        let metadata = json!({"name": "pod", "namespace": namespace});
        self.objects.lock().unwrap().pods.push(json!({"metadata": metadata, "spec": spec}));
    }

    fn set_secret(&self, name: &str, registry: &str, user: &str) {
        let config = json!({"auths": {registry: {"auth": STANDARD.encode(format!("{user}:{PASSWORD}"))}}});
        let data = json!({".dockerconfigjson": STANDARD.encode(config.to_string())});
        let secret = json!({"type": "kubernetes.io/dockerconfigjson", "data": data});
        self.objects.lock().unwrap().secrets.insert(name.to_owned(), secret);
    }

    fn asked(&self) -> Vec<String> {
        self.objects.lock().unwrap().asked.clone()
    }
}

impl Objects {
    fn answer(&mut self, head: &str) -> (u16, Value) {
        let path = head.split(' ').nth(1).unwrap().to_owned();
        self.asked.push(path.clone());
        let failure = |message: &str| json!({"kind": "Status", "status": "Failure", "message": message});
        if !head.to_lowercase().contains(&format!("authorization: bearer {}", TOKEN.to_lowercase())) {
            return (401, failure("Unauthorized"));
        }
        if self.broken.is_some_and(|broken| path.starts_with(broken)) {
            return (500, failure("etcd is away"));
        }
        if path.starts_with("/api/v1/pods?") {
            if !path.contains(&format!("fieldSelector=spec.nodeName%3D{NODE}&")) {
                return (403, failure("can only list pods of its own node"));
            }
            return (200, json!({"kind": "PodList", "metadata": {}, "items": self.pods}));
        }
        let parts: Vec<_> = path.split('/').collect();
        let ["", "api", "v1", "namespaces", namespace, "secrets", name] = parts[..] else {
            return (403, failure("no relationship found between node and this object"));
        };
        match self.secrets.get(&format!("{namespace}/{name}")) {
            Some(secret) => (200, secret.clone()),
            None => (404, failure("not found")),
        }
    }
}

/// A registry that takes `user` alone, with one blob.
async fn registry(user: &str) -> (Registry, Digest) {
    let open = Registry::start(None).await;
    let blob = open.push("one").await;
    (open.only_for(&format!("{user}:{HASH}\n")).await, blob)
}

/// Its daemon ends with it.
async fn node_with(api: &ApiServer) -> Node {
    let harness = Harness::start_with(|dir, config| {
        config.daemon = crate::fake_daemon::config(dir);
        config.kubeconfig = Some(api.kubeconfig(dir));
        config.node_name = Some(NODE.to_owned());
        config.registry.docker_config = Some(dir.join("config.json"));
    })
    .await;
    Node { harness }
}

#[tokio::test]
async fn a_pull_is_allowed_by_the_secret_of_its_pod_and_refused_without() {
    let (registry, blob) = registry("right").await;
    let api = ApiServer::start().await;
    let node = node_with(&api).await;
    let harness = &node.harness;
    let refused = pull(harness, &registry.image(), std::slice::from_ref(&blob), 2).await.unwrap_err();
    assert!(refused.message().contains("401"), "{refused}");

    api.set_secret("team/regcred", &registry.host(), "right");
    api.add_pod("team", &registry.image(), &["regcred"]);
    let image = format!("{}/i:2", registry.host());
    pull(harness, &image, &[blob], 2).await.unwrap();
}

#[tokio::test]
async fn of_several_secrets_that_is_found_which_the_registry_takes() {
    let (registry, blob) = registry("right").await;
    let api = ApiServer::start().await;
    // The pod's own first, then those of others on the node; a name without a secret is no error.
    api.add_pod("team", &registry.image(), &["missing", "first", "second"]);
    api.add_pod("other", "elsewhere.example/x", &["third"]);
    api.set_secret("team/first", &registry.host(), "wrong");
    api.set_secret("team/second", "*.elsewhere.example", "right");
    api.set_secret("other/third", &registry.host(), "right");
    let node = node_with(&api).await;
    let harness = &node.harness;
    pull(harness, &registry.image(), &[blob], 2).await.unwrap();
    // Nothing was asked for that a node may not see.
    let asked = api.asked();
    let allowed = |path: &String| {
        path.starts_with("/api/v1/pods?fieldSelector=spec.nodeName") || path.contains("/secrets/")
    };
    assert!(asked.iter().all(allowed), "{asked:?}");
}

/// The user that the daemon was last told to show for a repository.
fn shown(harness: &Harness, repository: &str) -> Option<String> {
    let handed = requests(harness.dir.path()).into_iter().rev().find_map(|request| match request {
        Request::HandOut { accesses } => accesses.into_iter().find(|handed| handed.repository == repository),
        _ => None,
    })?;
    match &handed.access.places.last()?.credentials.credentials {
        Credentials::Basic { user, .. } => Some(user.clone()),
        _ => None,
    }
}

/// Has it be found out again how a repository is read, as its credentials are said to be refused. Whoever does that has begun to look
/// at files as well: what they say otherwise from here on is a change.
async fn have_it_found_out_again(harness: &Harness, repository: &str) {
    let dir = harness.dir.path();
    let is_of_it = |request: &Request| match request {
        Request::HandOut { accesses } => accesses.iter().any(|handed| handed.repository == repository),
        _ => false,
    };
    let handed = || requests(dir).iter().filter(|request| is_of_it(request)).count();
    // What is handed out first may be what a daemon is given before it is served.
    for _ in 0..2 {
        let before = handed();
        refuse(dir, repository);
        eventually("it was looked for again", async || (handed() > before).then_some(())).await;
    }
}

#[tokio::test]
async fn the_daemon_is_given_values_again_when_they_are_refused_and_when_a_file_changes() {
    let (registry, blob) = registry("right").await;
    let api = ApiServer::start().await;
    api.add_pod("team", &registry.image(), &["regcred"]);
    api.set_secret("team/regcred", &registry.host(), "right");
    let node = node_with(&api).await;
    let harness = &node.harness;
    pull(harness, &registry.image(), &[blob], 2).await.unwrap();
    let repository = format!("{}/i", registry.host());
    let dir = harness.dir.path();
    eventually("a daemon that says so is handed out what is known", async || {
        refuse(dir, &repository);
        (shown(harness, &repository)? == "right").then_some(())
    })
    .await;

    // A new secret, which nobody looks at before it is needed.
    api.set_secret("team/regcred", &registry.host(), "renewed");
    eventually("the new secret is handed out once the old one was refused", async || {
        refuse(dir, &repository);
        (shown(harness, &repository)? == "renewed").then_some(())
    })
    .await;

    // Files are looked at all the time.
    api.objects.lock().unwrap().secrets.clear();
    let entry = json!({"username": "of the file", "password": "p"});
    fs::write(dir.join("config.json"), json!({"auths": {registry.host(): entry}}).to_string()).unwrap();
    eventually("credentials of a file that changed are handed out", async || {
        (shown(harness, &repository)? == "of the file").then_some(())
    })
    .await;
}

/// A registry that gives everybody what it has, and nothing to whom it does not know, as the large ones do.
fn public(head: &str, own: &str) -> String {
    let head = head.to_lowercase();
    let refused = format!(
        "401 x\r\nwww-authenticate: Bearer realm=\"http://{own}/token\",service=\"x\"\r\ncontent-length: 0"
    );
    let answer = match head.split(' ').nth(1).unwrap() {
        path if !path.starts_with("/token") && head.contains("authorization: bearer everybody") => {
            "200 x\r\ncontent-length: 3".to_owned()
        }
        path if !path.starts_with("/token") => refused,
        _ if head.contains("authorization: ") => "401 x\r\ncontent-length: 0".to_owned(),
        _ => "200 x\r\ncontent-type: application/json\r\ncontent-length: 21\r\n\r\n{\"token\":\"everybody\"}"
            .to_owned(),
    };
    let end = if answer.contains("\r\n\r\n") { "" } else { "\r\nconnection: close\r\n\r\n" };
    format!("HTTP/1.1 {answer}{end}")
}

#[tokio::test]
async fn secrets_that_a_registry_refuses_keep_nobody_from_what_is_public() {
    let blob = sha256(b"one");
    let (host, _serving) = serving(public).await;
    let api = ApiServer::start().await;
    let node = node_with(&api).await;
    for secret in ["revoked", "wrong"] {
        api.set_secret(&format!("other/{secret}"), &host, secret);
        api.add_pod("other", "elsewhere.example/x", &[secret]);
        let image = format!("{host}/{secret}:1");
        pull(&node.harness, &image, std::slice::from_ref(&blob), 2).await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_says_nothing_where_secrets_cannot_be_asked_for() {
    let (registry, blob) = registry("right").await;
    let api = ApiServer::start().await;
    api.add_pod("team", &registry.image(), &["regcred"]);
    api.set_secret("team/regcred", &registry.host(), "right");
    let node = node_with(&api).await;
    let (harness, dir) = (&node.harness, node.harness.dir.path());
    for (path, name) in [("/api/v1/pods", "other:1"), ("/api/v1/namespaces/team/secrets/", "i:2")] {
        api.set_broken(Some(path));
        let image = format!("{}/{name}", registry.host());
        pull(harness, &image, std::slice::from_ref(&blob), 2).await.unwrap();
    }
    // The secret that cannot be read is not for this one.
    let other = format!("{}/other:2", registry.host());
    let refused = pull(harness, &other, std::slice::from_ref(&blob), 2).await.unwrap_err();
    assert!(refused.message().contains("401"), "{refused}");
    api.set_broken(None);
    pull(harness, &registry.image(), &[blob], 2).await.unwrap();
    let repository = format!("{}/i", registry.host());
    eventually("the secret is handed out", async || {
        refuse(dir, &repository);
        (shown(harness, &repository)? == "right").then_some(())
    })
    .await;

    // One that cannot be read now is as it was.
    api.set_broken(Some("/api/v1/namespaces/team/secrets/"));
    have_it_found_out_again(harness, &repository).await;
    assert_eq!(shown(harness, &repository).as_deref(), Some("right"));
}

/// A registry that hides everything from everybody.
fn hiding(head: &str, own: &str) -> String {
    public(head, own).replacen("200 x\r\ncontent-length: 3", "404 x\r\ncontent-length: 0", 1)
}

#[tokio::test]
async fn what_a_registry_hides_is_not_missing_where_other_credentials_may_be_right() {
    let blob = sha256(b"one");
    let (host, _serving) = serving(hiding).await;
    let api = ApiServer::start().await;
    let node = node_with(&api).await;
    let pulled = async |name: &str| {
        pull(&node.harness, &format!("{host}/{name}"), std::slice::from_ref(&blob), 2).await
    };
    api.set_broken(Some("/api/v1/pods"));
    pulled("i:1").await.unwrap();
    api.set_broken(None);
    let missing = pulled("i:2").await.unwrap_err();
    assert!(missing.message().contains("404 Not Found"), "{missing}");

    // It is the pod's own secret that is refused, and that has to be said.
    api.set_secret("team/regcred", &host, "wrong");
    api.add_pod("team", &format!("{host}/j:1"), &["regcred"]);
    let refused = pulled("j:1").await.unwrap_err();
    assert!(refused.message().contains("401 Unauthorized"), "{refused}");
}

#[tokio::test]
async fn what_worked_last_stays_while_a_file_cannot_be_read() {
    let (registry, blob) = registry("right").await;
    let api = ApiServer::start().await;
    let node = node_with(&api).await;
    let (harness, dir) = (&node.harness, node.harness.dir.path());
    let entry = json!({"username": "right", "password": PASSWORD});
    let config = json!({"auths": {registry.host(): entry}}).to_string();
    fs::write(dir.join("config.json"), &config).unwrap();
    pull(harness, &registry.image(), std::slice::from_ref(&blob), 2).await.unwrap();
    let repository = format!("{}/i", registry.host());
    have_it_found_out_again(harness, &repository).await;
    // As it is while it is written.
    fs::write(dir.join("config.json"), &config[..config.len() / 2]).unwrap();
    have_it_found_out_again(harness, &repository).await;
    assert_eq!(shown(harness, &repository).as_deref(), Some("right"));
    pull(harness, &format!("{}/i:2", registry.host()), &[blob], 2).await.unwrap();
}

#[tokio::test]
async fn certificates_are_read_again_wherever_hosts_toml_says_that_they_are() {
    let registry = Registry::start(None).await;
    let blob = registry.push("one").await;
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("ca.pem");
    fs::write(&file, "one").unwrap();
    let folder = registry.host();
    let harness = Harness::start_with(|dir, config| {
        config.daemon = crate::fake_daemon::config(dir);
        config.registry.certs_dir = dir.join("certs.d");
        let folder = config.registry.certs_dir.join(folder);
        fs::create_dir_all(&folder).unwrap();
        let settings = format!("[host.\"https://mirror.invalid\"]\nca = {file:?}\n");
        fs::write(folder.join("hosts.toml"), settings).unwrap();
    })
    .await;
    let node = Node { harness };
    let (harness, dir) = (&node.harness, node.harness.dir.path());
    pull(harness, &registry.image(), &[blob], 2).await.unwrap();
    let repository = format!("{}/i", registry.host());
    let trusted = || {
        let handed = requests(dir).into_iter().rev().find_map(|request| match request {
            Request::HandOut { accesses } => {
                accesses.into_iter().find(|handed| handed.repository == repository)
            }
            _ => None,
        })?;
        handed.access.places.first()?.connection.authorities.first()?.text.clone().ok()
    };
    eventually("what is known is handed out", async || {
        refuse(dir, &repository);
        (trusted()? == "one").then_some(())
    })
    .await;
    have_it_found_out_again(harness, &repository).await;
    fs::write(&file, "two").unwrap();
    eventually("the new certificate is handed out", async || (trusted()? == "two").then_some(())).await;
}

#[tokio::test]
async fn a_registry_that_does_not_answer_keeps_no_other_from_its_new_credentials() {
    const SILENT_REPOSITORIES: usize = 40;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let (registry, blob) = registry("right").await;
    let api = ApiServer::start().await;
    // Which of the two it takes has to be tried.
    for secret in ["first", "second"] {
        api.set_secret(&format!("team/{secret}"), &host, secret);
    }
    for number in 0..SILENT_REPOSITORIES {
        api.add_pod("team", &format!("{host}/i{number}:1"), &["first", "second"]);
    }
    let node = node_with(&api).await;
    let harness = &node.harness;
    let write = |user: &str, password: &str| {
        let entry = json!({"username": user, "password": password});
        let config = json!({"auths": {registry.host(): entry}}).to_string();
        fs::write(harness.dir.path().join("config.json"), config).unwrap();
    };
    write("right", PASSWORD);
    pull(harness, &registry.image(), std::slice::from_ref(&blob), 2).await.unwrap();
    let repository = format!("{}/i", registry.host());
    have_it_found_out_again(harness, &repository).await;
    for number in 0..SILENT_REPOSITORIES {
        ask(harness, &format!("{host}/i{number}:1"), &blob).await;
    }
    write("of the file", "p");
    eventually("credentials of a file that changed are handed out", async || {
        (shown(harness, &repository)? == "of the file").then_some(())
    })
    .await;
}
