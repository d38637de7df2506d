//! `nydus-cluster cluster …`: commands that work on cluster images.

mod args;
mod clusters;
mod images;
mod inspect;
mod lock;
mod merge;
mod opened;
mod package;
mod run;
mod save;
mod saved;
mod serve;

use std::process::ExitCode;

pub(crate) use args::Cluster;

use crate::config::Config;
use crate::stdout::note;
use crate::{shutdown, status};

/// Runs the command until it ends or a signal ends it; what it holds is cleaned up either way.
pub(crate) async fn run(config: Config, command: Cluster) -> anyhow::Result<ExitCode> {
    // A signal is the orderly end of these.
    if matches!(command, Cluster::Serve(_) | Cluster::Tree(_)) {
        return perform(config, command).await;
    }
    let stop = shutdown::on_signal()?;
    let ended = stop.run_until_cancelled(perform(config, command));
    ended.await.unwrap_or_else(|| {
        note("nydus-cluster: interrupted");
        Ok(status::interrupted())
    })
}

async fn perform(config: Config, command: Cluster) -> anyhow::Result<ExitCode> {
    match command {
        Cluster::Images(flags) => images::run(&config, flags).await,
        Cluster::Inspect(flags) => inspect::run(&config, flags).await,
        Cluster::Merge(flags) => merge::run(&config, flags).await,
        Cluster::Save(flags) => save::run(&config, flags).await,
        Cluster::Serve(flags) => serve::run(config, flags).await,
        Cluster::Run(flags) => run::run(&config, flags).await,
        Cluster::Ps(flags) => clusters::ps(flags).await,
        Cluster::Logs(flags) => clusters::logs(&flags),
        Cluster::Rm(flags) => clusters::rm(flags).await,
        Cluster::Node => run::node(&config).await,
        Cluster::Tree(flags) => run::tree(&flags).await,
    }
}
