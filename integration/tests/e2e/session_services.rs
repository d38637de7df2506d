//! What a build asks its client for, and caches that come and go, work with an output of ours as without us.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::servers::{Buildctl, Buildkitd, Exporter};
use integration::{demo, peers, process};

use crate::fixture::{Fixture, manifest};

/// Writes what the secret is, and how many keys the agent has.
const ASK: &str = r#"
import os, socket, struct
agent = socket.socket(socket.AF_UNIX)
agent.connect(os.environ["SSH_AUTH_SOCK"])
agent.sendall(struct.pack(">IB", 1, 11))
answer = agent.recv(9, socket.MSG_WAITALL)
_, kind, keys = struct.unpack(">IBI", answer)
assert kind == 12, kind
with open("/told", "w") as told:
    told.write(open("/run/secrets/token").read() + " " + str(keys))
"#;

/// A step that needs both.
const STEP: &str =
    "\nCOPY ask.py /ask.py\nRUN --mount=type=secret,id=token --mount=type=ssh [\"python3\", \"/ask.py\"]\n";

pub(crate) fn pass_through(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("services")?;
    let context = demo::three_layers(fixture.peers(), &dir.join("c"))?;
    let dockerfile = context.join("Dockerfile");
    fs::write(&dockerfile, fs::read_to_string(&dockerfile)? + STEP)?;
    fs::write(context.join("ask.py"), ASK)?;
    let (token, key, cache) = (dir.join("token"), dir.join("key"), dir.join("cache"));
    fs::write(&token, "between us")?;
    let mut keygen = Command::new(peers::system("ssh-keygen")?);
    process::run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;

    let registry = fixture.registry()?.address();
    let build = |buildctl: &Buildctl, name: &str, more: &[String]| -> Result<process::Output> {
        let output = format!("type=nydus-cluster,name={registry}/services/{name}:v1");
        let mut command = buildctl.build_command(&context, &[&output]);
        command.arg("--secret").arg(format!("id=token,src={}", token.display()));
        command.arg("--ssh").arg(format!("default={}", key.display()));
        process::run(command.args(more)).context(name.to_owned())
    };
    let buildctl = fixture.buildctl()?;
    let export = format!("type=local,mode=max,compression=zstd,dest={}", cache.display());
    build(&buildctl, "first", &["--export-cache".to_owned(), export])?;
    let told = dir.join("files");
    let local = format!("type=local,dest={}", told.display());
    process::run(
        buildctl
            .build_command(&context, &[&local])
            .arg("--secret")
            .arg(format!("id=token,src={}", token.display()))
            .arg("--ssh")
            .arg(format!("default={}", key.display())),
    )?;
    ensure!(
        fs::read_to_string(told.join("told"))? == "between us 1",
        "the step did not get what it asked for"
    );

    // Another builder, which has nothing but what the first exported.
    let import = format!("type=local,src={}", cache.display());
    let said = on_new_builder(fixture, &dir.join("other"), |buildctl| {
        build(buildctl, "imported", &["--import-cache".to_owned(), import])
    })?;
    let step = said.stderr.lines().filter(|line| line.contains("CACHED")).count();
    ensure!(step >= 4, "the imported cache was not used:\n{}", said.stderr);
    let made = |name: &str| manifest(&format!("{registry}/services/{name}:v1"));
    let layers = |name: &str| Ok::<_, anyhow::Error>(made(name)?["layers"].as_array().map_or(0, Vec::len));
    ensure!(layers("imported")? == layers("first")?, "the images differ: {}", made("imported")?);
    Ok(())
}

fn on_new_builder<T>(fixture: &Fixture, dir: &Path, work: impl FnOnce(&Buildctl) -> Result<T>) -> Result<T> {
    let buildkitd = Buildkitd::start(fixture.peers(), &dir.join("b"))?;
    let exporter = Exporter::start(&dir.join("x"), &buildkitd.address())?;
    work(&Buildctl::new(fixture.peers(), exporter.address())?)
}
