//! The `nydus-cluster` command: argument parsing and wiring, nothing else.

mod args;
mod cache;
mod cluster;
mod config;
mod image;
mod logging;
mod node;
mod registry;
mod roles;
mod shutdown;
mod status;
mod stdout;
mod upgrade;
mod words;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Worker = arguments.command {
        return worker(&arguments.log);
    }
    let started = config::Config::load(arguments.config.as_deref())
        .and_then(|config| Ok((logging::start(&arguments.log, &config.log)?, config)));
    match started {
        Ok((mut log, config)) => {
            run(arguments, config).unwrap_or_else(|error| match stdout::is_closed(&error) {
                true => status::closed(),
                false => failed(&mut log, &error),
            })
        }
        Err(error) => failed(&mut std::io::stderr(), &error),
    }
}

/// The daemon's worker. It reads no configuration, and has threads only once it has no rights any longer: the log has one.
fn worker(flags: &logging::Flags) -> ExitCode {
    let mut log = None;
    let served =
        fuse_daemon::process::serve(|| log = logging::start(flags, &logging::LogConfig::default()).ok());
    match (served, &mut log) {
        (Ok(()), _) => ExitCode::SUCCESS,
        (Err(error), Some(log)) => failed(log, &error.into()),
        (Err(error), None) => failed(&mut std::io::stderr(), &error.into()),
    }
}

/// Says why, to whoever still reads: that nobody does changes nothing about how the command ended.
fn failed(output: &mut dyn Write, error: &anyhow::Error) -> ExitCode {
    let _ = output.write_all(format!("nydus-cluster: {error:#}\n").as_bytes());
    status::failed()
}

fn run(arguments: Arguments, config: config::Config) -> anyhow::Result<ExitCode> {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    if matches!(arguments.command, Command::Exporter(_)) {
        // What passes through goes from task to task, which is quicker on one thread than from core to core; other threads convert.
        let cores = std::thread::available_parallelism()?.get();
        threads.worker_threads((cores / 2).max(1));
    }
    let runtime = threads.enable_all().build()?;
    let code = runtime.block_on(async {
        match arguments.command {
            Command::Exporter(flags) => roles::exporter(config, flags).await,
            Command::Snapshotter(flags) => roles::snapshotter(config, flags, arguments.config).await,
            Command::Daemon(flags) => roles::daemon(config, flags, &arguments.log).await,
            Command::Upgrade { socket } => upgrade::run(config, socket).await,
            // It has no runtime yet: see `main`.
            Command::Worker => Ok(status::failed()),
            Command::Registry(command) => registry::run(config, command).await,
            Command::Node(command) => node::run(config, command).await,
            Command::Cache(command) => cache::run(config, command).await,
            Command::Image(command) => image::run(config, command).await,
            Command::Cluster(command) => cluster::run(config, *command).await,
            Command::Version => {
                stdout::print(&format!("nydus-cluster {}\n", env!("CARGO_PKG_VERSION")))?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Completions { shell } => args::completions(shell),
            Command::Man { directory } => args::man_pages(&directory),
        }
    });
    // A blocked read of a remote blob must not keep a cancelled command alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    code
}
