//! The long-running roles: flags over configuration, then the crate that does the work.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ::image::source::StoredImages;
use tokio::net::UnixStream;

use crate::args;
use crate::config::Config;
use crate::{logging, shutdown, stdout};

/// How long `snapshotter --wait` waits: less than systemd lets a unit take to start.
const WAIT: Duration = Duration::from_secs(60);
/// How often it looks.
const WAIT_PAUSE: Duration = Duration::from_millis(50);

/// `nydus-cluster exporter`.
pub(crate) async fn exporter(config: Config, flags: args::Exporter) -> anyhow::Result<ExitCode> {
    let mut settings = config.exporter;
    settings.registry = config.registry;
    settings.cluster = config.cluster;
    if let Some(upstream) = flags.upstream {
        settings.upstream = upstream;
    }
    if let Some(listen) = flags.listen {
        settings.listen = listen;
    }
    if let Some(dir) = flags.content_store {
        settings.content_store = Some(dir);
    }
    exporter::serve(settings, shutdown::on_signal()?).await?;
    Ok(ExitCode::SUCCESS)
}

/// `nydus-cluster snapshotter`. `file` is the configuration file, for the daemon that it starts.
pub(crate) async fn snapshotter(
    config: Config,
    flags: args::Snapshotter,
    file: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let mut settings = config.snapshotter;
    settings.registry = config.registry;
    if let Some(root) = flags.root {
        settings.root = root;
    }
    if let Some(listen) = flags.listen {
        settings.listen = listen;
    }
    if flags.socket.is_some() {
        settings.socket = flags.socket;
    }
    if let Some(socket) = flags.daemon_socket {
        settings.daemon.socket = socket;
    }
    if flags.wait {
        return wait_for(settings.listen.path()).await;
    }
    settings.daemon.spawn &= !flags.no_daemon;
    if settings.daemon.command.is_none() {
        settings.daemon.args = daemon_arguments(&settings, file)?;
    }
    snapshotter::serve(settings, shutdown::on_signal()?).await?;
    Ok(ExitCode::SUCCESS)
}

/// Waits until somebody listens on a snapshotter's socket.
async fn wait_for(socket: &Path) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + WAIT;
    loop {
        match UnixStream::connect(socket).await {
            Ok(_) => return Ok(ExitCode::SUCCESS),
            Err(error) if Instant::now() >= deadline => {
                let message = format!("no snapshotter answers at {} within {WAIT:?}", socket.display());
                return Err(anyhow::Error::new(error).context(message));
            }
            Err(_) => tokio::time::sleep(WAIT_PAUSE).await,
        }
    }
}

/// The daemon reads the same configuration; its cache lies under the snapshotter's root.
fn daemon_arguments(
    settings: &snapshotter::SnapshotterConfig,
    file: Option<PathBuf>,
) -> anyhow::Result<Vec<String>> {
    let text = |path: PathBuf| {
        path.into_os_string()
            .into_string()
            .map_err(|path| anyhow::anyhow!("{}: expected a path in UTF-8", PathBuf::from(path).display()))
    };
    let mut arguments = Vec::new();
    if let Some(file) = file {
        arguments.extend(["--config".to_owned(), text(std::path::absolute(file)?)?]);
    }
    arguments.extend(["daemon".to_owned(), "--socket".to_owned(), settings.daemon.socket.to_string()]);
    arguments.extend(["--cache".to_owned(), text(settings.root.join("cache"))?]);
    Ok(arguments)
}

/// `nydus-cluster daemon`.
pub(crate) async fn daemon(
    config: Config,
    flags: args::Daemon,
    log: &logging::Flags,
) -> anyhow::Result<ExitCode> {
    let mut settings = config.daemon;
    settings.worker_arguments = log.resolved(&config.log);
    settings.worker_arguments.push("worker".to_owned());
    settings.registry = config.registry;
    if let Some(socket) = flags.socket {
        settings.socket = socket;
    }
    if let Some(cache) = flags.cache {
        settings.cache_dir = cache;
    }
    if flags.probe {
        stdout::print(&serde_json::to_string(&fuse_daemon::probe(settings).await?)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    settings.probe_arguments = std::env::args().skip(1).chain(["--probe".to_owned()]).collect();
    fuse_daemon::serve(settings, shutdown::on_signal()?).await?;
    Ok(ExitCode::SUCCESS)
}

/// `nydus-cluster registry serve`.
pub(crate) async fn registry(config: Config, flags: args::RegistryServe) -> anyhow::Result<ExitCode> {
    let mut settings = config.server;
    if let Some(root) = flags.root {
        settings.root = root;
    }
    if let Some(listen) = flags.listen {
        settings.listen = listen.0;
    }
    if let Some(file) = flags.access_log {
        settings.access_log = Some(file);
    }
    if let Some(file) = flags.htpasswd {
        settings.htpasswd = Some(file);
    }
    if let (Some(certificate), Some(key)) = (flags.tls_certificate, flags.tls_key) {
        settings.tls = Some(registry::server::TlsConfig { certificate, key });
    }
    let stop = shutdown::on_signal()?;
    let server = match flags.package {
        None => registry::server::serve(settings, stop).await?,
        Some(path) => {
            let spool = config.registry.upload.spool_dir;
            let opened = path.clone();
            let images = tokio::task::spawn_blocking(move || StoredImages::open(&opened, &spool)).await??;
            settings.root = path;
            registry::server::serve_read_only(settings, images.layout().clone(), stop).await?
        }
    };
    service::manager::ready();
    server.stopped().await;
    Ok(ExitCode::SUCCESS)
}
