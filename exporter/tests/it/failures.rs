//! Builds that fail or are cancelled, and an exporter that stops: what their users are told, and what comes after.

use std::time::{Duration, Instant};

use exporter::ExporterConfig;
use registry::client::{ClientConfig, Retries};
use test_support::noise;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::hanging::Hanging;
use crate::support::{Stack, interrupt, run, wait_for};

const TWO_LAYERS: &str = "FROM scratch\nCOPY base /base\nCOPY app /app\nCMD [\"/app\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn buildkitd_absent_is_an_error_that_names_the_socket() {
    let Some(stack) = Stack::start().await else { return };
    let (absent, listen) = (stack.path("absent.sock"), stack.path("lonely.sock"));
    stack.serve_exporter(&absent, &listen, ClientConfig::default());
    wait_for("exporter", || listen.exists()).await;
    let context = stack.context("context", "FROM scratch\n", &[]);
    let output = stack.output("demo:v1");
    let text = run(stack.buildctl(&listen, &context, &["--output", &output])).await.failure();
    assert!(text.contains(&format!("cannot reach buildkitd at unix://{}", absent.display())), "{text}");
    stack.stop().await;
}

/// A registry that answers every request alike, or has no blob and never answers an upload.
async fn answering(answer: Option<&'static str>) -> (String, tokio::sync::mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (gone, is_gone) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let gone = gone.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 65536];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    if answer.is_none() && buffer.starts_with(b"HEAD") {
                        let _ = stream.write_all(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n").await;
                    }
                    if let Some(answer) = answer {
                        let body = r#"{"errors":[{"code":"X","message":"because of the moon"}]}"#;
                        let head = format!(
                            "HTTP/1.1 {answer}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                            body.len()
                        );
                        let _ = stream.write_all((head + body).as_bytes()).await;
                        break;
                    }
                }
                let _ = gone.send(()).await;
            });
        }
    });
    (address, is_gone)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_fails_the_build_with_the_registry_s_reason() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", "FROM scratch\nCOPY app /app\n", &[("app", b"one")]);
    let listen = stack.path("impatient.sock");
    let retries = Retries { attempts: 2, ..Retries::default() };
    stack.serve_exporter(
        &stack.path("buildkitd.sock"),
        &listen,
        ClientConfig { retries, ..ClientConfig::default() },
    );
    wait_for("exporter", || listen.exists()).await;
    for (answer, code) in [("401 No", "401"), ("403 No", "403"), ("500 No", "500")] {
        let (registry, _gone) = answering(Some(answer)).await;
        let output = format!("type=nydus-cluster,name={registry}/refused:v1");
        let text = run(stack.buildctl(&listen, &context, &["--output", &output])).await.failure();
        assert!(text.contains(code) && text.contains(&registry), "{answer}: {text}");
        // An answer to HEAD has no words.
        let reason = text.contains("because of the moon") || text.contains(": HEAD ");
        assert!(text.contains("ERROR: ") && reason, "{answer}: {text}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_registry_fails_its_build_soon_and_holds_up_no_other() {
    let Some(stack) = Stack::start().await else { return };
    let listen = stack.path("impatient.sock");
    let config = ExporterConfig { registry_answer_seconds: 5, ..ExporterConfig::default() };
    stack.serve(&stack.path("buildkitd.sock"), &listen, config);
    wait_for("exporter", || listen.exists()).await;
    // Connections are taken by the kernel, and nobody reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = silent.local_addr().unwrap();
    let many = "FROM scratch\nCOPY app /a\nCOPY app /b\nCOPY app /c\nCOPY app /d\nCOPY app /e\n";
    let context = stack.context("context", many, &[("app", &noise(9, 1 << 20))]);
    let output = format!("type=nydus-cluster,name={registry}/silent:v1");
    let stuck = run(stack.buildctl(&listen, &context, &["--output", &output]));
    let other = stack.output("other:v1");
    let free = run(stack.buildctl(&listen, &context, &["--output", &other]));
    let (stuck, free) = tokio::join!(stuck, free);
    free.success();
    let text = stuck.failure();
    assert!(text.contains(&format!("registry {registry} gave no usable answer within 5 s")), "{text}");
    drop(silent);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_build_ends_at_once_with_its_upload() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", "FROM scratch\nCOPY app /app\n", &[("app", &noise(5, 8 << 20))]);
    let hanging = Hanging::start(Duration::ZERO).await;
    let output = format!("type=nydus-cluster,name={}/stuck:v1", hanging.host);
    let log = stack.path("cancelled.log");
    let mut command = stack.buildctl(&stack.path("exporter.sock"), &context, &["--output", &output]);
    let file = std::fs::File::create(&log).unwrap();
    let mut buildctl = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    wait_for("upload", || hanging.is_stuck()).await;
    let begin = Instant::now();
    interrupt(&mut buildctl).await;
    // Nothing of it stays at the registry.
    let is_given_up = || hanging.gone() > 0 && hanging.count(&["DELETE"]) == hanging.count(&["POST"]);
    wait_for("end of the upload", is_given_up).await;
    // If nobody ended it, it would last for the minute for which a registry may be silent.
    assert!(begin.elapsed() < Duration::from_secs(45), "{:?}", begin.elapsed());
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buildkitd_that_dies_fails_the_build_with_a_reason_and_the_next_one_is_found() {
    let Some(mut stack) = Stack::start().await else { return };
    let context = stack.context("context", "FROM scratch\nCOPY app /app\n", &[("app", &noise(6, 8 << 20))]);
    let (registry, _gone) = answering(None).await;
    let output = format!("type=nydus-cluster,name={registry}/stuck:v1");
    let log = stack.path("dying.log");
    let mut command = stack.buildctl(&stack.path("exporter.sock"), &context, &["--output", &output]);
    let file = std::fs::File::create(&log).unwrap();
    let mut buildctl = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    wait_for("conversion", || std::fs::read_to_string(&log).unwrap().contains("converting sha256:")).await;
    stack.kill_buildkitd().await;
    let status =
        tokio::time::timeout(Duration::from_secs(60), buildctl.wait()).await.expect("buildctl ends").unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!status.success() && text.contains("buildkitd at unix://"), "{text}");

    stack.restart_buildkitd().await;
    stack.build(&context, &["--output", &stack.output("after:v1")]).await.success();
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_waits_for_builds_under_way() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(7, 4 << 20)), ("app", b"one")]);
    let output = stack.output("last:v1");
    let log = stack.path("last.log");
    let mut command = stack.buildctl(&stack.path("exporter.sock"), &context, &["--output", &output]);
    let file = std::fs::File::create(&log).unwrap();
    let mut buildctl = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    wait_for("export", || std::fs::read_to_string(&log).unwrap().contains("exporting to nydus image")).await;
    stack.stop_exporter();
    let status =
        tokio::time::timeout(Duration::from_secs(30), buildctl.wait()).await.expect("buildctl ends").unwrap();
    assert!(status.success(), "{}", std::fs::read_to_string(&log).unwrap());
    wait_for("the socket's removal", || !stack.path("exporter.sock").exists()).await;
    stack.manifest("last:v1").await;
    stack.stop().await;
}
