//! `cluster run` of a package in a directory: on a machine that is logged in to by a password, and on the machine itself. The image makes its
//! cluster by its own hooks, for that takes seconds.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cluster_image::{OwnRuntime, WORD};
use integration::machines::{Machine, Machines, MachinesOptions};
use integration::peers::{self, ContainerdVersion, Peers};
use integration::process;
use integration::servers::EmbeddedRegistry;
use serde_json::Value;

/// With all that a shell could take for something else.
const PASSWORD: &str = r#"pa ss'w"o$rd\"#;
/// How long a run may take, on a loaded host.
const DEADLINE: Duration = Duration::from_secs(180);
/// The variable that makes ssh an older one.
const OLDER: &str = "OLDER_SSH";
const PROGRAM: &str = "/usr/local/bin/nydus-cluster";
const PACKAGE: &str = "/opt/package";
/// What a node says of the image's registry, and what a cluster puts before it.
const HOSTS: &str = "/etc/containerd/certs.d/registry.example/hosts.toml";
const OWN_HOSTS: &str = "server = \"https://registry.example\"\n\n[host.\"https://mirror.example\"]\n  capabilities = [\"pull\"]\n";
const OWN_CONFIG: &str = "# The node's own.\nversion = 2\n";

pub(crate) fn by_password_and_here(peers: &Peers) -> Result<()> {
    let dir = super::directory(peers)?;
    let package = package(dir.path())?;
    let shown = vec![(peers::nydus_cluster()?, PathBuf::from(PROGRAM)), (package.clone(), PACKAGE.into())];
    let options = MachinesOptions { count: 1, link_mbit: None, shown };
    let machines = Machines::boot(peers, &dir.path().join("machines"), &options)?;
    let [machine] = machines.all() else { anyhow::bail!("not one machine") };
    let result = by_password(machine, &package, dir.path()).and_then(|()| here(machine));
    let result = result.and_then(|()| has_the_image_s_registry(machine));
    let result = result.and_then(|()| keeps_containerd(peers, machine));
    let result = result.and_then(|()| is_mounted_by_the_daemon(machine));
    result.with_context(|| {
        let journal = machine.run("journalctl --no-pager -o cat -n 200 -u 'nydus-cluster-*' -u ssh");
        journal.map(|output| output.stdout).unwrap_or_default()
    })
}

/// A package of the image, in a directory.
fn package(dir: &Path) -> Result<PathBuf> {
    let registry = EmbeddedRegistry::start(&dir.join("registry"))?;
    let name = OwnRuntime::Second.push(&registry)?;
    let (host, _) = name.split_once('/').context("a name without a host")?;
    let certs = dir.join("certs.d");
    fs::create_dir_all(certs.join(host))?;
    let url = format!("http://{}/v2/{host}", registry.address());
    let text = format!("[host.\"{url}\"]\n  override_path = true\n");
    fs::write(certs.join(host).join("hosts.toml"), text)?;
    let config = dir.join("save.toml");
    fs::write(&config, format!("[registry]\ncerts_dir = {certs:?}\n"))?;
    let package = dir.join("package");
    fs::create_dir(&package)?;
    let mut save = Command::new(peers::nydus_cluster()?);
    save.arg("--config").arg(config).args(["cluster", "save", &name, "--plain", "--output"]).arg(&package);
    process::run_within(&mut save, DEADLINE)?;
    Ok(package)
}

