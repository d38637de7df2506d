//! `nydus-cluster registry`: copies between registries, and the users of the embedded one.

mod package;

use std::io::{BufRead as _, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use ::image::location::Location;
use anyhow::{Context as _, bail, ensure};
use indicatif::HumanBytes;
use registry::client::{Client, Copied, PlacedBlobs};
use registry::server::htpasswd;
use registry::{Reference, Repository};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::stdout::note;
use crate::{args, roles, shutdown};

/// Runs one of them.
pub(crate) async fn run(config: Config, command: args::Registry) -> anyhow::Result<ExitCode> {
    match command {
        args::Registry::Serve(flags) => roles::registry(config, flags).await,
        args::Registry::Copy { from, to, referrers } => {
            until_stopped(copy(&config, &from, &to, referrers)).await
        }
        args::Registry::Sync { from, to, jobs, referrers } => {
            until_stopped(sync(&config, &from, &to, jobs, referrers)).await
        }
        args::Registry::Passwd { file, user, remove } => passwd(&file, &user, remove),
    }
}

async fn until_stopped(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    let stop = shutdown::on_signal()?;
    stop.run_until_cancelled(work).await.context("interrupted: what was copied stays")??;
    Ok(ExitCode::SUCCESS)
}

async fn copy(config: &Config, from: &str, to: &str, referrers: bool) -> anyhow::Result<()> {
    let (location, to) = (from.parse::<Location>()?, Reference::parse(to)?);
    let client = Client::new(config.registry.clone())?;
    let Location::Registry(from) = location else {
        ensure!(!referrers, "{from}: --referrers is for images of a registry");
        return package::copy(&client, &location, &to).await;
    };
    let copied = client.copy_image(&from, &to, referrers, &PlacedBlobs::default()).await?;
    said(&from, &to, copied);
    Ok(())
}

/// Where `sync` reads from or writes to.
#[derive(Clone, Debug)]
enum SyncPlace {
    /// All repositories of a registry.
    Registry(String),
    Repository(Repository),
}

impl SyncPlace {
    /// `HOST`, as it stands before a slash in references, or `HOST/NAME`.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let is_host = !text.contains('/') && (text == "localhost" || text.contains(['.', ':']));
        if !is_host {
            return Ok(Self::Repository(Repository::parse(text)?));
        }
        // A host is what a repository of it can be named by.
        let any = Repository::parse(&format!("{text}/any"))?;
        ensure!(any.name() == "any", "{text:?}: expected HOST[:PORT] or HOST[:PORT]/NAME");
        Ok(Self::Registry(any.host().to_owned()))
    }
}

async fn sync(config: &Config, from: &str, to: &str, jobs: usize, referrers: bool) -> anyhow::Result<()> {
    let client = Client::new(config.registry.clone())?;
    if Path::new(from).exists() {
        ensure!(!referrers, "{from}: --referrers is for images of a registry");
        return package::sync(&client, Path::new(from), to, jobs).await;
    }
    let pairs: Vec<(Repository, Repository)> = match (SyncPlace::parse(from)?, SyncPlace::parse(to)?) {
        (SyncPlace::Repository(from), SyncPlace::Repository(to)) => vec![(from, to)],
        (SyncPlace::Repository(from), SyncPlace::Registry(host)) => {
            let to = Repository::parse(&format!("{host}/{}", from.name()))?;
            vec![(from, to)]
        }
        (SyncPlace::Registry(from), SyncPlace::Registry(to)) => {
            let all = client.repositories(&from).await?;
            let pair = |from: Repository| {
                let to = Repository::parse(&format!("{to}/{}", from.name()))?;
                Ok((from, to))
            };
            all.into_iter().map(pair).collect::<anyhow::Result<_>>()?
        }
        (SyncPlace::Registry(from), SyncPlace::Repository(to)) => {
            bail!("{from} is a registry and {to} one repository: expected a registry to write to")
        }
    };
    let mut images = Vec::new();
    for (from, to) in &pairs {
        // A repository that a registry lists may have lost its last tag.
        let tags = match client.tags(from).await {
            Err(error) if error.is_not_found() && pairs.len() > 1 => Vec::new(),
            tags => tags?,
        };
        for tag in tags {
            images.push((from.with_tag(&tag)?, to.with_tag(&tag)?));
        }
    }
    ensure!(!images.is_empty(), "{from} has no images");
    let (placed, mut total, mut failed) = (Arc::new(PlacedBlobs::default()), Copied::default(), Vec::new());
    let (count, mut left, mut running) = (images.len(), images.into_iter(), JoinSet::new());
    loop {
        while running.len() < jobs.max(1)
            && let Some((from, to)) = left.next()
        {
            let (client, placed) = (client.clone(), Arc::clone(&placed));
            running.spawn(async move {
                let copied = client.copy_image(&from, &to, referrers, &placed).await;
                (from, to, copied)
            });
        }
        let Some(done) = running.join_next().await else { break };
        match done? {
            (from, to, Ok(copied)) => {
                said(&from, &to, copied);
                total.add(copied);
            }
            (from, _, Err(error)) => {
                note(&format!("{from}: failed: {error}"));
                failed.push(from.to_string());
            }
        }
    }
    note(&format!("{count} images, {} sent", HumanBytes(total.bytes)));
    ensure!(failed.is_empty(), "{} of {count} images were not copied: {}", failed.len(), failed.join(", "));
    Ok(())
}

/// A line an image.
fn said(from: &Reference, to: &Reference, copied: Copied) {
    let Copied { blobs, bytes, mounted, manifests, .. } = copied;
    if manifests == 0 {
        note(&format!("{from} -> {to}: there already"));
    } else {
        note(&format!("{from} -> {to}: {blobs} blobs sent ({}), {mounted} mounted", HumanBytes(bytes)));
    }
}

fn passwd(file: &Path, user: &str, remove: bool) -> anyhow::Result<ExitCode> {
    if remove {
        ensure!(htpasswd::remove_user(file, user)?, "{}: there is no user {user}", file.display());
        return Ok(ExitCode::SUCCESS);
    }
    let input = std::io::stdin();
    // Shown on a screen it would stay there; who types it has `read -s`.
    ensure!(
        !input.is_terminal(),
        "expected the password on standard input: read -rs P; printf %s \"$P\" | nydus-cluster registry passwd …"
    );
    let mut line = String::new();
    input.lock().read_line(&mut line).context("reading the password from standard input")?;
    htpasswd::set_password(file, user, line.trim_end_matches(['\n', '\r']))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_registry_or_a_repository() {
        for (text, expected) in [
            ("localhost", "Registry(\"localhost\")"),
            ("127.0.0.1:5000", "Registry(\"127.0.0.1:5000\")"),
            ("registry.example", "Registry(\"registry.example\")"),
            ("registry.example/team/app", "Repository"),
            ("busybox", "Repository"),
        ] {
            let place = format!("{:?}", SyncPlace::parse(text).unwrap());
            assert!(place.starts_with(expected), "{text}: {place}");
        }
        for text in ["", "registry.example/app:v1", "UPPER/x"] {
            assert!(SyncPlace::parse(text).is_err(), "{text}");
        }
    }
}
