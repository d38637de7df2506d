//! The figures of the project, each measured with its peer in the same run, interleaved.

mod cluster;
mod exporter;
mod figure;
mod lab;
mod main_job;
mod node;
mod rafs;
mod run;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use integration::peers::Peers;

use figure::Figure;
use lab::Lab;

/// Fewer runs say too little of a machine that also does other things.
const FEWEST_RUNS: u16 = 5;

/// Measure against real peers. A peer that cannot run is an error.
#[derive(Debug, Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// What to measure [default: all groups]
    groups: Vec<Group>,
    /// How often each side is measured
    #[arg(long, default_value_t = FEWEST_RUNS, value_parser = clap::value_parser!(u16).range(i64::from(FEWEST_RUNS)..))]
    runs: u16,
    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    own: Option<rafs::Own>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// The main job: export of a large image, cold start from it
    Main,
    /// The node: starts and whole reads from near and far registries, cold and warm
    Node,
    /// The exporter when it knows most of an image already, and eight builds at once
    Exporter,
    /// The image format: building, sizes, memory, merging and opening
    Rafs,
    /// Cluster images: stored bytes, saving, finding what they ask for, launching
    Cluster,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(own) = &arguments.own {
        own.run()?;
        return Ok(ExitCode::SUCCESS);
    }
    let groups = if arguments.groups.is_empty() { Group::value_variants() } else { &arguments.groups };
    let peers = Peers::of_user()?;
    let mut figures = Vec::new();
    for group in groups {
        figures.extend(match group {
            Group::Main => main_job::measure(&Lab::new(&peers)?, arguments.runs)?,
            Group::Node => node::measure(&Lab::new(&peers)?, arguments.runs)?,
            Group::Exporter => exporter::measure(&Lab::new(&peers)?, arguments.runs)?,
            Group::Rafs => rafs::measure(&peers, arguments.runs)?,
            Group::Cluster => cluster::measure(&peers, arguments.runs)?,
        });
    }
    println!("{}", figure::table(&figures));
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    let all_met = figures.iter().all(Figure::is_met);
    Ok(if all_met { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
