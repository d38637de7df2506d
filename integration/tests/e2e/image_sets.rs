//! Image sets: images that are pulled by their own names run as RAFS, and nothing that Kubernetes sees of them changes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster::saved::{SavedAt, SavedImages};
use integration::access_log::Request;
use integration::cri::{ContainerSpec, Cri};
use integration::node::{Node, NodeOptions};
use integration::servers::EmbeddedRegistry;
use integration::{oci_layout, peers, process, wait};
use nix::sys::signal::{Signal, kill};
use registry::Reference;
use snapshotter::control::{BackendSpec, Client, ImageSet};

use crate::fixture::{Fixture, manifest};
use crate::parallel_unpack::layer;
use crate::same_tree::list_image_tree;

/// How long another daemon may take to be there.
const PATIENCE: Duration = Duration::from_secs(60);
/// Characters of a file that is no part of what is fetched with others.
const LARGE: usize = 600_000;

/// Plain images in the registry, by what they are made of: two layers that they share, and one of their own. The lowest is no other
/// image's, the pods' neither.
struct Images {
    dir: PathBuf,
    base: PathBuf,
    common: PathBuf,
    host: String,
    name: String,
}

/// A plain image.
struct Plain {
    name: String,
    /// Its repository, without the registry.
    repository: String,
    digest: String,
    layers: Vec<String>,
}

impl Images {
    fn new(fixture: &Fixture, name: &str) -> Result<Self> {
        let dir = fixture.subdir(name)?;
        let common = dir.join("common.tar");
        let large = text("common", LARGE);
        layer(
            &common,
            &[("etc/kept", "kept"), ("etc/replaced", "old"), ("etc/removed", "x"), ("etc/common", &large)],
        )?;
        let host = fixture.registry()?.address().to_string();
        // Each version of containerd has images of its own: what a test removes is not another's.
        let name = dir.file_name().context("a directory without a name")?.to_string_lossy().into_owned();
        Ok(Self { base: fixture.peers().pause_rootfs()?, dir, common, host, name })
    }

    /// An image whose uppermost layer replaces one file, removes one, and has a large one, `etc/NAME`.
    fn push(&self, name: &str) -> Result<Plain> {
        let upper = self.dir.join(format!("{name}.tar"));
        let own = format!("etc/{name}");
        layer(&upper, &[("etc/replaced", name), ("etc/.wh.removed", ""), (&own, &text(name, LARGE))])?;
        let layout = self.dir.join(name);
        let layers = [&self.common, &self.base, &upper].map(PathBuf::as_path);
        oci_layout::write(&layout, &layers, &["/bin/sleep", "infinity"], &[oci_layout::architecture()])?;
        let image = format!("{}/{}/{name}", self.host, self.name);
        oci_layout::copy(&format!("oci:{}", layout.display()), &format!("docker://{image}:v1"))?;
        let layers = manifest(&format!("{image}:v1"))?["layers"].as_array().cloned().unwrap_or_default();
        let layers = layers.iter().filter_map(|layer| Some(layer["digest"].as_str()?.to_owned())).collect();
        let digest = process::run(
            Command::new(peers::system("skopeo")?)
                .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"])
                .arg(format!("docker://{image}:v1")),
        )?;
        let digest = format!("{image}@{}", digest.stdout.trim());
        let repository = format!("{}/{name}", self.name);
        Ok(Plain { name: format!("{image}:v1"), repository, digest, layers })
    }

    /// The set of images that `cluster save` has saved, which is called as they are.
    fn save(&self, set: &str, images: &[&Plain]) -> Result<ImageSet> {
        let tree = self.dir.join(format!("tree-{set}"));
        std::fs::create_dir(&tree)?;
        let list: String = images.iter().map(|image| format!("{}\n", image.name)).collect();
        std::fs::write(tree.join("imageList"), list)?;
        let repository = format!("{}/saved-{}/{set}", self.host, self.name);
        let mut save = Command::new(peers::nydus_cluster()?);
        process::run(save.args(["cluster", "save"]).arg(&tree).args(["--to", &format!("{repository}:v1")]))?;
        let client = registry::client::Client::new(registry::client::ClientConfig::default())?;
        let place = SavedAt::Repository(Reference::parse(&format!("{repository}:v1"))?);
        let saved = block_on(SavedImages::open(&place, &client))??;
        let table = saved.table().context("images were saved without a table")?;
        Ok(table.image_set(set, vec![BackendSpec::Registry { repository }])?)
    }

