//! `image check`: is the image what it says, and all there?

use std::fmt::Write as _;
use std::process::ExitCode;

use rafs::bootstrap::{Bootstrap, ReadError};
use rafs::check::{self, Options, Report};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::blobs::Blobs;
use super::progress::Progress;
use super::source::Located;
use super::{Context, Interrupted, json, original};
use crate::args::Source;
use crate::{status, stdout};

/// What is to be checked, and how it is told.
pub(super) struct CheckRequest {
    /// The bootstrap alone, no blob.
    pub(super) metadata_only: bool,
    /// Where the image is that it was made from.
    pub(super) original: Option<String>,
    pub(super) json: bool,
}

/// Everything `image check --json` prints.
#[derive(Debug, Serialize)]
struct CheckReport<'a> {
    /// `sound`, `damaged`, or `unknown` where nobody can tell.
    verdict: &'static str,
    /// Whether the image was compared with the one that it was made from.
    compared: bool,
    findings: Vec<json::Finding<'a>>,
    /// Findings that are not listed.
    omitted_findings: u64,
    /// What could not be looked at.
    unknown: Vec<json::Finding<'a>>,
    inodes: u64,
    chunks: u64,
    content_bytes: u64,
}

/// What was found, and whether the source was compared.
struct Checked {
    report: Report,
    compared: bool,
}

/// Checks the bootstrap, all that the blobs hold, and that it is what it was made from, as far as that is wanted.
pub(super) async fn run(
    context: &Context,
    source: &Source,
    wanted: CheckRequest,
) -> anyhow::Result<ExitCode> {
    let mut checked = Checked { report: Report::default(), compared: false };
    let as_json = wanted.json;
    match check(context, source, wanted, &mut checked).await {
        Err(error) if context.stop.is_cancelled() => return Err(error),
        // What keeps a check from looking is no finding. What was found before that still is.
        Err(error) => checked.report.add_unknown(&source.image, format!("{error:#}")),
        Ok(()) => {}
    }
    conclude(&checked, as_json)
}

async fn check(
    context: &Context,
    source: &Source,
    wanted: CheckRequest,
    checked: &mut Checked,
) -> anyhow::Result<()> {
    let located = context.locate(source).await?;
    let (progress, stop) = (context.progress.clone(), context.stop.clone());
    let work = move || examine(&located, wanted.metadata_only, &progress, &stop);
    let (report, bootstrap) = tokio::task::spawn_blocking(work).await??;
    checked.report.merge(report);
    if let (Some(location), Some(bootstrap)) = (wanted.original, bootstrap) {
        let options = check::source_options(&bootstrap);
        let original = original::build(context, &location, source.platform.as_deref(), options).await?;
        let compare = move || match bootstrap.to_image() {
            Ok(image) => check::against_source(&original, &image),
            Err(error) => broken(&error),
        };
        checked.report.merge(tokio::task::spawn_blocking(compare).await?);
        checked.compared = true;
    }
    Ok(())
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
    let mut bootstrap = match Bootstrap::open_as(&located.bootstrap, &located.name) {
        Ok(bootstrap) => bootstrap,
        Err(error) => return Ok((broken(&error), None)),
    };
    let mut report = check::structure(&bootstrap);
    match Blobs::of(located, stop) {
        _ if metadata_only => {}
        Err(error) => report.add_unknown("blobs", format!("{error:#}")),
        Ok(source) => {
            let task = progress.task("check", 0);
            let options = Options { progress: &|done, total| task.set(done, total), ..Options::default() };
            report.merge(check::blobs(&mut bootstrap, &source, options));
            if report.unknown.is_empty() {
                task.finish();
            }
        }
    }
    // Blobs that were not read to their end look damaged.
    if stop.is_cancelled() { Err(Interrupted.into()) } else { Ok((report, Some(bootstrap))) }
}

/// Says what was found. A finding counts, whatever could not be looked at.
fn conclude(checked: &Checked, as_json: bool) -> anyhow::Result<ExitCode> {
    let report = &checked.report;
    let (verdict, code) = match (report.findings.is_empty(), report.unknown.is_empty()) {
        (false, _) => ("damaged", status::Found::Damage.status()),
        (true, false) => ("unknown", status::failed()),
        (true, true) => ("sound", ExitCode::SUCCESS),
    };
    if as_json {
        stdout::print_json(&CheckReport {
            verdict,
            compared: checked.compared,
            findings: json::findings(&report.findings),
            omitted_findings: report.omitted,
            unknown: json::findings(&report.unknown),
            inodes: report.inodes,
            chunks: report.chunks,
            content_bytes: report.bytes,
        })?;
    } else {
        stdout::print(&text(checked, verdict))?;
        for unknown in &report.unknown {
            stdout::note(&format!("nydus-cluster: cannot check: {unknown}"));
        }
    }
    Ok(code)
}

fn text(Checked { report, compared }: &Checked, verdict: &str) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(text, "{finding}");
    }
    if report.omitted > 0 {
        let _ = writeln!(text, "and {} findings more", report.omitted);
    }
    let verdict = match (verdict, compared) {
        ("sound", true) => "sound, and the same as the source",
        ("damaged", true) => "damaged, or not the same as the source",
        ("unknown", _) => "not known to be sound",
        (verdict, _) => verdict,
    };
    let chunks = match (report.chunks, report.bytes) {
        (0, 0) => String::new(),
        (chunks, bytes) => format!(", {chunks} chunks, {bytes} bytes of content"),
    };
    let _ = writeln!(text, "{} inodes{chunks} checked: {verdict}", report.inodes);
    text
}
