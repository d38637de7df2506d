//! `image convert`: an image of layers, or a directory, becomes a nydus image.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use exporter::ExporterConfig;
use image::convert::{Conversion, convert};
use image::destination::SpoolFolder;
use image::layer::{ChunkDict, Converter, DictionaryBlobs, LayerCache, ScratchSpace};
use image::location::Location;
use image::options::{Pattern, Recipe};
use image::progress::Progress;
use image::source::Source;
use indicatif::HumanBytes;
use rafs::blob::source::load_chunk_info;
use registry::client::Client;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::blobs::Blobs;
use super::progress::Task;
use super::{Context, source};
use crate::{args, stdout};

/// How often bars move: not for each megabyte.
const REFRESH: Duration = Duration::from_millis(100);

/// The most bytes of a list of paths: far more than any image has files.
const LIST_LIMIT_BYTES: u64 = 64 << 20;

/// Everything `image convert --json` prints.
#[derive(Debug, Serialize)]
struct ConvertReport {
    /// The destination, as it was named.
    image: String,
    /// Of the manifest or index that has the name now; files have none.
    digest: Option<String>,
    platforms: Vec<String>,
    /// Layers of the images, each counted once.
    layers: usize,
    /// Those of them that were neither read nor converted.
    reused_layers: usize,
    /// Of the blobs that they became.
    stored_bytes: u64,
}

