//! `image diff`: what it says a node must fetch is what a node fetches.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::access_log::bytes_sent;
use integration::process::Server;
use integration::{demo, wait};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::fixture::{Built, Fixture, nydus_layers};
use crate::image_commands::{expect_exit, image};
use crate::same_tree::list_image_tree;

const MOUNT_DEADLINE: Duration = Duration::from_secs(60);
/// How soon after its answer a request has to be in the registry's log.
const LOG_DEADLINE: Duration = Duration::from_secs(30);

/// Two builds of the demonstration, the second with another application.
pub(crate) fn fetched(fixture: &Fixture) -> Result<()> {
    let first = fixture.demo()?;
    let dir = fixture.subdir("diff")?;
    let context = demo::three_layers(fixture.peers(), &dir.join("context"))?;
    OpenOptions::new().append(true).open(context.join("app.py"))?.write_all(b"# another version\n")?;
    let second = fixture.build(&context, "demo:v2")?;
    let report = expect_exit(1, image("diff", &first.name)?.args([&second.name, "--json"]))?;
    let report: Value = serde_json::from_str(&report.stdout)?;

    let changes = report["changes"].as_array().context("changes")?;
    let app = changes.iter().find(|change| change["path"] == "/srv/app/app.py").context("app.py")?;
    ensure!(app["change"] == "changed" && app["content_bytes"] != 0, "{app}");
    let other = changes
        .iter()
        .find(|change| *change != app && (change["change"] != "changed" || change["content_bytes"] != 0));
    ensure!(other.is_none(), "only the application has other content: {other:?}");
    let shared = report["fetch"]["blobs"].as_array().context("blobs")?.iter();
    ensure!(
        shared.filter(|blob| blob["shared"] == true).count() == 2,
        "the lower layers are shared: {report}"
    );
    let for_people = expect_exit(1, image("diff", &first.name)?.arg(&second.name))?.stdout;
    ensure!(for_people.contains("M /srv/app/app.py  size"), "{for_people}");

    let cache = dir.join("cache");
    std::fs::create_dir(&cache)?;
    read_all(fixture, first, &dir.join("first"), &cache)?;
    let log = fixture.registry()?.access_log();
    let mark = log.mark()?;
    read_all(fixture, &second, &dir.join("second"), &cache)?;
    let (blobs, bootstrap) = nydus_layers(&second.manifest)?;
    let sent = |digests: &[String]| -> Result<u64> {
        let mut requests = log.since(mark)?;
        requests.retain(|request| digests.iter().any(|digest| request.reads_blob(digest)));
        Ok(bytes_sent(&requests))
    };
    let fetch = &report["fetch"];
    for (digests, key) in [(blobs, "stored_bytes"), (vec![bootstrap], "bootstrap_bytes")] {
        let expected = fetch[key].as_u64().context(key)?;
        // A request's line may come after its answer.
        let bytes = wait::until("all of it was sent", LOG_DEADLINE, || {
            Ok(Some(sent(&digests)?).filter(|bytes| *bytes >= expected))
        });
        let bytes = bytes.with_context(|| format!("sent: {:?}, {key}: {fetch}", sent(&digests)))?;
        ensure!(bytes == expected, "{bytes} bytes were sent, {key}: {fetch}");
    }
    Ok(())
}

/// Mounts an image with this cache and reads every file.
fn read_all(fixture: &Fixture, built: &Built, dir: &Path, cache: &Path) -> Result<()> {
    std::fs::create_dir(dir)?;
    let mountpoint = dir.join("mnt");
    let mut command = image("mount", &built.name)?;
    command.arg(&mountpoint).arg("--cache").arg(cache);
    let mut server = Server::spawn("image mount", command, dir.join("mount.log"))?;
    server.wait_ready(MOUNT_DEADLINE, || mountpoint.join("srv/app/app.py").exists())?;
    let seen = list_image_tree(&mountpoint);
    kill(server.pid()?, Signal::SIGINT)?;
    let status = wait::until("the mount ended", MOUNT_DEADLINE, || server.exited())?;
    ensure!(status.success() && seen?.len() > 1000, "the whole image was read: {}", fixture.logs());
    Ok(())
}
