//! `image convert`: an image of layers, or a directory, becomes a nydus image.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use image::convert::{self, ConversionOptions};
use image::layer::{Converter, DictionaryBlobs};
use image::location::Location;
use image::progress::Progress;
use image::source::Source;
use indicatif::HumanBytes;
use rafs::blob::source::load_chunk_info;
use rafs::build::{BuildOptions, Dictionary};
use rafs::compress;
use rafs::digest::DigestAlgorithm;
use registry::client::Client;
use tokio_util::sync::CancellationToken;

use super::blobs::Blobs;
use super::progress::Task;
use super::{Context, source};
use crate::{args, stdout};

/// How often bars move: not for each megabyte.
const REFRESH: Duration = Duration::from_millis(100);

/// The most bytes of a list of paths: far more than any image has files.
const LIST_LIMIT_BYTES: u64 = 64 << 20;

/// Converts, and prints the digest of the result.
pub(super) async fn run(context: &Context, flags: args::Convert) -> anyhow::Result<ExitCode> {
    let config = &context.config;
    let client = Client::new(config.registry.clone())?;
    let prefetch = prefetch(&flags)?;
    let mut build = build_options(&flags, exporter::threads(config.exporter.threads))?;
    let mut dictionary = DictionaryBlobs::Unknown;
    if let Some(image) = &flags.chunk_dict {
        let (chunks, blobs) = load_dictionary(image, context, &client)
            .await
            .with_context(|| format!("chunk dictionary {image}"))?;
        (build.dictionary, dictionary) = (Some(Arc::new(chunks)), blobs);
    }
    let conversions = config.exporter.conversions.max(1);
    // Every layer is converted once, so there is nothing to remember.
    let converter = Converter::new(build, conversions, 0);
    let options = ConversionOptions {
        platforms: flags.platform,
        also_oci: flags.also_oci,
        prefetch,
        inline_chunk_info: flags.inline_chunk_info,
        dictionary,
        conversions,
    };
    let progress = Progress::new();
    let over = CancellationToken::new();
    let shown = tokio::spawn(show(Arc::clone(&progress), context.progress.clone(), over.clone()));
    let converted = convert::convert(
        &flags.source,
        &flags.destination,
        &client,
        &converter,
        &options,
        &progress,
        &context.stop,
    )
    .await;
    over.cancel();
    shown.await?;
    let converted = converted?;
    let platforms: Vec<_> = converted.platforms.iter().map(ToString::to_string).collect();
    stdout::note(&format!(
        "{} for {}: {} layers, {} of blobs",
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

fn build_options(flags: &args::Convert, threads: usize) -> anyhow::Result<BuildOptions> {
    let compressor = match (flags.compressor, flags.zstd_level) {
        (args::Compressor::Zstd, Some(level)) => compress::Compressor::Zstd { level },
        (args::Compressor::Zstd, None) => compress::Compressor::default(),
        (_, Some(_)) => anyhow::bail!("--level is zstd's: the other compressors have none"),
        (args::Compressor::Lz4, None) => compress::Compressor::Lz4,
        (args::Compressor::None, None) => compress::Compressor::None,
    };
    let digester = match flags.digester {
        args::Digester::Blake3 => DigestAlgorithm::Blake3,
        args::Digester::Sha256 => DigestAlgorithm::Sha256,
    };
    Ok(BuildOptions {
        compressor,
        digester,
        chunk_size: flags.chunk_size,
        batch_size: flags.batch_size,
        threads,
        dictionary: None,
    })
}

/// The paths to be fetched first, from the command line and from a list.
fn prefetch(flags: &args::Convert) -> anyhow::Result<Vec<Box<[u8]>>> {
    let mut paths: Vec<Box<[u8]>> = Vec::new();
    paths.extend(flags.prefetch.iter().map(|path| Box::from(path.as_os_str().as_bytes())));
    if let Some(list) = &flags.prefetch_list {
        let lines = read_list(list).with_context(|| format!("list of paths {}", list.display()))?;
        let lines = lines.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
        paths.extend(lines.filter(|line| !line.is_empty()).map(Box::from));
    }
    Ok(paths)
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
async fn load_dictionary(
    image: &str,
    context: &Context,
    client: &Client,
) -> anyhow::Result<(Dictionary, DictionaryBlobs)> {
    // A bootstrap alone says nothing of where its blobs are; everything else does.
    let file = Path::new(image);
    let beside = || file.parent().map(|folder| folder.join("blobs")).filter(|blobs| blobs.is_dir());
    let blobs = file.is_file().then(beside).flatten();
    let located = context.locate(&args::Source { image: image.to_owned(), blobs, platform: None }).await?;
    let places = match &located.blobs {
        source::Blobs::Directory(directory) => DictionaryBlobs::Directory(directory.clone()),
        source::Blobs::Registry(place) => {
            let location = Location::Registry(place.as_ref().1.clone());
            DictionaryBlobs::Registry(Box::new(Source::open(&location, client).await?))
        }
        // What only an archive has is not copied from there.
        source::Blobs::Archive(_) | source::Blobs::Unknown => DictionaryBlobs::Unknown,
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
    Ok((Dictionary::new(image), places))
}