    /// Whether requests are for saved images.
    fn of_saved<'r>(&self, requests: &'r [Request]) -> Vec<&'r Request> {
        requests.iter().filter(|request| request.path.contains(&format!("saved-{}", self.name))).collect()
    }
}

/// So many characters that do not compress well, other ones for each seed.
fn text(seed: &str, length: usize) -> String {
    let mut text = String::new();
    let mut digest = registry::digest::sha256(seed.as_bytes());
    while text.len() < length {
        text.push_str(digest.digest());
        digest = registry::digest::sha256(digest.digest().as_bytes());
    }
    text
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}

fn sets(node: &mut Node) -> Result<Client> {
    Ok(Client::new(node.snapshotter()?.dir().join("snapshotter-control.sock")))
}

fn put(node: &mut Node, set: &ImageSet) -> Result<()> {
    let client = sets(node)?;
    ensure!(block_on(client.put(set))??, "the set is new");
    ensure!(!block_on(client.put(set))??, "putting it again changes nothing");
    Ok(())
}

/// The layers of an image that were fetched. Pods have one of them as well, from another repository.
fn fetched<'i>(image: &'i Plain, requests: &[Request]) -> Vec<&'i String> {
    let of_image = format!("/v2/{}/", image.repository);
    let fetches =
        |request: &Request, layer: &str| request.reads_blob(layer) && request.path.starts_with(&of_image);
    image.layers.iter().filter(|layer| requests.iter().any(|request| fetches(request, layer))).collect()
}

/// Fails unless a container has what its image's layers give.
fn expect_content(cri: &Cri, container: &str, name: &str) -> Result<()> {
    let sum = |text: &str| registry::digest::sha256(text.as_bytes()).digest().to_owned();
    for (file, content) in [("common", text("common", LARGE)), (name, text(name, LARGE))] {
        let said = cri.exec(container, &["/bin/busybox", "sha256sum", &format!("/etc/{file}")])?.success()?;
        ensure!(said.starts_with(&sum(&content)), "{file}: {said}, expected {}", sum(&content));
    }
    let script = "cd /etc && cat kept replaced && ! test -e removed && echo new >written";
    let said = cri.exec(container, &["/bin/busybox", "sh", "-c", script])?.success()?;
    ensure!(said == format!("kept{name}"), "{said}");
    Ok(())
}

fn run(node: &Node, pod: &str, image: &str) -> Result<(integration::cri::Pod, String)> {
    let pod = node.pod(pod)?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("main", image, &[]))?;
    Ok((pod, container))
}

/// By tag and by digest, and next to an image that is in no set on the same lowest layers.
pub(crate) fn run_lazily(fixture: &Fixture) -> Result<()> {
    runs_lazily(fixture, "sets", NodeOptions::default())
}

/// The same where layers are unpacked at the same time.
pub(crate) fn run_lazily_unpacked_apart(fixture: &Fixture) -> Result<()> {
    let options = NodeOptions { capabilities: vec!["rebase"], ..NodeOptions::default() };
    runs_lazily(fixture, "sets-rebase", options)
}

