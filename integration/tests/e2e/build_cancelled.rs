//! Ctrl-C and a registry that refuses end a build at once, whatever is being pushed, and leave nothing under the image's name.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::servers::{Buildctl, Exporter};
use integration::{demo, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::{Fixture, manifest, through};

const PUSH_DEADLINE: Duration = Duration::from_secs(60);
/// How soon the interrupted buildctl must have ended.
const END_DEADLINE: Duration = Duration::from_secs(25);

pub(crate) fn ends(fixture: &Fixture) -> Result<()> {
    ends_at_once(fixture, &fixture.buildctl()?, "cancelled")
}

/// With the exporter that `buildctl` speaks to; `name` is the image's and the context's.
pub(crate) fn ends_at_once(fixture: &Fixture, buildctl: &Buildctl, name: &str) -> Result<()> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir(name)?, &[("data", 4 << 20)])?;
    let name = format!("{}/{name}:v1", fixture.registry()?.address());
    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    // The push hangs where it is certain to be when the interrupt comes.
    proxy.set_rules(vec![Rule::always("/blobs/uploads/", Failure::Stall)]);
    let output = format!("type=nydus-cluster,name={}", through(&name, proxy.address()));
    let mut command = buildctl.build_command(&context, &[&output]);
    let mut build =
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("starting buildctl")?;
    let outcome = interrupt(&mut build, &proxy);
    if outcome.is_err() {
        build.kill()?;
        build.wait()?;
    }
    outcome?;
    ensure!(manifest(&name).is_err(), "the interrupted build pushed an image");
    // The exporter is as good as before.
    proxy.set_rules(Vec::new());
    buildctl.build(&context, &[&output])?;
    manifest(&name)?;
    Ok(())
}

/// Something that a registry does not do for a build.
struct Phase {
    what: &'static str,
    rule: Rule,
    /// Whether the build refers to a chunk dictionary there.
    dictionary: bool,
    outputs: usize,
    /// Further keys of its outputs.
    keys: &'static str,
    /// Whether its image has a name in another repository too, to which it is copied when it has its own.
    copied: bool,
}

impl Phase {
    fn new(what: &'static str, method: &'static str, path: &str, failure: Failure) -> Self {
        let rule = Rule::always(path, failure).method(method);
        Self { what, rule, dictionary: false, outputs: 1, keys: "", copied: false }
    }

    fn is_refused(&self) -> bool {
        self.rule.failure != Failure::Stall
    }
}

fn phases() -> Vec<Phase> {
    const REFUSED: Failure = Failure::Status(403);
    vec![
        Phase::new("a manifest by its digest stalls", "PUT", "/manifests/sha256:", Failure::Stall),
        Phase::new("a manifest by its digest is refused", "PUT", "/manifests/sha256:", REFUSED),
        Phase::new("the name stalls", "PUT", "/manifests/v1", Failure::Stall),
        Phase::new("the name is refused", "PUT", "/manifests/v1", REFUSED),
        Phase {
            dictionary: true,
            ..Phase::new("a blob of the chunk dictionary stalls", "GET", "/blobs/sha256:", Failure::Stall)
        },
        Phase::new("a layer is converted", "POST", "/blobs/uploads/", Failure::Stall),
        // Its layers stay on the exporter's disk: the first upload is that of what they become together.
        Phase {
            keys: ",flatten=true",
            ..Phase::new("layers are flattened", "POST", "/blobs/uploads/", Failure::Stall)
        },
        Phase {
            keys: ",images=embed",
            ..Phase::new("container images are embedded", "PUT", "/manifests/v1-images", Failure::Stall)
        },
        Phase {
            copied: true,
            ..Phase::new("the image is copied", "POST", "-copy/blobs/uploads/", Failure::Stall)
        },
        Phase { outputs: 2, ..Phase::new("two outputs stall", "PUT", "/manifests/", Failure::Stall) },
        Phase { outputs: 2, ..Phase::new("two outputs are refused", "PUT", "/manifests/", REFUSED) },
    ]
}

pub(crate) fn in_every_phase(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("phases")?;
    let dictionary = format!("{}/phases/dictionary:v0", fixture.registry()?.address());
    let context = demo::random_files(fixture.peers(), &dir.join("dictionary"), &[("data", 1 << 20)])?;
    fixture.buildctl()?.build(&context, &[&format!("type=nydus-cluster,name={dictionary}")])?;
    for (number, phase) in phases().iter().enumerate() {
        if phase.outputs > 1 && fixture.has_oldest_buildkit() {
            continue;
        }
        check(fixture, &dir.join(number.to_string()), number, phase, &dictionary).context(phase.what)?;
    }
    Ok(())
}

