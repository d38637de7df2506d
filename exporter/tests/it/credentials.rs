//! Whose credentials a push uses: the BuildKit client's, and the exporter's own only where they may stand in for missing ones.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use exporter::ExporterConfig;
use registry::client::ClientConfig;
use registry::server::{Server, ServerConfig, TlsConfig};
use test_support::{Need, SignedBy, has, make_certificate};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::tokens::TokenRegistry;
use crate::support::{Outcome, Stack, run, wait_for};

/// A registry that knows the users `builder` and `exporter`.
async fn guarded_registry(stack: &Stack, stop: CancellationToken, tls: Option<TlsConfig>) -> Server {
    let htpasswd = stack.path("htpasswd");
    let line = |user: &str| format!("{user}:{}\n", bcrypt::hash("secret", 4).unwrap());
    std::fs::write(&htpasswd, line("builder") + &line("exporter")).unwrap();
    let mut config =
        ServerConfig { htpasswd: Some(htpasswd), tls, ..ServerConfig::new(stack.path("guarded")) };
    config.listen.set_port(0);
    registry::server::serve(config, stop).await.unwrap()
}

/// A folder with Docker's `config.json` that has the password of `user` for `host`, if there is a user.
fn docker_config(stack: &Stack, name: &str, host: &str, user: Option<&str>) -> PathBuf {
    let dir = stack.path(name);
    std::fs::create_dir_all(&dir).unwrap();
    let auth = user.map(|user| serde_json::json!({"auth": STANDARD.encode(format!("{user}:secret"))}));
    let content = match auth {
        Some(auth) => serde_json::json!({"auths": {host: auth}}),
        None => serde_json::json!({}),
    };
    std::fs::write(dir.join("config.json"), content.to_string()).unwrap();
    dir
}

/// Builds as a user whose Docker configuration is in `dir`.
async fn build_as(stack: &Stack, socket: &Path, dir: &Path, output: &str) -> Outcome {
    build_with(stack, socket, dir, output, &[]).await
}

/// Builds as a user whose Docker configuration is in `dir`, with these variables set.
async fn build_with(
    stack: &Stack,
    socket: &Path,
    dir: &Path,
    output: &str,
    variables: &[(&str, &str)],
) -> Outcome {
    let context = stack.context("context", "FROM scratch\nCOPY app /app\n", &[("app", b"one")]);
    let mut command = stack.buildctl(socket, &context, &["--output", output]);
    command.env("DOCKER_CONFIG", dir).env("HOME", dir).envs(variables.iter().copied());
    run(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_the_builder_s_and_the_exporter_s_only_where_that_is_allowed() {
    let Some(stack) = Stack::start().await else { return };
    let stop = CancellationToken::new();
    let server = guarded_registry(&stack, stop.clone(), None).await;
    let host = server.address().to_string();
    let own = docker_config(&stack, "own", &host, Some("exporter")).join("config.json");
    let sockets = [true, false].map(|own_credentials| {
        let listen = stack.path(&format!("own-{own_credentials}.sock"));
        let registry = ClientConfig { docker_config: Some(own.clone()), ..ClientConfig::default() };
        let config = ExporterConfig { registry, own_credentials, ..ExporterConfig::default() };
        stack.serve(&stack.path("buildkitd.sock"), &listen, config);
        listen
    });
    for socket in &sockets {
        wait_for("exporter", || socket.exists()).await;
    }
    let builder = docker_config(&stack, "builder", &host, Some("builder"));
    let nobody = docker_config(&stack, "nobody", &host, None);
    let wrong = docker_config(&stack, "wrong", &host, Some("stranger"));

    for (number, (socket, user, pushed)) in [
        (&sockets[1], &builder, true),
        (&sockets[0], &builder, true),
        (&sockets[0], &nobody, true),
        (&sockets[1], &nobody, false),
        (&sockets[0], &wrong, false),
    ]
    .into_iter()
    .enumerate()
    {
        let output = format!("type=nydus-cluster,name={host}/app:v{number}");
        let outcome = build_as(&stack, socket, user, &output).await;
        assert_eq!(outcome.status.success(), pushed, "{number}: {}", outcome.text);
        if !pushed {
            assert!(outcome.text.contains("credentials"), "{number}: {}", outcome.text);
        }
    }
    stop.cancel();
    stack.stop().await;
}

/// A TCP server that notes every header `Authorization` and answers all with 401.
async fn curious() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(note(stream, Arc::clone(&notes)));
        }
    });
    (host, seen)
}

