//! One build, exported both ways, pulled and run both ways.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::access_log::{Request, bytes_sent};
use integration::cri::ContainerSpec;
use integration::node::Node;
use integration::servers::free_address;
use integration::{demo, peers, process};
use serde_json::Value;

use crate::report::{Figures, Report};
use crate::stack::Stack;

const ANSWER_DEADLINE: Duration = Duration::from_secs(120);
/// buildctl without any output only fills the build cache.
const NO_OUTPUT: [&str; 0] = [];

/// What the demonstration showed.
pub(crate) struct Run {
    /// The table.
    pub(crate) report: Report,
    /// What the lazily run application answered.
    pub(crate) answer: String,
    /// Where it answers.
    pub(crate) application: SocketAddr,
}

/// Builds once, then ships and runs the result as a lazy and as a plain image.
pub(crate) fn both(stack: &Stack) -> Result<Run> {
    eprintln!("building three layers");
    let buildctl = stack.buildctl()?;
    buildctl.build(&stack.context, &NO_OUTPUT)?;
    let registry = stack.registry.address();
    let (lazy, plain) = (format!("{registry}/demo:v1"), format!("{registry}/demo:plain"));
    let export = |output: String| -> Result<f64> {
        let start = Instant::now();
        buildctl.build(&stack.context, &[&output])?;
        Ok(start.elapsed().as_secs_f64())
    };
    eprintln!("exporting as a nydus image");
    let lazy_export = export(format!("type=nydus-cluster,name={lazy}"))?;
    eprintln!("exporting as a gzip OCI image");
    // Forced, or BuildKit would push the layers as the first export left them.
    let gzip = "compression=gzip,force-compression=true";
    let plain_export = export(format!("type=image,name={plain},push=true,registry.insecure=true,{gzip}"))?;

    eprintln!("running the nydus image");
    let (lazy, answer, application) = run(stack, &stack.lazy, &lazy, lazy_export)?;
    eprintln!("running the OCI image");
    let (plain, ..) = run(stack, &stack.plain, &plain, plain_export)?;
    Ok(Run { report: Report { lazy, plain }, answer, application })
}

fn run(stack: &Stack, node: &Node, image: &str, export_s: f64) -> Result<(Figures, String, SocketAddr)> {
    let layers = layers(image)?;
    // The sandbox and its image are there before: they are no part of the application.
    let pod = node.pod("demo")?;
    let log = stack.registry.access_log();
    let mark = log.mark()?;
    let start = Instant::now();
    node.cri().pull(image)?;
    let pull_s = start.elapsed().as_secs_f64();
    let pulled = log.since(mark)?;

    let address = free_address()?;
    let spec = ContainerSpec::new("app", image, &[]).with_env("PORT", &address.port().to_string());
    let before_start = Instant::now();
    let container = node.cri().run_container(&pod, &spec)?;
    let start_s = before_start.elapsed().as_secs_f64();
    let answer = demo::ask_until_answered(address, ANSWER_DEADLINE).with_context(|| {
        format!("the application wrote: {}", node.cri().logs(&container).unwrap_or_default())
    })?;
    let answer_s = start.elapsed().as_secs_f64();
    ensure!(answer.starts_with(demo::ANSWER_START), "not the application's answer: {answer}");
    let until_answer = log.since(mark)?;
    let figures = Figures {
        image_bytes: layers.iter().map(|layer| layer.size).sum(),
        pull_bytes: bytes_sent(&pulled),
        pull_blob_bytes: content_bytes(&pulled, &layers),
        bytes_to_answer: bytes_sent(&until_answer),
        export_s,
        pull_s,
        start_s,
        answer_s,
    };
    Ok((figures, answer, address))
}

/// A layer as the manifest names it.
struct Layer {
    digest: String,
    size: u64,
    is_bootstrap: bool,
}

fn layers(image: &str) -> Result<Vec<Layer>> {
    let mut skopeo = Command::new(peers::system("skopeo")?);
    skopeo.args(["inspect", "--raw", "--tls-verify=false"]).arg(format!("docker://{image}"));
    let manifest: Value = serde_json::from_str(&process::run(&mut skopeo)?.stdout)?;
    let layers = manifest["layers"].as_array().with_context(|| format!("no layers in {manifest}"))?;
    layers
        .iter()
        .map(|layer| {
            Ok(Layer {
                digest: layer["digest"].as_str().context("a layer without digest")?.to_owned(),
                size: layer["size"].as_u64().context("a layer without size")?,
                is_bootstrap: layer["annotations"]["containerd.io/snapshot/nydus-bootstrap"] == "true",
            })
        })
        .collect()
}

/// Bytes sent of layers that hold files' content.
fn content_bytes(requests: &[Request], layers: &[Layer]) -> u64 {
    let is_content = |request: &&Request| {
        layers.iter().any(|layer| !layer.is_bootstrap && request.reads_blob(&layer.digest))
    };
    requests.iter().filter(is_content).map(|request| request.bytes_sent).sum()
}
