//! What our image says of itself is what BuildKit's own export of the same build says.

use serde_json::Value;
use test_support::noise;

use crate::support::Stack;

/// Steps with and without layers, and all that a config may have.
const EVERYTHING: &str = r#"FROM scratch
COPY base /base
ENV A=one B="two words"
LABEL org.example.a=one org.example.b="two words"
WORKDIR /work
COPY app /app
EXPOSE 80/tcp 53/udp
VOLUME /data
STOPSIGNAL SIGQUIT
HEALTHCHECK --interval=7s CMD ["/app", "check"]
USER 1000:1000
ENTRYPOINT ["/app"]
CMD ["run"]
"#;

/// The config of the image with this digest.
async fn config(stack: &Stack, repository: &str, digest: &str) -> Value {
    let name = format!("{repository}@{digest}");
    let (_, manifest) = stack.manifest(&name).await;
    let config = stack.blob(&name, manifest["config"]["digest"].as_str().unwrap()).await;
    serde_json::from_slice(&config).unwrap()
}

/// A part of a config, taken out of it.
fn take(config: &mut Value, key: &str) -> Value {
    config.as_object_mut().unwrap().remove(key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn config_history_labels_and_platforms_are_those_of_buildkit_s_own_export() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", EVERYTHING, &[("base", &noise(21, 1 << 20)), ("app", b"one")]);
    let platforms = "--opt=platform=linux/arm64,linux/amd64,linux/arm/v7";
    let theirs = format!("type=image,name={}/theirs:v1,push=true,registry.insecure=true", stack.registry);
    for output in [theirs, stack.output("ours:v1")] {
        stack.build(&context, &[platforms, "--output", &output]).await.success();
    }
    let (_, theirs) = stack.manifest("theirs:v1").await;
    let (_, ours) = stack.manifest("ours:v1").await;
    let entries = |index: &Value| index["manifests"].as_array().unwrap().clone();
    assert_eq!(entries(&ours).len(), 3);
    for (theirs, ours) in entries(&theirs).iter().zip(entries(&ours)) {
        // In the same order, too.
        for key in ["os", "architecture", "variant"] {
            assert_eq!(ours["platform"].get(key), theirs["platform"].get(key), "{ours}");
        }
        let mut theirs = config(&stack, "theirs", theirs["digest"].as_str().unwrap()).await;
        let mut ours = config(&stack, "ours", ours["digest"].as_str().unwrap()).await;
        assert_eq!(theirs["config"]["Labels"]["org.example.b"], "two words");
        // The bootstrap is a layer more.
        let layers = |config: &mut Value| take(config, "rootfs")["diff_ids"].as_array().unwrap().len();
        assert_eq!((layers(&mut theirs), layers(&mut ours)), (3, 4));
        let steps = |config: &mut Value| take(config, "history").as_array().unwrap().clone();
        let (before, after) = (steps(&mut theirs), steps(&mut ours));
        assert_eq!((after.len(), &after[..before.len()]), (before.len() + 1, &before[..]));
        assert_eq!(ours, theirs);
    }
    stack.stop().await;
}
