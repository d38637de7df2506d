//! Keeps booted machines: their network, cgroups and mounts, and the loop that boots them again when they reboot.
//!
//! Reads orders on standard input (`machines::plan::Order`); at its end, or on SIGTERM, everything ends. What a killed
//! keeper leaves (cgroups with nothing in them) goes when the next one starts.

mod boot;
mod cgroup;
mod ground;
mod network;

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context, Result};
use clap::Parser;
use integration::machines::plan::{Order, Plan};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};

use boot::Booter;
use network::Network;

/// Keep the machines whose plan is in a directory.
#[derive(Debug, Parser)]
#[command(name = "machines")]
struct Arguments {
    /// The directory
    dir: PathBuf,
}

/// What the keeper acts on.
#[derive(Debug)]
enum Event {
    Order(Order),
    /// Nobody can give orders any more.
    NoOrders,
    Signal(Signal),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // Before there are threads: these inherit both.
    let signals = block_signals()?;
    own_mounts(&arguments.dir)?;
    let file = Plan::file(&arguments.dir);
    let plan = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    let plan: Plan = serde_json::from_slice(&plan).with_context(|| format!("reading {}", file.display()))?;
    let (sender, events) = mpsc::channel();
    read_orders(sender.clone());
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            _ = sender.send(Event::Signal(signal));
        }
    });

    let network = Arc::new(Network::make(&arguments.dir, &plan)?);
    let kept = keep(&arguments.dir, &plan, &network, &events);
    let removed = network.remove();
    kept.and(removed)
}

fn keep(dir: &Path, plan: &Plan, network: &Arc<Network>, events: &mpsc::Receiver<Event>) -> Result<()> {
    let mut machines = Vec::new();
    for (index, name) in plan.names().enumerate() {
        ground::prepare(&dir.join(&name), plan, network.subnet(), index)?;
        machines.push(Booter::start(dir, plan, network, index)?);
    }
    let machine = |name: &str| machines.iter().find(|machine| machine.name() == name);
    let mut kept = false;
    for event in events {
        match event {
            Event::Order(Order::On(name)) => machine(&name).context("no such machine")?.on(),
            Event::Order(Order::Off(name)) => machine(&name).context("no such machine")?.off()?,
            Event::Order(Order::Keep) => kept = true,
            Event::NoOrders if kept => {}
            Event::NoOrders => break,
            Event::Signal(signal) => {
                eprintln!("ending on {signal}");
                break;
            }
        }
    }
    machines.into_iter().map(Booter::end).fold(Ok(()), Result::and)
}

fn block_signals() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("blocking signals")?;
    Ok(signals)
}

/// Goes into a mount namespace of its own, with a `/run` of its own: systemd-nspawn keeps names and locks there. All that is
/// mounted goes with the last process of ours. The namespaces of the network are files in `dir/net`.
fn own_mounts(dir: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    let net = dir.join("net");
    std::fs::create_dir_all(&net)?;
    for place in [Path::new("/run"), &net] {
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .with_context(|| format!("mounting on {}", place.display()))?;
    }
    Ok(())
}

fn read_orders(sender: Sender<Event>) {
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            match Order::parse(&line) {
                Some(order) => _ = sender.send(Event::Order(order)),
                None => eprintln!("{line:?} is no order"),
            }
        }
        _ = sender.send(Event::NoOrders);
    });
}
