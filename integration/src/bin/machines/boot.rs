//! The life of one machine: booted, rebooted, switched off and on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use integration::machines::plan::{self, Plan, Running};
use integration::{peers, wait};
use nix::mount::{MsFlags, mount};

use crate::cgroup::Cgroups;
use crate::network::Network;

/// systemd-nspawn's exit status when the machine wants to be booted again.
const REBOOT: i32 = 133;
/// A shell's script that enters the cgroups whose files come first, and becomes the program after them.
const ENTER: &str = "for file; do shift; [ \"$file\" != -- ] || break; echo 0 >\"$file\"; done; exec \"$@\"";
/// How long it may take until there is a process 1.
const INIT_DEADLINE: Duration = Duration::from_secs(30);

/// A machine, and the thread that boots it.
#[derive(Debug)]
pub(crate) struct Booter {
    name: String,
    cgroups: Cgroups,
    ending: Arc<AtomicBool>,
    on: Sender<()>,
    thread: JoinHandle<Result<()>>,
}

impl Booter {
    /// Boots a machine whose files are prepared.
    pub(crate) fn start(dir: &Path, plan: &Plan, network: &Arc<Network>, index: usize) -> Result<Self> {
        let name = plan::name(index);
        let cgroups = Cgroups::named(&format!("{}-{name}", network.subnet().name()))?;
        let ending = Arc::new(AtomicBool::new(false));
        let (on, switched_on) = mpsc::channel();
        let machine = Machine {
            name: name.clone(),
            index,
            dir: dir.to_owned(),
            shown: plan.shown.clone(),
            network: network.clone(),
            cgroups: cgroups.clone(),
        };
        machine.mount(&plan.root)?;
        let until = ending.clone();
        let thread = thread::spawn(move || {
            let lived = machine.live(&until, &switched_on);
            if let Err(error) = &lived {
                eprintln!("{}: {error:#}", machine.name);
            }
            lived
        });
        Ok(Self { name, cgroups, ending, on, thread })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Boots it, if it is off.
    pub(crate) fn on(&self) {
        _ = self.on.send(());
    }

    /// Cuts its power.
    pub(crate) fn off(&self) -> Result<()> {
        self.cgroups.kill()
    }

    /// Ends it.
    pub(crate) fn end(self) -> Result<()> {
        self.ending.store(true, Ordering::SeqCst);
        drop(self.on);
        while !self.thread.is_finished() {
            self.cgroups.kill()?;
            thread::sleep(Duration::from_millis(10));
        }
        let lived = self.thread.join().map_err(|_| anyhow!("a thread panicked"))?;
        lived.with_context(|| format!("the machine {}", self.name))
    }
}

#[derive(Debug)]
struct Machine {
    name: String,
    index: usize,
    dir: PathBuf,
    shown: Vec<(PathBuf, PathBuf)>,
    network: Arc<Network>,
    cgroups: Cgroups,
}

impl Machine {
    /// Puts what the machine changes on the root that all share.
    fn mount(&self, root: &Path) -> Result<()> {
        let dir = self.dir.join(&self.name);
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            root.display(),
            dir.join("upper").display(),
            dir.join("work").display()
        );
        mount(Some("overlay"), &dir.join("root"), Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("mounting the root of {}", self.name))
    }

    /// Boots again and again, until it ends.
    fn live(&self, ending: &AtomicBool, switched_on: &mpsc::Receiver<()>) -> Result<()> {
        let mut boot = 0;
        while !ending.load(Ordering::SeqCst) {
            boot += 1;
            let again = self.boot(boot)?;
            if !again && switched_on.recv().is_err() {
                break;
            }
            // Orders to switch on a machine that was on.
            while switched_on.try_recv().is_ok() {}
        }
        Ok(())
    }

    /// Boots once and waits for the end; whether it wants to be booted again.
    fn boot(&self, boot: u32) -> Result<bool> {
        self.cgroups.make()?;
        self.network.attach(self.index, &self.name)?;
        let mut child = self.spawn()?;
        let file = Running::file(&self.dir, &self.name);
        let status = match find_init(&mut child)? {
            Some(init) => {
                let temporary = file.with_extension("new");
                fs::write(&temporary, serde_json::to_vec(&Running { init, boot })?)?;
                fs::rename(&temporary, &file)?;
                let status = child.wait()?;
                fs::remove_file(&file)?;
                status
            }
            None => child.wait()?,
        };
        eprintln!("{}: boot {boot} ended: {status}", self.name);
        // What a real machine loses.
        self.cgroups.kill()?;
        self.cgroups.remove()?;
        self.network.detach(&self.name)?;
        Ok(status.code() == Some(REBOOT))
    }

    fn spawn(&self) -> Result<Child> {
        let dir = self.dir.join(&self.name);
        let console = File::options().create(true).append(true).open(dir.join("console.log"))?;
        // In a process namespace that ends with this thread. It enters the cgroups itself, so that nothing is ever outside.
        let mut command = Command::new(peers::system("setpriv")?);
        command.args(["--pdeathsig", "KILL"]).arg(peers::system("unshare")?);
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "/bin/sh", "-ec", ENTER]);
        command.arg("enter").args(self.cgroups.entries()).arg("--");
        command.arg(peers::system("systemd-nspawn")?).args([
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
        ]);
        command.arg("--directory").arg(dir.join("root")).arg("--machine").arg(&self.name);
        let namespace = self.network.namespace(&self.name);
        command.arg(format!("--network-namespace-path={}", namespace.display()));
        command.arg(format!("--bind={}:/var/lib", dir.join("lib").display()));
        for (here, there) in &self.shown {
            command.arg(format!("--bind-ro={}:{}", here.display(), there.display()));
        }
        command.args(["--bind=/dev/fuse", "--bind=/dev/kmsg", "--capability=all"]);
        command.arg("--system-call-filter=@keyring bpf fanotify_init fanotify_mark");
        command.args(["--console=read-only", "--resolv-conf=off", "--timezone=off", "--link-journal=no"]);
        // Of the init: from 256 on systemd wants to be told to run on cgroups of version 1.
        command.arg("SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1");
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "0");
        command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
        command.spawn().with_context(|| format!("booting {}", self.name))
    }
}

/// The process that is the first of the machine: systemd-nspawn's child, which is the child's. None if it ended before.
fn find_init(child: &mut Child) -> Result<Option<i32>> {
    wait::until("the machine has a process 1", INIT_DEADLINE, || {
        let nspawn = children(&child.id().to_string());
        let init = nspawn.iter().flat_map(|id| children(id)).find(|id| is_init(id));
        if let Some(init) = init {
            return Ok(Some(Some(init.parse()?)));
        }
        Ok(child.try_wait()?.map(|_| None))
    })
}

fn children(id: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    text.split_whitespace().map(ToOwned::to_owned).collect()
}

/// Whether a process is the first in its namespace, and has come as far as being systemd.
fn is_init(id: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let first =
        status.lines().any(|line| line.starts_with("NSpid:") && line.split('\t').next_back() == Some("1"));
    first && status.starts_with("Name:\tsystemd\n")
}