fn runs_lazily(fixture: &Fixture, name: &str, options: NodeOptions) -> Result<()> {
    let images = Images::new(fixture, name)?;
    let (inside, outside) = (images.push("inside")?, images.push("outside")?);
    let set = images.save("one", &[&inside])?;
    // containerd says nothing but the chain id then.
    let options = NodeOptions { without_annotations: true, ..options };
    let unpacked_apart = options.capabilities.contains(&"rebase");
    let mut node = fixture.new_node_with(&format!("{name}-node"), options)?;
    put(&mut node, &set)?;
    let log = fixture.registry()?.access_log();

    let start = log.mark()?;
    node.cri().pull(&inside.name)?;
    let requests = log.since(start)?;
    ensure!(fetched(&inside, &requests).is_empty(), "a layer was fetched: {requests:#?}");
    ensure!(images.of_saved(&requests).is_empty(), "the pull asked for saved images: {requests:#?}");
    let (_, container) = run(&node, "by-tag", &inside.name)?;
    expect_content(node.cri(), &container, "inside")?;
    node.cri().pull(&inside.digest)?;
    let (_, by_digest) = run(&node, "by-digest", &inside.digest)?;
    expect_content(node.cri(), &by_digest, "inside")?;
    let requests = log.since(start)?;
    ensure!(fetched(&inside, &requests).is_empty(), "a layer was fetched: {requests:#?}");
    ensure!(images.of_saved(&requests).iter().any(|request| request.range.is_some()), "{requests:#?}");

    let start = log.mark()?;
    node.cri().pull(&outside.name)?;
    let (_, container) = run(&node, "outside", &outside.name)?;
    expect_content(node.cri(), &container, "outside")?;
    let requests = log.since(start)?;
    ensure!(fetched(&outside, &requests) == [&outside.layers[2]], "its own layer alone: {requests:#?}");

    if unpacked_apart {
        // containerd has forgotten the layers below, and `ctr images mount` wants all of them.
        return shows_set(&mut node, &set);
    }
    leaves_the_node_where_its_layers_are(&images, &node, &inside, &by_digest)?;
    let plain = fixture.node()?;
    for image in [&inside, &outside] {
        plain.cri().pull(&image.name)?;
        same_tree(&images.dir, &node, plain, &image.name)?;
        plain.cri().remove_image(&image.name)?;
    }
    shows_set(&mut node, &set)
}

/// An image whose layers are not on the node can be pushed to where they are, and nowhere else; nor exported, nor run by another snapshotter. containerd says
/// which layer it lacks, nothing gets a name, and the image runs on, and again.
fn leaves_the_node_where_its_layers_are(
    images: &Images,
    node: &Node,
    inside: &Plain,
    container: &str,
) -> Result<()> {
    let ctr = |command: &[&str]| {
        let mut ctr = node.containerd().ctr();
        ctr.args(command);
        ctr
    };
    let lacks_a_layer = |said: &process::Output| {
        inside.layers.iter().any(|layer| said.stderr.contains(layer)) && said.stderr.contains("not found")
    };
    let again = format!("{}/{}:again", images.host, inside.repository);
    process::run(&mut ctr(&["images", "push", "--plain-http", &again, &inside.name]))?;
    ensure!(manifest(&again)? == manifest(&inside.name)?, "another image was pushed");

    let elsewhere = EmbeddedRegistry::start(&images.dir.join("elsewhere"))?;
    let target = format!("{}/{}:v1", elsewhere.address(), inside.repository);
    let said = process::run_failing(&mut ctr(&["images", "push", "--plain-http", &target, &inside.name]))?;
    ensure!(lacks_a_layer(&said), "{said:?}");
    ensure!(manifest(&target).is_err(), "{target} has a name");
    let archive = images.dir.join("export.tar");
    let said = process::run_failing(ctr(&["images", "export"]).arg(&archive).arg(&inside.name))?;
    ensure!(lacks_a_layer(&said), "{said:?}");
    // Nor does another snapshotter of the node find them.
    let mut second = ctr(&["run", "--snapshotter", "overlayfs", "--rm", &inside.name, "second"]);
    let said = process::run_failing(second.args(["/bin/busybox", "true"]))?;
    ensure!(lacks_a_layer(&said), "{said:?}");

    expect_content(node.cri(), container, "inside")?;
    let (_, container) = run(node, "after", &inside.name)?;
    expect_content(node.cri(), &container, "inside")
}

/// The tree that one node shows of an image is that of another one, which has it plainly.
fn same_tree(dir: &Path, lazy: &Node, plain: &Node, image: &str) -> Result<()> {
    // Not the place of the last one: containerd 2 knows mounts by that, and forgets them when it next cleans up.
    let dir = tempfile::tempdir_in(dir)?;
    let (one, other) = (dir.path().join("lazy"), dir.path().join("plain"));
    let (_one, _other) = (lazy.mount(image, &one)?, plain.mount(image, &other)?);
    list_image_tree(&one)?.expect_same("as RAFS", &list_image_tree(&other)?, "plainly")
}

