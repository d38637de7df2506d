//! `image check`: is the image what it says, and all there?

use std::process::ExitCode;

use rafs::bootstrap::{Bootstrap, ReadError};
use rafs::check::{self, Options, Report};
use tokio_util::sync::CancellationToken;

use super::blobs::Blobs;
use super::progress::Progress;
use super::source::Located;
use super::{Context, Interrupted};
use crate::args::Source;

/// Something is wrong with the image.
const FINDING: u8 = 1;
/// Nobody knows whether something is.
const UNKNOWN: u8 = 2;

/// Checks the bootstrap and, unless `metadata_only`, everything that the blobs hold.
pub(super) async fn run(context: &Context, source: &Source, metadata_only: bool) -> anyhow::Result<ExitCode> {
    match check(context, source, metadata_only).await {
        Ok(report) => Ok(conclude(&report)),
        Err(error) if context.stop.is_cancelled() => Err(error),
        // What keeps a check from looking is no finding.
        Err(error) => {
            eprintln!("nydus-cluster: cannot check: {error:#}");
            Ok(ExitCode::from(UNKNOWN))
        }
    }
}

async fn check(context: &Context, source: &Source, metadata_only: bool) -> anyhow::Result<Report> {
    let located = context.locate(source).await?;
    let (progress, stop) = (context.progress.clone(), context.stop.clone());
    let work = move || examine(&located, metadata_only, &progress, &stop);
    tokio::task::spawn_blocking(work).await?
}

fn examine(
    located: &Located,
    metadata_only: bool,
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<Report> {
    let mut bootstrap = match Bootstrap::open(&located.bootstrap) {
        Ok(bootstrap) => bootstrap,
        // What this program cannot read need not be damaged.
        Err(error @ (ReadError::Io { .. } | ReadError::Unsupported(_))) => return Err(error.into()),
        Err(error) => {
            let mut report = Report::default();
            report
                .findings
                .push(check::Finding { subject: "bootstrap".to_owned(), problem: error.to_string() });
            return Ok(report);
        }
    };
    let mut report = check::structure(&bootstrap);
    if !metadata_only {
        let source = Blobs::of(located, stop)?;
        let task = progress.task("check", 0);
        let options = Options { progress: &|done, total| task.set(done, total), ..Options::default() };
        report.merge(check::blobs(&mut bootstrap, &source, options));
        task.finish();
    }
    // Blobs that were not read to their end look damaged.
    if stop.is_cancelled() { Err(Interrupted.into()) } else { Ok(report) }
}

fn conclude(report: &Report) -> ExitCode {
    for finding in &report.findings {
        println!("{finding}");
    }
    if report.omitted > 0 {
        println!("and {} findings more", report.omitted);
    }
    println!(
        "{} inodes, {} chunks, {} bytes of content checked: {}",
        report.inodes,
        report.chunks,
        report.bytes,
        if report.is_clean() { "sound" } else { "damaged" }
    );
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(FINDING) }
}