/// Nobody is there to type anything, and no other program is told the password in its arguments.
fn by_password(machine: &Machine, package: &Path, dir: &Path) -> Result<()> {
    machine.write(
        "/etc/ssh/sshd_config.d/password.conf",
        "PermitRootLogin yes\nPasswordAuthentication yes\nPubkeyAuthentication no\n",
    )?;
    machine.write("/root/password", format!("root:{PASSWORD}\n"))?;
    // Not reloaded: the server would read its settings some time after that.
    machine.run("chpasswd </root/password; rm /root/password; systemctl restart ssh")?;

    let words = dir.join("words");
    let ssh = recorded_ssh(dir, &words)?;
    let state = dir.join("state");
    let cluster = |arguments: &[&str], password: &str| -> Result<Command> {
        let mut command = Command::new(peers::nydus_cluster()?);
        command.arg("cluster").args(arguments);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", ssh.display())).env("XDG_STATE_HOME", &state);
        // A terminal would be asked, or a window, if ssh had its way.
        command.env("NYDUS_CLUSTER_SSH_PASSWORD", password).env("HOME", dir).env_remove("DISPLAY");
        Ok(command)
    };
    let address = machine.address().to_string();
    let package = package.to_str().context("a path")?;
    let run = ["run", package, "--plain", "--masters", &address, "--user", "root"];
    let said = process::run_failing(&mut cluster(&run, "wrong")?)?.stderr;
    ensure!(said.contains(&address) && said.contains("Permission denied"), "{said}");

    let said = process::run_within(&mut cluster(&run, PASSWORD)?, DEADLINE)?;
    ensure!(said.stdout.trim().ends_with("kubeconfig"), "{}", said.stdout);
    ensure!(said.stderr.contains(&format!("{address}: bringing the package")), "{}", said.stderr);
    let shown = machine.run("cat /run/own-runtime")?.stdout;
    let expected = format!("first master {address}\nlaunched of default, kind: Config\n");
    ensure!(shown == format!("color is of the second\n{expected}"), "{shown}");
    has_what_hooks_left(machine)?;
    ensure!(said.stderr.contains("warning: the image's label auth is not run"), "{}", said.stderr);
    // As an argument of ours it does the same, and nothing of it is kept.
    let mut ps = cluster(&["ps", "--password", PASSWORD], "of nobody")?;
    let shown = process::run_within(&mut ps, DEADLINE)?.stdout;
    ensure!(shown.contains("nydus-cluster-image.service active"), "{shown}");
    let ps = process::run_within(&mut cluster(&["ps", "--json"], PASSWORD)?, DEADLINE)?.stdout;
    let nodes: Value = serde_json::from_str(&ps)?;
    ensure!(nodes[0]["node"] == *address && nodes[0]["role"] == "master", "{nodes}");
    let logs = |node: &str| process::run_any(&mut cluster(&["logs", "--node", node], PASSWORD)?);
    ensure!(logs(&address)?.1.stdout.contains(&format!("{address}: bringing the image")), "nothing is kept");
    ensure!(!logs("10.0.0.1")?.0.success(), "there is no such node");
    process::run_within(cluster(&["rm"], PASSWORD)?.env(OLDER, "yes"), DEADLINE)?;
    is_gone(machine)?;

    let words = fs::read_to_string(&words)?;
    ensure!(words.contains(&address), "no ssh was recorded: {words}");
    ensure!(!words.contains("pa ss") && !words.contains("o$rd"), "the password is in arguments:\n{words}");
    Ok(())
}

/// The server that a hook left in the background goes on, and can say something; hooks of the first node have run.
fn has_what_hooks_left(machine: &Machine) -> Result<()> {
    machine.run("test -e /run/own-registry && test ! -e /run/own-auth")?;
    let said = "journalctl --identifier=nydus-cluster --output=cat | grep -c 'a server is there'";
    let before = machine.run(&format!("{said} || true"))?.stdout;
    let more = format!("kill -0 $(cat /run/own-server) && [ $({said}) -gt {} ]", before.trim());
    machine.wait_for("the server says more", DEADLINE, &more)
}