fn shows_set(node: &mut Node, set: &ImageSet) -> Result<()> {
    let socket = sets(node)?.socket().to_owned();
    let mut status = node.snapshotter()?.ask(&["node", "status", "--json"])?;
    let said = process::run(status.arg("--snapshotter-socket").arg(socket))?.stdout;
    let status: serde_json::Value = serde_json::from_str(&said)?;
    let shown = &status["image_sets"][0];
    ensure!(shown["name"] == set.name.as_str() && shown["images"] == 1, "{said}");
    ensure!(shown["layers"].as_u64() >= Some(1), "{said}");
    Ok(())
}

/// By `ctr`, which says less: from containerd 2 on it names chains.
pub(crate) fn by_ctr(fixture: &Fixture) -> Result<()> {
    let images = Images::new(fixture, "sets-ctr")?;
    let inside = images.push("inside")?;
    let set = images.save("one", &[&inside])?;
    let options = NodeOptions { without_annotations: true, ..NodeOptions::default() };
    let mut node = fixture.new_node_with("sets-ctr-node", options)?;
    put(&mut node, &set)?;
    let log = fixture.registry()?.access_log();
    let start = log.mark()?;
    let ctr = |command: &[&str]| {
        let mut ctr = node.containerd().ctr();
        ctr.args(command).args(["--snapshotter", node.containerd().snapshotter()]);
        ctr
    };
    process::run(ctr(&["images", "pull"]).args(["--plain-http", &inside.name]))?;
    let command = ["/bin/busybox", "sha256sum", "/etc/common"];
    let said = process::run(ctr(&["run"]).args(["--rm", &inside.name, "by-ctr"]).args(command))?.stdout;
    let expected = registry::digest::sha256(text("common", LARGE).as_bytes());
    ensure!(said.starts_with(expected.digest()), "{said}, expected {expected}");
    let requests = log.since(start)?;
    ensure!(fetched(&inside, &requests).is_empty(), "a layer was fetched: {requests:#?}");
    ensure!(!images.of_saved(&requests).is_empty(), "it did not run as RAFS: {requests:#?}");
    Ok(())
}

/// containerd can take what a container has changed, as for a commit, where each file answers for its extended attributes; elsewhere
/// it says that it cannot. The container goes on.
pub(crate) fn changes_are_taken(fixture: &Fixture) -> Result<()> {
    let images = Images::new(fixture, "sets-changed")?;
    let inside = images.push("inside")?;
    let set = images.save("one", &[&inside])?;
    for exact in [false, true] {
        let config = format!("[daemon]\nexact_xattrs = {exact}\n");
        let mut node = fixture.new_node(&format!("sets-changed-{exact}"), &config)?;
        put(&mut node, &set)?;
        node.cri().pull(&inside.name)?;
        let (_, container) = run(&node, "changed", &inside.name)?;
        // It writes a file.
        expect_content(node.cri(), &container, "inside")?;
        let (layer, containerd) = (images.dir.join(format!("{exact}.tar")), node.containerd());
        let ctr = containerd.ctr();
        let mut diff = Command::new("sh");
        diff.args(["-c", "exec \"$@\" >\"$0\""]).arg(&layer).arg(ctr.get_program()).args(ctr.get_args());
        diff.args(["snapshots", "--snapshotter", containerd.snapshotter(), "diff", "--media-type"]);
        diff.args(["application/vnd.oci.image.layer.v1.tar", &container]);
        if let Err(error) = process::run(&mut diff) {
            // That is what the setting is for; not every containerd fails without it.
            ensure!(!exact && format!("{error:#}").contains("failed to get xattr"), "{error:#}");
        } else {
            let listed = process::run(Command::new("tar").arg("-tf").arg(&layer))?.stdout;
            let files: Vec<_> = listed.lines().filter(|name| !name.ends_with('/')).collect();
            // The runtime makes the others, to mount its own on them.
            ensure!(files == ["etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/written"], "{listed}");
        }
        expect_content(node.cri(), &container, "inside")?;
    }
    Ok(())
}

