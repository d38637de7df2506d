//! `nydus-cluster image …`: commands that work on one image.

mod blobs;
mod check;
mod convert;
mod diff;
mod inspect;
mod json;
mod kept;
mod merge;
mod mount;
mod mountpoint;
mod original;
mod output;
mod progress;
mod source;
mod unpack;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::args::{Image, Source};
use crate::config::Config;
use crate::{shutdown, status, stdout};
use progress::Progress;

/// Why an interrupted command has no result.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

/// What the commands have in common.
struct Context {
    config: Config,
    /// Where they show how far they are.
    progress: Progress,
    /// Says that the user wants no more of it.
    stop: CancellationToken,
}

impl Context {
    async fn locate(&self, source: &Source) -> anyhow::Result<source::Located> {
        self.locate_again(source, None).await
    }

    /// As [`Self::locate`], with what the directory of a cache keeps.
    async fn locate_again(&self, source: &Source, keep: Option<&Path>) -> anyhow::Result<source::Located> {
        let located = source::locate(source, keep, &self.config.registry, &self.progress);
        self.stop.run_until_cancelled(located).await.ok_or(Interrupted)?
    }
}

/// Runs the command. The first SIGINT or SIGTERM lets it clean up.
pub(crate) async fn run(config: Config, command: Image) -> anyhow::Result<ExitCode> {
    let context = Context { config, progress: Progress::new(), stop: shutdown::on_signal()? };
    let outcome = dispatch(&context, command).await;
    // Whatever failed then, it failed because of that.
    if context.stop.is_cancelled() && outcome.is_err() {
        stdout::note(&format!("nydus-cluster: {Interrupted}"));
        return Ok(status::interrupted());
    }
    outcome
}

async fn dispatch(context: &Context, command: Image) -> anyhow::Result<ExitCode> {
    match command {
        Image::Convert(flags) => convert::run(context, *flags).await,
        Image::Inspect { source, dump: true, .. } => inspect::dump(context, &source).await,
        Image::Inspect { source, json, file, dump: false } => {
            inspect::run(context, &source, json, file).await
        }
        Image::Check { source, json, metadata_only, original } => {
            check::run(context, &source, check::CheckRequest { metadata_only, original, json }).await
        }
        Image::Diff { a, b, blobs, platform, json } => {
            let a = Source { image: a, blobs: blobs.clone(), platform: platform.clone() };
            diff::run(context, &a, &Source { image: b, blobs, platform }, json).await
        }
        Image::Merge { layers, json, output, options } => {
            merge::run(context, merge::MergeRequest { layers, output, options: options.0, json }).await
        }
        Image::Mount { source, mountpoint, cache, complete_after, options } => {
            let located = context.locate_again(&source, cache.as_deref()).await?;
            let place = mount::MountPlace {
                mountpoint: &mountpoint,
                rights: mount::rights(&options),
                cache,
                complete_after: complete_after.map(Duration::from_secs),
            };
            mount::run(&located, place, &context.config.daemon.read, context.stop.clone()).await
        }
        Image::Unpack { source, destination, directory } => {
            unpack::run(context, &source, destination, directory).await
        }
    }
}
