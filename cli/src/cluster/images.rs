//! `cluster images`: which container images a cluster image asks for.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use cluster::discover::{self, Archive, Discovery, Layout, Options, Origin, Problem};
use serde::Serialize;

use super::args;
use super::lock::Lookup;
use super::opened::Opened;
use crate::config::Config;
use crate::status::Found;
use crate::stdout::{self, note};

/// Everything `cluster images --json` prints.
#[derive(Debug, Serialize)]
struct ImagesReport<'a> {
    layout: Option<Layout>,
    images: Vec<ImageReport<'a>>,
    problems: &'a [Problem],
    warnings: &'a [Problem],
}

#[derive(Debug, Serialize)]
struct ImageReport<'a> {
    image: String,
    /// Only its shape says that it is an image.
    candidate: bool,
    asked_by: &'a [Origin],
    #[serde(skip_serializing_if = "Option::is_none")]
    archive: Option<&'a Archive>,
}

/// Finds the images and prints them.
pub(super) async fn run(config: &Config, flags: args::Images) -> anyhow::Result<ExitCode> {
    let opened = Opened::open(config, &flags.discovery.source, flags.platform.first()).await?;
    let found = discover(config, &flags.discovery, &opened).await?;
    for warning in &found.warnings {
        note(&format!("warning: {warning}"));
    }
    for problem in &found.problems {
        note(&format!("error: {problem}"));
    }
    let code = Found::UnclearImages.status_if(!found.problems.is_empty());
    let lookup = Lookup { config, flags: &flags, opened: &opened, found: &found };
    if let Some(path) = &flags.lock {
        return lookup.write(path).await;
    }
    if let Some(path) = &flags.check {
        return lookup.check(path).await;
    }
    if let Some(image) = &flags.why {
        return why(&found, image, code);
    }
    if flags.json {
        stdout::print_json(&report(&found))?;
    } else {
        stdout::print(&table(&found))?;
    }
    Ok(code)
}

/// Looks for images in what was opened. The command line's environment comes before the image's own.
pub(super) async fn discover(
    config: &Config,
    flags: &args::Discovery,
    opened: &Opened,
) -> anyhow::Result<Discovery> {
    let mut environment = opened.environment.clone();
    environment.extend(flags.environment.iter().cloned());
    let options = Options {
        environment,
        ignore: flags.ignore.clone(),
        values: flags.values.clone(),
        kube_version: flags.kube_version.clone(),
        helm: flags.helm.clone().or_else(|| config.cluster.helm.clone()),
        helm_deadline: Duration::from_secs(config.cluster.helm_seconds),
    };
    discover::discover(&opened.dir, &options)
        .await
        .with_context(|| format!("looking for images in {}", flags.source))
}

fn report(found: &Discovery) -> ImagesReport<'_> {
    let images = found.images.iter().map(|image| ImageReport {
        image: image.reference.to_string(),
        candidate: !image.certain,
        asked_by: &image.origins,
        archive: image.archive.as_ref(),
    });
    ImagesReport {
        layout: found.layout,
        images: images.collect(),
        problems: &found.problems,
        warnings: &found.warnings,
    }
}

fn table(found: &Discovery) -> String {
    let names: Vec<String> = found.images.iter().map(|image| image.reference.to_string()).collect();
    let width = names.iter().map(String::len).chain(["IMAGE".len()]).max().unwrap_or(0);
    let mut text = format!("{:width$}  ASKED BY\n", "IMAGE");
    for (name, image) in names.iter().zip(&found.images) {
        let first = image.origins.first().map(Origin::to_string).unwrap_or_default();
        let more = match image.origins.len() {
            0 | 1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        let candidate = if image.certain { "" } else { " (candidate)" };
        text += &format!("{name:width$}  {first}{more}{candidate}\n");
    }
    text
}

/// Prints who asks for `image`; that nobody does is a finding.
fn why(found: &Discovery, image: &str, code: ExitCode) -> anyhow::Result<ExitCode> {
    let images = found.why(image)?;
    for image in &images {
        let origins: String = image.origins.iter().map(|origin| format!("  {origin}\n")).collect();
        stdout::print(&format!("{}\n{origins}", image.reference))?;
    }
    if images.is_empty() {
        note(&format!("nothing asks for {image}"));
        return Ok(Found::UnclearImages.status());
    }
    Ok(code)
}
