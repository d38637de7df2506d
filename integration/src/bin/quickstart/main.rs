//! The demonstration behind `scripts/quickstart`: a real build becomes a lazy image, a node runs it, and a table says
//! what that took, beside the same application as a plain image.

mod measure;
mod report;
mod stack;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use integration::peers::Peers;

use report::Report;
use stack::Stack;

/// Build an image through the exporter, run it lazily, and compare with a plain image.
#[derive(Debug, Parser)]
#[command(name = "quickstart")]
struct Arguments {
    /// Leave everything running, and print how to use it
    #[arg(long)]
    keep: bool,
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

fn write_json(file: &PathBuf, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
}