/// A build that ends in this phase, with the shared exporter, and what comes after it.
fn check(fixture: &Fixture, dir: &Path, number: usize, phase: &Phase, dictionary: &str) -> Result<()> {
    let context = demo::random_files(fixture.peers(), dir, &[("data", 1 << 20)])?;
    if phase.keys.contains("images=") {
        asks_for_an_image(fixture, &context)?;
    }
    let registry = fixture.registry()?.address();
    let proxy = FaultProxy::start(registry)?;
    let keys = match phase.dictionary {
        true => format!(",chunk-dict={}", through(dictionary, proxy.address())),
        false => phase.keys.to_owned(),
    };
    let names = |build: &str| -> Vec<String> {
        (0..phase.outputs).map(|one| format!("{registry}/phases/{build}-{number}-{one}:v1")).collect()
    };
    let outputs = |names: &[String]| -> Vec<String> {
        let output = |name: &str| {
            let name = through(name, proxy.address());
            let all = if phase.copied { format!("{name},{}", copy_of(&name)) } else { name };
            format!("type=nydus-cluster,\"name={all}\"{keys}")
        };
        names.iter().map(|name| output(name.as_str())).collect()
    };
    let build = |buildctl: &Buildctl, names: &[String]| {
        let outputs = outputs(names);
        buildctl.build(&context, &outputs.iter().map(String::as_str).collect::<Vec<_>>())
    };

    let (buildctl, broken) = (fixture.buildctl()?, names("broken"));
    proxy.set_rules(vec![phase.rule.clone()]);
    let all = outputs(&broken);
    let mut command = buildctl.build_command(&context, &all.iter().map(String::as_str).collect::<Vec<_>>());
    let log = dir.join("buildctl.log");
    let mut child = command.stdout(Stdio::null()).stderr(fs::File::create(&log)?).spawn()?;
    let outcome = match phase.is_refused() {
        true => refused(&mut child, &proxy),
        false => interrupt(&mut child, &proxy),
    };
    if outcome.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let said = fs::read_to_string(&log)?;
    outcome.with_context(|| said.clone())?;
    let reason = if phase.is_refused() { "refused on purpose" } else { "cancel" };
    ensure!(said.contains(reason), "the error does not say {reason:?}:\n{said}");
    for name in &broken {
        let name = if phase.copied { copy_of(name) } else { name.clone() };
        ensure!(manifest(&name).is_err(), "{name} was pushed");
    }

    // The exporter is as good as before, and as good as one that knows nothing.
    proxy.set_rules(Vec::new());
    build(&buildctl, &broken)?;
    let exporter = Exporter::start(&dir.join("x"), &fixture.buildkitd()?.address())?;
    let fresh = names("fresh");
    build(&Buildctl::new(fixture.peers(), exporter.address())?, &fresh)?;
    for (name, fresh) in broken.iter().zip(&fresh) {
        ensure!(manifest(name)? == manifest(fresh)?, "{name} is another image than {fresh}");
    }
    Ok(())
}

/// The name in another repository of what is called `name`.
fn copy_of(name: &str) -> String {
    name.replace(":v1", "-copy:v1")
}

/// Has the tree of `context` ask for a container image.
fn asks_for_an_image(fixture: &Fixture, context: &Path) -> Result<()> {
    fs::write(context.join("imageList"), format!("{}\n", fixture.pause()?))?;
    let dockerfile = context.join("Dockerfile");
    let text = fs::read_to_string(&dockerfile)?;
    Ok(fs::write(dockerfile, text + "COPY imageList /imageList\n")?)
}

fn refused(build: &mut Child, proxy: &FaultProxy) -> Result<()> {
    wait::until_true("the registry refused", PUSH_DEADLINE, || proxy.failed_requests() > 0)?;
    let status = wait::until("the refused build ended", END_DEADLINE, || Ok(build.try_wait()?))?;
    ensure!(!status.success(), "a refused build succeeded");
    Ok(())
}

fn interrupt(build: &mut Child, proxy: &FaultProxy) -> Result<()> {
    wait::until_true("the push began", PUSH_DEADLINE, || proxy.failed_requests() > 0)?;
    kill(Pid::from_raw(i32::try_from(build.id())?), Signal::SIGINT)?;
    let status = wait::until("the interrupted buildctl ended", END_DEADLINE, || Ok(build.try_wait()?))?;
    ensure!(!status.success(), "an interrupted build succeeded");
    Ok(())
}
