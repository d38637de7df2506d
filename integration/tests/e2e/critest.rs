//! critest, the CRI's own suites: those of images and containers, with our snapshotter as containerd's default and their images,
//! under their own names, as nydus images.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::process;

use crate::fixture::Fixture;

/// What all of it may take.
const DEADLINE: Duration = Duration::from_secs(1800);

/// The suites.
const FOCUS: &str = r"\[k8s\.io\] (Image (Manager|Consistency|Identifier)|Container |Idempotence)";

/// Specs that are left out, and why.
const SKIPPED: &[(&str, &str)] = &[
    ("public image with digest should be pulled and removed", "its image cannot be made again"),
    // On a busy machine the shim loses the event of a cgroup of version 1 that goes with its last process.
    (
        "should terminate with exitCode 137 and reason OOMKilled",
        "containerd may hear of the end without its reason",
    ),
];

/// Where the images are that the suites ask for: a host, a repository and a tag; and who its user is, if not root.
const IMAGES: &[(&str, &str, &str, Option<&str>)] = &[
    ("registry.k8s.io", "e2e-test-images/busybox", "1.29-2", None),
    ("registry.k8s.io", "pause", "3.9", None),
    ("k8s.gcr.io", "pause", "3.9", None),
    ("gcr.io", "k8s-staging-cri-tools/test-image-latest", "latest", None),
    ("gcr.io", "k8s-staging-cri-tools/test-image-tag", "test", None),
    ("gcr.io", "k8s-staging-cri-tools/test-image-tag", "all", None),
    ("gcr.io", "k8s-staging-cri-tools/test-image-1", "latest", None),
    ("gcr.io", "k8s-staging-cri-tools/test-image-2", "latest", None),
    ("gcr.io", "k8s-staging-cri-tools/test-image-3", "latest", None),
    ("gcr.io", "k8s-staging-cri-tools/test-image-tags", "1", None),
    ("gcr.io", "k8s-staging-cri-tools/test-image-tags", "2", None),
    ("gcr.io", "k8s-staging-cri-tools/test-image-tags", "3", None),
    ("gcr.io", "k8s-staging-cri-tools/test-image-user-uid", "latest", Some("1002")),
    ("gcr.io", "k8s-staging-cri-tools/test-image-user-username", "latest", Some("www-data")),
    ("gcr.io", "k8s-staging-cri-tools/test-image-user-uid-group", "latest", Some("1003:users")),
    ("gcr.io", "k8s-staging-cri-tools/test-image-user-username-group", "latest", Some("www-data:www-data")),
];

/// What Debian's busybox lacks of what the suites call: says so for each process of that name. The first process is left out: it is the
/// pod's own, which sleeps here.
const PGREP: &str = "#!/bin/sh\nfor comm in /proc/[0-9]*/comm; do\n  [ $comm != /proc/1/comm ] && read name <$comm && [ \"$name\" = \"$1\" ] && echo $comm\ndone\n";

/// What makes an image another one than all others: specs run in any order, leave images behind, and look at all names that an image
/// has. One has three, as the suites want it.
fn content_of(repository: &str, tag: &str) -> String {
    if repository.ends_with("/test-image-tags") {
        repository.to_owned()
    } else {
        format!("{repository}:{tag}")
    }
}

pub(crate) fn passes(fixture: &Fixture) -> Result<()> {
    make_images(fixture)?;
    let dir = fixture.subdir("critest")?;
    let _network = Network::make(&dir)?;
    let node = fixture.new_node("critest", "")?;
    let registry = fixture.registry()?.address();
    let hosts: BTreeSet<&str> = IMAGES.iter().map(|(host, ..)| *host).collect();
    for host in hosts {
        let folder = node.containerd().certs_dir().join(host);
        fs::create_dir_all(&folder)?;
        let text = format!("server = \"https://{host}\"\n[host.\"http://{registry}\"]\n");
        fs::write(folder.join("hosts.toml"), text)?;
    }
    let endpoint = format!("unix://{}", node.containerd().socket().display());
    let mut command = Command::new(fixture.peers().critest()?);
    command.args(["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint]);
    command.args(["--ginkgo.focus", FOCUS, "--ginkgo.no-color", "--ginkgo.timeout", "30m"]);
    for (name, _) in SKIPPED {
        command.args(["--ginkgo.skip", name]);
    }
    command.current_dir(&dir);
    let output = process::run_within(&mut command, DEADLINE)?;
    let ran = output.stdout.lines().find(|line| line.starts_with("Ran ")).context("critest ran nothing")?;
    println!("critest: {ran}");
    for (name, why) in SKIPPED {
        println!("critest: left out: {name} ({why})");
    }
    ensure!(output.stdout.contains("SUCCESS!"), "{}", output.stdout);
    Ok(())
}

/// Builds what the suites pull, of busybox with all its names.
fn make_images(fixture: &Fixture) -> Result<()> {
    let registry = fixture.registry()?.address();
    for (number, (_, repository, tag, user)) in IMAGES.iter().enumerate() {
        let context = fixture.subdir(&format!("critest-{number}"))?;
        fs::copy(fixture.peers().pause_rootfs()?, context.join("busybox.tar"))?;
        fs::write(context.join("content"), content_of(repository, tag))?;
        fs::write(context.join("pgrep"), PGREP)?;
        fs::set_permissions(context.join("pgrep"), Permissions::from_mode(0o755))?;
        fs::write(context.join("passwd"), "root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\n")?;
        fs::write(context.join("group"), "root:x:0:\nusers:x:100:\nwww-data:x:33:\n")?;
        let user = user.map(|user| format!("USER {user}\n")).unwrap_or_default();
        let dockerfile = format!(
            "FROM scratch\nADD busybox.tar /\nRUN --network=none [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
             COPY pgrep /bin/\nCOPY passwd group /etc/\nCOPY content /content\n{user}CMD [\"sh\"]\n"
        );
        fs::write(context.join("Dockerfile"), dockerfile)?;
        let output = format!("type=nydus-cluster,name={registry}/{repository}:{tag}");
        fixture.buildctl()?.build(&context, &[&output])?;
    }
    Ok(())
}

/// A network for pods, of Debian's plugins. They are on a bridge that leads nowhere: with a gateway the plugin would have this host
/// forward for all.
struct Network {
    /// Of this process alone: tests of another checkout may run at the same time.
    bridge: String,
}

impl Network {
    /// For the node whose files are in `dir`.
    fn make(dir: &Path) -> Result<Self> {
        let cni = dir.join("c/cni");
        fs::create_dir_all(cni.join("conf"))?;
        symlink("/usr/lib/cni", cni.join("bin"))?;
        let bridge = format!("critest{}", std::process::id());
        let network = serde_json::json!({
            "cniVersion": "1.0.0", "name": "critest",
            "plugins": [{"type": "bridge", "bridge": bridge, "isGateway": false,
                "ipam": {"type": "host-local", "dataDir": dir.join("addresses"),
                    "ranges": [[{"subnet": "10.213.0.0/24"}]]}}],
        });
        fs::write(cni.join("conf/10-critest.conflist"), network.to_string())?;
        Ok(Self { bridge })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let removed = Command::new("ip").args(["link", "delete", &self.bridge]).output();
        match removed {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                eprintln!("removing {}: {}", self.bridge, String::from_utf8_lossy(&output.stderr));
            }
            Err(error) => eprintln!("removing {}: {error}", self.bridge),
        }
    }
}
