//! `cluster merge`: cluster images put on one another.

use std::process::ExitCode;

use anyhow::bail;
use cluster::merge::{MergedImage, merge};
use image::platform::listed;
use registry::client::Client;

use super::args;
use super::opened::located;
use crate::config::Config;
use crate::stdout::{self, note};

pub(super) async fn run(config: &Config, flags: args::Merge) -> anyhow::Result<ExitCode> {
    let client = Client::new(config.registry.clone())?;
    let mut locations = Vec::new();
    for image in &flags.images {
        let Some(location) = located(image)? else {
            bail!("{image}: expected an image or a package, not a directory of files");
        };
        locations.push(location);
    }
    let merged = merge(&locations, &client, &flags.tag, &flags.platform).await?;
    let MergedImage { digest, platforms, left_out, unsaved } = merged;
    if !left_out.is_empty() {
        note(&format!("warning: not all images are for {}: it is left out", listed(&left_out)));
    }
    for image in unsaved {
        note(&format!(
            "warning: {image} is bound to saved images that are not with it: the merged image is without them, and its nodes pull these plainly"
        ));
    }
    stdout::print(&format!("{}@{digest}  {}\n", flags.tag, listed(&platforms)))?;
    Ok(ExitCode::SUCCESS)
}