/// Converts, and prints the digest of the result.
pub(super) async fn run(context: &Context, flags: args::Convert) -> anyhow::Result<ExitCode> {
    let config = &context.config;
    let client = Client::new(config.registry.clone())?;
    let options = flags.options.0;
    let spool_dir = &config.registry.upload.spool_dir;
    if options.flatten {
        let dir = spool_dir.clone();
        tokio::task::spawn_blocking(move || SpoolFolder::remove_abandoned(&dir)).await?;
    }
    let listed = match &options.prefetch_list {
        Some(list) => {
            Pattern::list(&read_list(Path::new(list)).with_context(|| format!("list of paths {list}"))?)
        }
        None => Vec::new(),
    };
    let dictionary = match &options.chunk_dict {
        Some(image) => {
            let loaded = load_dictionary(image, context, &client).await;
            Some(loaded.with_context(|| format!("chunk dictionary {image}"))?)
        }
        None => None,
    };
    let recipe = Recipe::new(options, dictionary, listed, exporter::threads(config.exporter.threads))?;
    let cache = match flags.fresh {
        true => LayerCache::new(0),
        false => layer_cache(flags.layer_cache.map(PathBuf::from), &config.exporter),
    };
    let converter = Converter::new(recipe, config.exporter.conversions, cache);
    let progress = Progress::new();
    let over = CancellationToken::new();
    let shown = tokio::spawn(show(Arc::clone(&progress), context.progress.clone(), over.clone()));
    let how = Conversion {
        converter: &converter,
        client: &client,
        scratch_space: &ScratchSpace::new(spool_dir, config.exporter.flatten_bytes),
        reuse_present: config.exporter.reuse_from_registry && !flags.fresh,
        progress: &progress,
        cancel: &context.stop,
    };
    let converted = convert(&flags.source, &flags.destination, how).await;
    // Of a conversion that failed, too: the next one need not begin from the start.
    converter.settled().await;
    over.cancel();
    shown.await?;
    let converted = converted?;
    let platforms: Vec<_> = converted.platforms.iter().map(ToString::to_string).collect();
    if flags.json {
        stdout::print_json(&ConvertReport {
            image: flags.destination.to_string(),
            digest: converted.digest.as_ref().map(ToString::to_string),
            platforms,
            layers: converted.layers,
            reused_layers: converted.reused_layers,
            stored_bytes: converted.bytes,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let reused = match converted.reused_layers {
        0 => String::new(),
        number => format!(" ({number} known)"),
    };
    stdout::note(&format!(
        "{} for {}: {} layers{reused}, {} of blobs",
        flags.destination,
        platforms.join(", "),
        converted.layers,
        HumanBytes(converted.bytes),
    ));
    if let Some(digest) = converted.digest {
        stdout::print(&format!("{digest}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is known of layers: in the directory that is wanted or configured. The default one is root's, and decides what is in images, so
/// that other users have one of their own.
fn layer_cache(wanted: Option<PathBuf>, config: &ExporterConfig) -> LayerCache {
    let configured = &config.layer_cache_dir;
    let is_root_s = *configured == ExporterConfig::default().layer_cache_dir;
    let dir = match wanted {
        Some(wanted) => Some(wanted),
        None if is_root_s && !nix::unistd::geteuid().is_root() => own_cache(),
        None => Some(configured.clone()),
    };
    let cache = LayerCache::new(config.layer_cache_bytes);
    match dir.filter(|dir| !dir.as_os_str().is_empty()) {
        Some(dir) => cache.on_disk(&dir, config.layer_cache_disk_bytes),
        None => cache,
    }
}

/// The directory of a user who is not root; `None` of one without a home.
fn own_cache() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    Some(cache.join("nydus-cluster/layers"))
}

/// Shows the progress of a conversion as the command's own, until `over`.
async fn show(from: Arc<Progress>, to: super::progress::Progress, over: CancellationToken) {
    let mut tasks: HashMap<usize, Task> = HashMap::new();
    let mut changed = from.watch();
    let mut version = 0;
    loop {
        let last = over.is_cancelled();
        let (updates, seen) = from.since(version);
        version = seen;
        for update in updates {
            let begin = || to.task(update.name.clone(), update.total);
            let task = tasks.entry(update.task).or_insert_with(begin);
            task.set(update.current, update.total);
            match (&update.error, update.completed, tasks.remove(&update.task)) {
                (None, Some(_), Some(task)) => task.finish(),
                // Dropped, it stays where it was.
                (Some(_), ..) | (.., None) => {}
                (None, None, Some(task)) => drop(tasks.insert(update.task, task)),
            }
        }
        if last {
            return;
        }
        let pause = async { (changed.changed().await, tokio::time::sleep(REFRESH).await) };
        tokio::select! {
            _ = pause => {}
            () = over.cancelled() => {}
        }
    }
}

fn read_list(list: &Path) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut input: Box<dyn std::io::Read> = match list == Path::new("-") {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(std::fs::File::open(list)?),
    };
    input.by_ref().take(LIST_LIMIT_BYTES).read_to_end(&mut content)?;
    anyhow::ensure!((content.len() as u64) < LIST_LIMIT_BYTES, "it has more than {LIST_LIMIT_BYTES} bytes");
    Ok(content)
}

/// The chunks of an image, and where its blobs are.
async fn load_dictionary(image: &str, context: &Context, client: &Client) -> anyhow::Result<ChunkDict> {
    // A bootstrap alone says nothing of where its blobs are; everything else does.
    let file = Path::new(image);
    let next_to_it = || file.parent().map(|folder| folder.join("blobs")).filter(|blobs| blobs.is_dir());
    let blobs = file.is_file().then(next_to_it).flatten();
    let located = context.locate(&args::Source { image: image.to_owned(), blobs, platform: None }).await?;
    let places = match &located.blobs {
        source::BlobsPlace::Directory(directory) => DictionaryBlobs::Directory(directory.clone()),
        source::BlobsPlace::Registry(place) => {
            let location = Location::Registry(place.as_ref().1.clone());
            DictionaryBlobs::Registry(Box::new(Source::open(&location, client).await?))
        }
        // What only an archive has is not copied from there.
        source::BlobsPlace::Archive(_) | source::BlobsPlace::Unknown => DictionaryBlobs::Unknown,
    };
    let stop = context.stop.clone();
    let image = tokio::task::spawn_blocking(move || {
        let mut bootstrap = located.open()?;
        // Where the bootstrap says everything, its blobs need not be at hand.
        if let Ok(blobs) = Blobs::of(&located, &stop) {
            load_chunk_info(&mut bootstrap, &blobs)?;
        }
        anyhow::Ok(bootstrap.to_image()?)
    })
    .await??;
    Ok(ChunkDict::new(image, places))
}
