//! `image check`: is the image what it says, and all there?

use std::process::ExitCode;

use rafs::bootstrap::Bootstrap;
use rafs::check::{self, Options, Report};

use super::blobs::Blobs;
use super::source::Located;

/// Something is wrong with the image.
const FINDING: u8 = 1;
/// Nobody knows whether something is.
const UNKNOWN: u8 = 2;

/// Checks the bootstrap and, unless `metadata_only`, everything that the blobs hold.
pub(super) async fn run(located: Located, metadata_only: bool) -> ExitCode {
    let checked = tokio::task::spawn_blocking(move || examine(&located, metadata_only)).await;
    match checked.map_err(anyhow::Error::from).and_then(|result| result) {
        Ok(report) => conclude(&report),
        Err(error) => cannot_tell(&error),
    }
}

/// Says why nothing can be said.
pub(super) fn cannot_tell(error: &anyhow::Error) -> ExitCode {
    eprintln!("nydus-cluster: cannot check: {error:#}");
    ExitCode::from(UNKNOWN)
}

fn examine(located: &Located, metadata_only: bool) -> anyhow::Result<Report> {
    let mut bootstrap = match Bootstrap::open(&located.bootstrap) {
        Ok(bootstrap) => bootstrap,
        Err(error @ rafs::bootstrap::ReadError::Io { .. }) => return Err(error.into()),
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
        let source = Blobs::of(located)?;
        report.merge(check::blobs(&mut bootstrap, &source, Options::default()));
    }
    Ok(report)
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
