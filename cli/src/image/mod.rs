//! `nydus-cluster image …`: commands that work on one image.

mod blobs;
mod check;
mod inspect;
mod mount;
mod source;
mod unpack;

use std::process::ExitCode;

use crate::args::Image;
use crate::config::Config;

/// Runs the command.
pub(crate) async fn run(config: Config, command: Image) -> anyhow::Result<ExitCode> {
    match command {
        Image::Inspect { source, json, file } => {
            let located = source::locate(&source, &config.registry).await?;
            inspect::run(located, json, file.as_deref())
        }
        // What keeps a check from looking is no finding: exit 2.
        Image::Check { source, metadata_only } => Ok(match source::locate(&source, &config.registry).await {
            Ok(located) => check::run(located, metadata_only).await,
            Err(error) => check::cannot_tell(&error),
        }),
        Image::Mount { source, mountpoint, cache } => {
            let located = source::locate(&source, &config.registry).await?;
            mount::run(&located, &mountpoint, cache, &config.daemon.read).await
        }
        Image::Unpack { source, destination, directory } => {
            let located = source::locate(&source, &config.registry).await?;
            unpack::run(located, destination, directory).await
        }
    }
}
