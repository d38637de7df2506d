//! A cluster image that makes its cluster by its own hooks: a plain one, with templates, launched in sealer's words.

use anyhow::{Result, ensure};
use integration::cluster_image::OwnRuntime;
use integration::cluster_lab::ClusterLab;
use integration::machines::Machine;

const TREE: &str = "/var/lib/nydus-cluster/cluster/tree";
/// A name for all masters, such as that of a load balancer.
const ENDPOINT: &str = "masters.example:6443";

/// On machines that have no cluster.
pub(crate) fn becomes_a_cluster(lab: &ClusterLab) -> Result<()> {
    let push = |which: OwnRuntime| which.push(lab.registry());
    fails(lab, &push(OwnRuntime::Failing)?)?;
    // What the other image left is not in its way.
    let first = push(OwnRuntime::First)?;
    launches_in_time(lab, &first)?;
    says(lab, "color is green", None)?;
    have_run(lab, "check\ninit-cri\ninit\ncheck\n")?;
    ensure!(lab.cluster(&["logs"])?.stdout.contains(": checked default\n"), "output of hooks is not kept");
    // Where images are pulled whole, a node's own containerd is told where they are, and nothing else.
    let second = &lab.machines().all()[1];
    let config = second.run("cat /etc/containerd/config.toml")?.stdout;
    ensure!(config.contains("certs.d") && !config.contains("snapshotter"), "{config}");
    // A second run finds nothing to do.
    lab.run_of(&first, &[])?;
    says(lab, "color is green", None)?;
    have_run(lab, "check\ninit-cri\ninit\ncheck\ncheck\n")?;
    on_all(lab, &format!("own-first && test -e {TREE}/written-1 && test -x {TREE}/scripts/join.sh"))?;

    another_image_follows(lab, &push(OwnRuntime::Second)?)?;
    lab.cluster(&["rm"])?;
    on_all(lab, "test ! -e /run/own-runtime && test ! -e /run/own-hooks && test ! -e /usr/bin/own-second")?;
    // What the image's hooks have installed its hooks take away.
    on_all(lab, "test ! -e /usr/sbin/containerd")?;
    on_all(lab, "test ! -e /var/lib/nydus-cluster/cluster")
}

/// What launches the image has as long as is said, and a next run goes on there.
fn launches_in_time(lab: &ClusterLab, image: &str) -> Result<()> {
    let [first, ..] = lab.machines().all() else { anyhow::bail!("no machines") };
    first.run("touch /run/own-slow")?;
    let said = lab.failing_run_of(image, &["--launch-timeout", "5"])?.stderr;
    ensure!(said.contains("did not end within 5 seconds"), "{said}");
    first.run("test ! -e /run/own-slow && ! pgrep -f '[s]leep 300'")?;
    lab.run_of(image, &["--launch-timeout", "120"]).map(drop)
}

/// A hook that fails is said with all there is to know of it.
fn fails(lab: &ClusterLab, image: &str) -> Result<()> {
    let said = lab.failing_run_of(image, &[])?.stderr;
    for machine in lab.machines().all() {
        let error = format!("{}: preparing: ", machine.address());
        let error = said.split_once(&error).map(|(_, error)| error).unwrap_or_default();
        ensure!(error.contains("exit status: 3") && error.contains("\n  why\n"), "{said}");
    }
    have_run(lab, "check\ninit-cri\n")
}

/// Nodes that left the cluster, and kept what was brought to them, run another image.
fn another_image_follows(lab: &ClusterLab, image: &str) -> Result<()> {
    lab.cluster(&["rm", "--keep-images"])?;
    on_all(lab, "own-first && test ! -e /run/own-runtime && test ! -e /run/own-hooks")?;
    lab.run_of(image, &["--endpoint", ENDPOINT])?;
    says(lab, "color is of the second", Some(ENDPOINT))?;
    have_run(lab, "check\ninit-cri\ninit\n")?;
    // The containerd that its hooks have installed is not taken for one that the node had.
    lab.machines().all()[0].run("test -e /usr/sbin/containerd")?;
    lab.run_of(image, &["--endpoint", ENDPOINT])?;
    have_run(lab, "check\ninit-cri\ninit\ncheck\n")?;
    on_all(lab, "own-second && test ! -L /usr/bin/own-first")?;
    let files = "etc/own.conf scripts/join.sh scripts/up.sh bin/own-second images.lock application/apps/word/go.sh written-2";
    let expected: Vec<_> = files.split(' ').map(|file| format!("./{file}")).collect();
    for machine in lab.machines().all() {
        let found =
            machine.run(&format!("cd {TREE} && find . -path ./registry -prune -o -type f -print"))?.stdout;
        let found: Vec<_> = found.lines().collect();
        let is_so =
            found.len() == expected.len() && expected.iter().all(|file| found.contains(&file.as_str()));
        ensure!(is_so, "{} has {found:?}", machine.name());
    }
    Ok(())
}

/// What the image's own cluster says on each node; `endpoint` is where the others find it, if not at the first.
fn says(lab: &ClusterLab, color: &str, endpoint: Option<&str>) -> Result<()> {
    let [first, second, third] = lab.machines().all() else { anyhow::bail!("not three machines") };
    let endpoint = endpoint.map_or_else(|| first.address().to_string(), ToOwned::to_owned);
    let joined =
        |machine: &Machine| format!("node {} joins {endpoint} with token-of-first\n", machine.address());
    let of_first = format!("{color}\nfirst master {}\nlaunched of default, kind: Config\n", first.address());
    for (machine, expected) in [(first, of_first), (second, joined(second)), (third, joined(third))] {
        let said = machine.run("cat /run/own-runtime")?.stdout;
        ensure!(said == expected, "{} says:\n{said}", machine.name());
    }
    Ok(())
}

/// Which hooks of every cluster have run on each node.
fn have_run(lab: &ClusterLab, hooks: &str) -> Result<()> {
    for machine in lab.machines().all() {
        let found = machine.run("cat /run/own-hooks")?.stdout;
        ensure!(found == hooks, "{} has run:\n{found}", machine.name());
    }
    Ok(())
}

fn on_all(lab: &ClusterLab, script: &str) -> Result<()> {
    lab.machines().all().iter().try_for_each(|machine| machine.run(script).map(drop))
}
