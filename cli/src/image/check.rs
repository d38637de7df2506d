//! `image check`: is the image what it says, and all there?

use std::process::ExitCode;

use rafs::bootstrap::{Bootstrap, ReadError};
use rafs::check::{self, Options, Report};
use tokio_util::sync::CancellationToken;

use super::blobs::Blobs;
use super::progress::Progress;
use super::source::Located;
use super::{Context, Interrupted, original};
use crate::args::Source;

/// Something is wrong with the image.
const FINDING: u8 = 1;
/// Nobody knows whether something is.
const UNKNOWN: u8 = 2;

/// What is to be checked.
pub(super) struct Wanted {
    /// The bootstrap alone, no blob.
    pub(super) metadata_only: bool,
    /// Where the image is that it was made from.
    pub(super) original: Option<String>,
}

/// Checks the bootstrap, all that the blobs hold, and that it is what it was made from, as far as that is wanted.
pub(super) async fn run(context: &Context, source: &Source, wanted: Wanted) -> anyhow::Result<ExitCode> {
    match check(context, source, wanted).await {
        Err(error) if context.stop.is_cancelled() => Err(error),
        Ok(report) => Ok(conclude(&report)),
        // What keeps a check from looking is no finding.
        Err(error) => Ok(cannot_tell(&format!("{error:#}"))),
    }
}

fn cannot_tell(reason: &str) -> ExitCode {
    eprintln!("nydus-cluster: cannot check: {reason}");
    ExitCode::from(UNKNOWN)
}

async fn check(context: &Context, source: &Source, wanted: Wanted) -> anyhow::Result<Checked> {
    let located = context.locate(source).await?;
    let (progress, stop) = (context.progress.clone(), context.stop.clone());
    let work = move || examine(&located, wanted.metadata_only, &progress, &stop);
    let (mut report, bootstrap) = tokio::task::spawn_blocking(work).await??;
    let compared = wanted.original.is_some() && bootstrap.is_some();
    if let (Some(location), Some(bootstrap)) = (wanted.original, bootstrap) {
        let options = check::source_options(&bootstrap);
        let original = original::build(context, &location, source.platform.as_deref(), options).await?;
        let compare = move || match bootstrap.to_image() {
            Ok(image) => check::against_source(&original, &image),
            Err(error) => broken(&error),
        };
        report.merge(tokio::task::spawn_blocking(compare).await?);
    }
    Ok(Checked { report, compared })
}

/// What was found, and whether the source was compared.
struct Checked {
    report: Report,
    compared: bool,
}

fn broken(error: &ReadError) -> Report {
    let mut report = Report::default();
    report.error("bootstrap", error);
    report
}

/// Checks bootstrap and blobs; gives the bootstrap back, if it is one.
fn examine(
    located: &Located,
    metadata_only: bool,
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<(Report, Option<Bootstrap>)> {
    let mut bootstrap = match Bootstrap::open(&located.bootstrap) {
        Ok(bootstrap) => bootstrap,
        // What this program cannot read need not be damaged.
        Err(error @ (ReadError::Io { .. } | ReadError::Unsupported(_))) => return Err(error.into()),
        Err(error) => return Ok((broken(&error), None)),
    };
    let mut report = check::structure(&bootstrap);
    if !metadata_only {
        let source = Blobs::of(located, stop)?;
        let task = progress.task("check", 0);
        let options = Options { progress: &|done, total| task.set(done, total), ..Options::default() };
        report.merge(check::blobs(&mut bootstrap, &source, options));
        if report.unknown.is_empty() {
            task.finish();
        }
    }
    // Blobs that were not read to their end look damaged.
    if stop.is_cancelled() { Err(Interrupted.into()) } else { Ok((report, Some(bootstrap))) }
}

fn conclude(Checked { report, compared }: &Checked) -> ExitCode {
    for finding in &report.findings {
        println!("{finding}");
    }
    if report.omitted > 0 {
        println!("and {} findings more", report.omitted);
    }
    if report.findings.is_empty()
        && let Some(unknown) = report.unknown.first()
    {
        return cannot_tell(&unknown.to_string());
    }
    let verdict = match (report.is_clean(), compared) {
        (true, true) => "sound, and the same as the source",
        (true, false) => "sound",
        (false, true) => "damaged, or not the same as the source",
        (false, false) => "damaged",
    };
    println!(
        "{} inodes, {} chunks, {} bytes of content checked: {verdict}",
        report.inodes, report.chunks, report.bytes
    );
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(FINDING) }
}