/// A folder with the system's ssh, which writes its arguments to `words` first, and where it is to be an older one does not know what those
/// before OpenSSH 8.4 did not.
fn recorded_ssh(dir: &Path, words: &Path) -> Result<PathBuf> {
    let folder = dir.join("bin");
    fs::create_dir(&folder)?;
    let ssh = peers::system("ssh")?;
    let text = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" >>'{}'\n[ -z \"${OLDER}\" ] || unset SSH_ASKPASS_REQUIRE\nexec {} \"$@\"\n",
        words.display(),
        ssh.display()
    );
    fs::write(folder.join("ssh"), text)?;
    fs::set_permissions(folder.join("ssh"), Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// Without `--masters` the machine is its own first node. It has no way to other networks.
fn here(machine: &Machine) -> Result<()> {
    machine.run("ip route del default")?;
    machine.write(HOSTS, OWN_HOSTS)?;
    let said = machine.run(&format!("{PROGRAM} cluster run {PACKAGE} --plain"))?;
    ensure!(said.stderr.contains("this machine: bringing the package"), "{}", said.stderr);
    let kubeconfig = said.stdout.trim().to_owned();
    ensure!(machine.run(&format!("cat {kubeconfig}"))?.stdout == "kind: Config\n", "{kubeconfig}");
    let expected = "color is of the second\nfirst master \nlaunched of default, kind: Config\n";
    ensure!(machine.run("cat /run/own-runtime")?.stdout == expected);
    // A second run finds nothing to do.
    let said = machine.run(&format!("{PROGRAM} cluster run {PACKAGE} --plain"))?.stderr;
    ensure!(!said.contains("bringing the package"), "{said}");
    ensure!(machine.run("cat /run/own-runtime")?.stdout == expected);
    mount_comes_back(machine)?;
    let hosts = machine.run(&format!("cat {HOSTS}"))?.stdout;
    let (ours, theirs) = (hosts.find("[host.\"http://"), hosts.find("[host.\"https://mirror.example\"]"));
    ensure!(ours.is_some() && ours < theirs && hosts.starts_with("server = "), "{hosts}");
    let shown = machine.run(&format!("{PROGRAM} cluster ps"))?.stdout;
    ensure!(
        shown.contains("this machine") && shown.contains("nydus-cluster-package.service active"),
        "{shown}"
    );
    let logs = machine.run(&format!("{PROGRAM} cluster logs --node 'this machine'"))?.stdout;
    ensure!(logs.contains("bringing the image"), "{logs}");
    machine.run(&format!("{PROGRAM} cluster rm"))?;
    ensure!(machine.run(&format!("cat {HOSTS}"))?.stdout == OWN_HOSTS, "{HOSTS} is not as it was");
    is_gone(machine)
}

/// The registry in the image's tree answers, at first where containerd asks for images of its hosts, also when the machine has booted.
fn has_the_image_s_registry(machine: &Machine) -> Result<()> {
    machine.run(&format!("{PROGRAM} cluster run {PACKAGE} --plain"))?;
    let hosts = machine.run(&format!("cat {HOSTS}"))?.stdout;
    let (_, address) = hosts.split_once("http://").context("no host is asked by HTTP")?;
    let (address, _) = address.split_once("/v2").context("a place without an API")?;
    ensure!(address.starts_with("127.0.0.1:53"), "{hosts}");
    let (repository, tag) = WORD.trim_start_matches("registry.example/").split_once(':').context("no tag")?;
    let port = address.trim_start_matches("127.0.0.1:");
    let ask = |method: &str, path: &str, status: &str| {
        let request = format!(
            "{method} /v2/{repository}/{path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n"
        );
        format!(
            "exec 3<>/dev/tcp/127.0.0.1/{port} && printf '{request}' >&3 && grep -q '^HTTP/1.1 {status}' <&3"
        )
    };
    let ask = |method, path: &str, status| format!("bash -c \"{}\"", ask(method, path, status));
    machine.run(&ask("GET", &format!("manifests/{tag}"), "200"))?;
    // Nobody can push to it.
    machine.run(&ask("POST", "blobs/uploads/", "405"))?;
    machine.reboot()?;
    let answers = ask("GET", &format!("manifests/{tag}"), "200");
    machine.wait_for("the registry answers after a boot", DEADLINE, &answers)?;
    machine.run(&format!("{PROGRAM} cluster rm"))?;
    machine.run("test ! -e /etc/systemd/system/nydus-cluster-registry.service")?;
    is_gone(machine)
}

/// The process that mounts the cluster image where all else is plain is killed: another one mounts it, and what it has runs again.
fn mount_comes_back(machine: &Machine) -> Result<()> {
    let process = "systemctl show --property=MainPID --value nydus-cluster-image";
    let killed = machine.run(process)?.stdout;
    machine.run(&format!("own-second; kill -9 {}", killed.trim()))?;
    let other = format!("[ $({process}) -gt 0 ] && [ $({process}) != {} ] && own-second", killed.trim());
    machine.wait_for("the cluster image is mounted again", DEADLINE, &other)
}

/// A containerd of the node's own stays as it is where that is wanted.
fn keeps_containerd(peers: &Peers, machine: &Machine) -> Result<()> {
    let program = peers.containerd(ContainerdVersion::V1_7, "containerd")?;
    fs::copy(program, machine.path("/usr/local/bin/containerd")?)?;
    machine.write("/etc/containerd/config.toml", OWN_CONFIG)?;
    machine.write(
        "/etc/systemd/system/containerd.service",
        "[Service]\nType=notify\nExecStart=/usr/local/bin/containerd\nDelegate=yes\n[Install]\nWantedBy=multi-user.target\n",
    )?;
    machine.run("systemctl daemon-reload; systemctl enable --quiet --now containerd")?;
    let look = || {
        let script = "systemctl show --property=MainPID containerd; cat /etc/containerd/config.toml";
        Ok::<_, anyhow::Error>(machine.run(script)?.stdout)
    };
    let before = look()?;
    ensure!(before.ends_with(OWN_CONFIG) && !before.contains("MainPID=0"), "{before}");
    machine.run(&format!("{PROGRAM} cluster run {PACKAGE} --plain --keep-containerd"))?;
    ensure!(look()? == before, "it is another one while the cluster is there: {}", look()?);
    machine.run(&format!("{PROGRAM} cluster rm"))?;
    ensure!(look()? == before, "it is another one afterwards: {}", look()?);
    is_gone(machine)
}

/// Where images are read lazily the node's daemon has the cluster image mounted: what runs from it goes on whichever process is killed, and
/// comes back when the machine boots. The node's containerd is there, as above.
fn is_mounted_by_the_daemon(machine: &Machine) -> Result<()> {
    let run = format!("{PROGRAM} cluster run {PACKAGE} --keep-containerd");
    machine.run(&run)?;
    let mount = "awk '$5 ~ \"^/var/lib/nydus-cluster/cluster/snapshotter/mounts/\" { print $3, $5 }' /proc/self/mountinfo";
    let process = |unit: &str| format!("systemctl show --property=MainPID --value nydus-cluster-{unit}");
    let look = || {
        let script = format!("{mount}; {}; own-second", process("image"));
        Ok::<_, anyhow::Error>(machine.run(&script)?.stdout)
    };
    let before = look()?;
    ensure!(before.contains("/mounts/"), "the daemon has mounted nothing: {before}");
    for units in [&["daemon"][..], &["snapshotter"], &["daemon", "snapshotter"]] {
        let killed = units.iter().map(|unit| machine.run(&process(unit)).map(|output| output.stdout));
        let killed = killed.collect::<Result<Vec<_>>>()?;
        machine
            .run(&format!("kill -9 {}", killed.iter().map(|id| id.trim()).collect::<Vec<_>>().join(" ")))?;
        for (unit, id) in units.iter().zip(&killed) {
            let process = process(unit);
            let another = format!("[ $({process}) -gt 0 ] && [ $({process}) != {} ]", id.trim());
            machine.wait_for(&format!("there is another {unit}"), DEADLINE, &another)?;
        }
        let after = look()?;
        ensure!(after == before, "after a kill of {units:?} there is another mount:\n{before}\n{after}");
    }
    // A second run finds nothing to do.
    machine.run(&run)?;
    ensure!(look()? == before, "{}", look()?);
    // Where the mount is lost for all that, it comes back, and the tree with it.
    let place = before.lines().next().and_then(|line| line.split(' ').nth(1)).context("no mount")?;
    machine.run(&format!("umount --lazy {place}"))?;
    let another = format!("{process} && [ $({process}) -gt 0 ]", process = process("image"));
    let another =
        format!("{another} && [ \"$({mount})\" != '{}' ]", before.lines().next().unwrap_or_default());
    machine.wait_for(
        "the tree is laid again",
        DEADLINE,
        &format!("mountpoint -q {place} && {another} && own-second"),
    )?;
    machine.reboot()?;
    machine.wait_for("the image is there after a boot", DEADLINE, "own-second")?;
    machine.run(&format!("{PROGRAM} cluster rm"))?;
    is_gone(machine)
}

fn is_gone(machine: &Machine) -> Result<()> {
    machine.run("test ! -e /run/own-runtime && test ! -e /run/own-hooks && test ! -e /usr/bin/own-second")?;
    machine
        .run("test ! -e /run/own-server && test ! -e /run/own-registry && test ! -e /usr/sbin/containerd")?;
    machine.run("cd /var/lib/nydus-cluster && test ! -e cluster && test ! -e packages && test ! -e bin")?;
    let left = machine.run("pgrep -l nydus || true; systemctl --failed --no-legend --plain")?.stdout;
    ensure!(left.is_empty(), "these are left:\n{left}");
    let mounts = machine.run("awk '$2 ~ /nydus/' /proc/mounts")?.stdout;
    ensure!(!mounts.contains("/var/lib/nydus-cluster"), "mounts are left:\n{mounts}");
    Ok(())
}
