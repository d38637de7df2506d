//! The demonstration behind `scripts/quickstart`: a real build becomes a lazy image, a node runs it, and a table says
//! what that took, compared with the same application as a plain image.

mod cluster;
mod measure;
mod report;
mod stack;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use integration::cluster_image::Services;
use integration::peers::Peers;
use serde::Serialize;

use stack::Stack;

/// Build an image through the exporter, run it lazily, and compare with a plain image.
#[derive(Debug, Parser)]
#[command(name = "quickstart")]
struct Arguments {
    /// Leave everything running, and print how to use it
    #[arg(long)]
    keep: bool,
    /// Run a Kubernetes on three booted machines instead, from a cluster image
    #[arg(long)]
    cluster: bool,
    /// With --cluster: two services in place of five
    #[arg(long, requires = "cluster")]
    small: bool,
    /// Also write the table as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// End what an earlier run with --keep left running
    Stop,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let peers = Peers::of_user()?;
    // Below the cache, where there is room for images.
    let dir = peers.cache().join("quickstart");
    stack::stop(&dir).with_context(|| format!("ending what runs in {}", dir.display()))?;
    if let Some(Action::Stop) = arguments.action {
        return Ok(());
    }
    if arguments.cluster {
        return run_cluster(&arguments, &peers, &dir);
    }
    let stack = Stack::start(&peers, &dir)?;
    let run = measure::both(&stack)?;
    println!("\napp answers HTTP: {}", run.answer.trim_end());
    println!("\n{}", run.report);
    if let Some(file) = &arguments.json {
        write_json(file, &run.report)?;
    }
    if arguments.keep {
        println!("{}", stack.environment(&run)?);
        stack.release();
        return Ok(());
    }
    drop(stack);
    stack::stop(&dir)
}

fn run_cluster(arguments: &Arguments, peers: &Peers, dir: &Path) -> Result<()> {
    let services = if arguments.small { Services::Two } else { Services::Five };
    let (report, lab) = cluster::run(peers, dir, services)?;
    println!("\n{report}");
    if let Some(file) = &arguments.json {
        write_json(file, &report)?;
    }
    if arguments.keep {
        let first = lab.machines().all().first().context("no machines")?.address();
        let key = lab.machines().key();
        println!(
            "It keeps running. To use it:\n\n  ssh -i {} root@{first} kubectl --kubeconfig /etc/kubernetes/admin.conf get pods -A",
            key.display()
        );
        for port in services.ports() {
            println!("  curl http://{first}:{port}/");
        }
        println!("\nEnd it with: scripts/quickstart stop");
        return lab.release();
    }
    drop(lab);
    stack::stop(dir)
}

fn write_json(file: &PathBuf, report: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
}