/// What was pulled goes on after its set is gone, over restarts and crashes of both processes; what is pulled then is plain.
pub(crate) fn outlive(fixture: &Fixture) -> Result<()> {
    let images = Images::new(fixture, "sets-gone")?;
    let (inside, outside) = (images.push("inside")?, images.push("outside")?);
    let set = images.save("one", &[&inside])?;
    let mut node = fixture.new_node("sets-gone-node", "")?;
    put(&mut node, &set)?;
    node.cri().pull(&inside.name)?;
    node.cri().pull(&outside.name)?;
    let (_, first) = run(&node, "first", &inside.name)?;
    let (_, neighbour) = run(&node, "neighbour", &outside.name)?;

    node.snapshotter()?.server().kill()?;
    node.restart_snapshotter()?;
    // Once it has served this one it holds what the daemon serves.
    run(&node, "again", &inside.name)?;
    kill_daemon(&mut node)?;
    // Read for the first time now.
    expect_content(node.cri(), &first, "inside")?;
    expect_content(node.cri(), &neighbour, "outside")?;
    let client = sets(&mut node)?;
    ensure!(block_on(client.remove("one"))??, "there was a set");
    // Both at once: containers lose their root, new ones have one.
    let daemon = node.snapshotter()?.daemon_pid()?;
    node.snapshotter()?.server().kill()?;
    kill(daemon, Signal::SIGKILL)?;
    node.restart_snapshotter()?;
    for (pod, name, image) in [("second", "inside", &inside), ("third", "outside", &outside)] {
        let (_, container) = run(&node, pod, &image.name)?;
        expect_content(node.cri(), &container, name)?;
    }

    node.cri().remove_all_pods()?;
    node.cri().remove_image(&inside.name)?;
    node.cri().remove_image(&outside.name)?;
    let mounts = node.snapshotter()?.dir().join("root/mounts");
    wait::until_true("no image is mounted any longer", PATIENCE, || {
        std::fs::read_dir(&mounts).is_ok_and(|mut entries| entries.next().is_none())
    })?;
    let log = fixture.registry()?.access_log();
    let start = log.mark()?;
    node.cri().pull(&inside.name)?;
    let requests = log.since(start)?;
    // The one in between may be there still, as pods have it.
    let layers = fetched(&inside, &requests);
    ensure!(
        [0, 2].iter().all(|number| layers.contains(&&inside.layers[*number])),
        "its layers: {requests:#?}"
    );
    let (_, container) = run(&node, "plain", &inside.name)?;
    expect_content(node.cri(), &container, "inside")
}

fn kill_daemon(node: &mut Node) -> Result<()> {
    let old = node.snapshotter()?.daemon_pid()?;
    kill(old, Signal::SIGKILL).context("killing the daemon")?;
    wait::until("another daemon runs", PATIENCE, || {
        Ok(node.snapshotter()?.daemon_pid().ok().filter(|pid| *pid != old))
    })?;
    Ok(())
}

/// Two sets on one base, put one after the other; one of them goes.
pub(crate) fn two_of_them(fixture: &Fixture) -> Result<()> {
    let images = Images::new(fixture, "sets-two")?;
    let (one, other, third) = (images.push("one")?, images.push("other")?, images.push("third")?);
    let (first, second) = (images.save("first", &[&one])?, images.save("second", &[&other])?);
    let mut node = fixture.new_node("sets-two-node", "")?;
    put(&mut node, &first)?;
    put(&mut node, &second)?;
    let log = fixture.registry()?.access_log();
    let start = log.mark()?;
    for image in [&one, &other] {
        node.cri().pull(&image.name)?;
    }
    let (_, container) = run(&node, "one", &one.name)?;
    let client = sets(&mut node)?;
    ensure!(block_on(client.remove("second"))??, "there was a set");
    expect_content(node.cri(), &container, "one")?;
    let (_, container) = run(&node, "other", &other.name)?;
    expect_content(node.cri(), &container, "other")?;
    let requests = log.since(start)?;
    ensure!(fetched(&one, &requests).is_empty() && fetched(&other, &requests).is_empty(), "{requests:#?}");
    // The first one still has what lies below.
    let start = log.mark()?;
    node.cri().pull(&third.name)?;
    let (_, container) = run(&node, "third", &third.name)?;
    expect_content(node.cri(), &container, "third")?;
    let requests = log.since(start)?;
    ensure!(fetched(&third, &requests) == [&third.layers[2]], "{requests:#?}");
    Ok(())
}
