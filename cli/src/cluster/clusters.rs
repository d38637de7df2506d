//! `cluster ps`, `logs`, `rm`: the clusters that were run from here.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use cluster::launch::task::Status;
use cluster::launch::{self, LaunchError, Place};
use serde_json::{Value, json};

use super::args;
use super::run::{say, ssh};
use crate::status::Found;
use crate::stdout;

/// Shows all clusters.
pub(super) async fn ps(flags: args::Ps) -> anyhow::Result<ExitCode> {
    let ssh = ssh(&flags.login)?;
    let mut shown = Vec::new();
    let mut all_answer = true;
    for (name, dir) in clusters()? {
        let Some(record) = launch::Record::find(&dir)? else { continue };
        for (place, status) in launch::status(&dir, &ssh).await? {
            all_answer &= status.is_ok();
            shown.push((name.clone(), record.image.clone(), place, status));
        }
    }
    let text = if flags.json { json(&shown)? } else { table(&shown) };
    stdout::print(&text)?;
    Ok(Found::SilentNodes.status_if(!all_answer))
}

type ShownNode = (String, String, Place, Result<Status, LaunchError>);

fn json(shown: &[ShownNode]) -> anyhow::Result<String> {
    let node = |(cluster, image, place, status): &ShownNode| match status {
        Ok(status) => json!({
            "cluster": cluster, "image": image, "node": place.name(), "role": status.role, "services": status.services,
        }),
        Err(error) => {
            json!({"cluster": cluster, "image": image, "node": place.name(), "error": error.to_string()})
        }
    };
    let all: Vec<Value> = shown.iter().map(node).collect();
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

fn table(shown: &[ShownNode]) -> String {
    let mut text = format!("{:<16}{:<24}{:<9}SERVICES\n", "CLUSTER", "NODE", "ROLE");
    for (cluster, _, place, status) in shown {
        let (role, services) = match status {
            Ok(status) => {
                let services = status.services.iter().map(|(name, state)| format!("{name} {state}"));
                (status.role.as_str(), services.collect::<Vec<_>>().join(", "))
            }
            Err(error) => ("?", error.to_string()),
        };
        text += &format!("{cluster:<16}{:<24}{role:<9}{services}\n", place.name());
    }
    text
}

/// The clusters that were run from here, with the directory of each.
fn clusters() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let dir = launch::clusters_dir()?;
    let Ok(entries) = fs::read_dir(&dir) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", dir.display()))?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

/// Shows what nodes said.
pub(super) fn logs(flags: &args::Logs) -> anyhow::Result<ExitCode> {
    let dir = launch::clusters_dir()?.join(&flags.name);
    launch::Record::read(&dir)?;
    // As its file is called.
    let wanted = flags.node.as_ref().map(|node| launch::log_name(node));
    let mut shown = 0;
    for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        let node = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let is_wanted = wanted.as_ref().is_none_or(|wanted| *wanted == node);
        if is_wanted && path.extension().is_some_and(|extension| extension == "log") {
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            for line in String::from_utf8_lossy(&text).lines() {
                stdout::print(&format!("{node}: {line}\n"))?;
            }
            shown += 1;
        }
    }
    if shown == 0 {
        bail!("{}: no such node said anything", flags.node.as_deref().unwrap_or(&flags.name));
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes a cluster away.
pub(super) async fn rm(flags: args::Rm) -> anyhow::Result<ExitCode> {
    let dir = launch::clusters_dir()?.join(&flags.name);
    launch::remove(&dir, &ssh(&flags.login)?, flags.keep_images, &say).await?;
    Ok(ExitCode::SUCCESS)
}