async fn note(mut stream: TcpStream, notes: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
        // No request over plain HTTP begins so: TLS is what was tried.
        if head[0] == 22 {
            return;
        }
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let found = text.lines().filter_map(|line| line.strip_prefix("authorization: ")).map(str::to_owned);
    notes.lock().unwrap().extend(found);
    let answer = "HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let _ = stream.write_all(answer.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exporter_s_password_never_goes_to_an_insecure_registry() {
    let Some(stack) = Stack::start().await else { return };
    let (host, seen) = curious().await;
    let own = docker_config(&stack, "own", &host, Some("exporter")).join("config.json");
    let listen = stack.path("own.sock");
    let registry = ClientConfig { docker_config: Some(own), ..ClientConfig::default() };
    stack.serve_exporter(&stack.path("buildkitd.sock"), &listen, registry);
    wait_for("exporter", || listen.exists()).await;
    let nobody = docker_config(&stack, "nobody", &host, None);
    let output = format!("type=nydus-cluster,name={host}/app:v1,registry.insecure=true");
    build_as(&stack, &listen, &nobody, &output).await.failure();
    assert_eq!(*seen.lock().unwrap(), Vec::<String>::new());

    let builder = docker_config(&stack, "builder", &host, Some("builder"));
    build_as(&stack, &listen, &builder, &output).await.failure();
    let expected = format!("basic {}", STANDARD.encode("builder:secret").to_ascii_lowercase());
    assert!(seen.lock().unwrap().contains(&expected));
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insecure_registry_may_have_any_certificate_and_sees_the_builder_s_password_alone() {
    let Some(stack) = Stack::start().await else { return };
    if !has(&[Need::Program("openssl")]) {
        return stack.stop().await;
    }
    let stop = CancellationToken::new();
    let tls = Some(unknown_certificate(&stack));
    let server = guarded_registry(&stack, stop.clone(), tls).await;
    let host = server.address().to_string();
    let own = docker_config(&stack, "own", &host, Some("exporter")).join("config.json");
    let listen = stack.path("own.sock");
    let registry = ClientConfig { docker_config: Some(own), ..ClientConfig::default() };
    stack.serve_exporter(&stack.path("buildkitd.sock"), &listen, registry);
    wait_for("exporter", || listen.exists()).await;
    let builder = docker_config(&stack, "builder", &host, Some("builder"));
    let nobody = docker_config(&stack, "nobody", &host, None);
    let secure = format!("type=nydus-cluster,name={host}/app:v1");
    let insecure = format!("{secure},registry.insecure=true");
    // Both passwords are good there: with the exporter's own, this would be pushed.
    let text = build_as(&stack, &listen, &nobody, &insecure).await.failure();
    assert!(text.contains("credentials"), "{text}");
    build_as(&stack, &listen, &builder, &insecure).await.success();
    assert!(stack.path("guarded/docker/registry/v2/repositories/app/_manifests/tags/v1").exists());
    // Without the key its certificate counts, and without TLS nothing is said.
    build_as(&stack, &listen, &builder, &secure).await.failure();
    stop.cancel();
    stack.stop().await;
}

/// A certificate that nobody has signed but itself.
fn unknown_certificate(stack: &Stack) -> TlsConfig {
    let key = stack.path("unknown.key");
    let dir = key.parent().unwrap();
    let certificate =
        make_certificate(dir, "unknown", "/CN=unknown", "subjectAltName=IP:127.0.0.1", SignedBy::Itself);
    TlsConfig { certificate, key }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_by_the_client_unless_it_does_not_and_then_with_its_password() {
    let Some(stack) = Stack::start().await else { return };
    let registry = TokenRegistry::start(&stack.registry, "builder", "secret").await;
    let builder = docker_config(&stack, "builder", &registry.host, Some("builder"));
    let socket = stack.path("exporter.sock");
    for (tag, variables, ours) in
        [("v1", &[][..], false), ("v2", &[("BUILDKIT_NO_CLIENT_TOKEN", "1")][..], true)]
    {
        let output = format!("type=nydus-cluster,name={}/app:{tag}", registry.host);
        build_with(&stack, &socket, &builder, &output, variables).await.success();
        stack.manifest(&format!("app:{tag}")).await;
        let asked = registry.asked();
        assert!(!asked.is_empty(), "{tag}: nobody asked for a token");
        for program in asked {
            assert_eq!(program.starts_with("nydus-cluster/"), ours, "{tag}: {program} asked for a token");
        }
    }
    // A user without the password gets none, and the build says so.
    let wrong = docker_config(&stack, "wrong", &registry.host, Some("stranger"));
    let output = format!("type=nydus-cluster,name={}/app:v3", registry.host);
    build_as(&stack, &socket, &wrong, &output).await.failure();
    assert_eq!(registry.asked(), Vec::<String>::new());
    stack.stop().await;
}
