//! What upstream builds, we read: no finding, and the same tree to the last attribute.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::corpus::{self, Tree};
use integration::gnu_tar;
use integration::image_files::ImageFiles;
use integration::nydus_image::only_file;
use integration::process;
use integration::servers::ImageMount;
use integration::tree::Listing;

use crate::lab::{Lab, list};
use crate::{Test, named};

/// How `nydus-image create` packs a directory, by the name of its test: the version of the format, and further arguments.
const WAYS: &[(&str, &str, &[&str])] = &[
    ("v6_zstd_1m", "6", &["--compressor", "zstd"]),
    ("v6_zstd_16m", "6", &["--compressor", "zstd", "--chunk-size", "0x1000000"]),
    ("v6_lz4_64k_sha256", "6", LZ4_64K_SHA256),
    ("v6_none_4k", "6", NONE_4K),
    ("v6_blob_toc", "6", &["--features", "blob-toc", "--chunk-size", "0x40000"]),
    ("v6_prefetch_all", "6", &["--prefetch-policy", "fs"]),
    ("v5_zstd_1m", "5", &["--compressor", "zstd"]),
    ("v5_lz4_64k_sha256", "5", LZ4_64K_SHA256),
    ("v5_none_4k", "5", NONE_4K),
    ("v5_lz4_aligned", "5", &["--compressor", "lz4_block", "--aligned-chunk"]),
];

const LZ4_64K_SHA256: &[&str] =
    &["--compressor", "lz4_block", "--chunk-size", "0x10000", "--digester", "sha256"];
const NONE_4K: &[&str] = &["--compressor", "none", "--chunk-size", "0x1000"];

pub(crate) fn tests() -> Vec<(String, Test)> {
    let mut tests = vec![
        named("upstream_ours::a_layer_of_a_tar", tar),
        named("upstream_ours::debian_of_a_tar", debian),
        named("upstream_ours::an_index_over_a_gzip_stream_is_refused", zran),
        named("upstream_ours::chunks_of_a_dictionary", dictionary),
        named("upstream_ours::merged_layers", merged),
    ];
    for &(name, version, arguments) in WAYS {
        let test = move |lab: &Lab| directory(lab, version, arguments);
        tests.push((format!("upstream_ours::a_directory::{name}"), Box::new(test)));
    }
    tests
}

/// Compares what we read with what it should be.
fn compare(files: &ImageFiles, expected: &Listing, scratch: &Path) -> Result<()> {
    compare_as(files, expected, scratch, |seen| seen)
}

/// Compares what we read, as far as it counts, with what it should be.
fn compare_as(
    files: &ImageFiles,
    expected: &Listing,
    scratch: &Path,
    what_counts: impl Fn(Listing) -> Listing,
) -> Result<()> {
    files.check()?;
    let unpacked = scratch.join("unpacked");
    files.unpack_to(&unpacked)?;
    expect_same(what_counts(list(&unpacked)?), "our unpack", expected)?;
    let mount = ImageMount::start(files, &scratch.join("mount"))?;
    expect_same(what_counts(list(mount.mountpoint())?), "image mount", expected)
}

fn expect_same(mut seen: Listing, name: &str, expected: &Listing) -> Result<()> {
    // nydus-image does not take the root's time, and, in v6, makes files of their own of the names of a symbolic link,
    // device or pipe.
    let mut expected = expected.clone().without_links_of_special_files();
    expected.ignore_mtime(".");
    seen.ignore_mtime(".");
    seen.without_links_of_special_files().expect_same(name, &expected, "the source")
}

fn directory(lab: &Lab, version: &str, arguments: &[&str]) -> Result<()> {
    let scratch = lab.scratch()?;
    let source = scratch.path().join("source");
    Tree::make(&[corpus::base(), corpus::upper()], &source)?;
    let arguments = [&["--fs-version", version], arguments].concat();
    let files = lab.nydus_image()?.create(&source, scratch.path(), &arguments)?;
    compare(&files, lab.generated()?, scratch.path())
}

/// What nydus-image 2.2 gets wrong in a tar, by itself: hard links to what is no regular file become regular files, a
/// value of an attribute with a line break is "malformed", owner and time in PAX records are passed over.
const NOT_IN_TARS: &[&str] = &[
    "links/symlink-2",
    "links/device-2",
    "links/fifo-2",
    "attributes-binary",
    "attributes-large",
    "owner-pax",
    "owner-gnu",
    "time-2300",
];

/// The lowest generated layer as a tar that nydus-image 2.2 reads right; what it is to look like.
fn layer_for_upstream(tar: &Path, scratch: &Path) -> Result<Listing> {
    let root = scratch.join("for-upstream");
    Tree::make(&[corpus::base()], &root)?;
    for path in NOT_IN_TARS {
        fs::remove_file(root.join(path)).with_context(|| format!("removing {path}"))?;
    }
    gnu_tar::pack(&root, tar)?;
    Ok(list(&root)?.in_whole_seconds())
}

fn tar(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let source = scratch.path().join("layer.tar");
    let expected = layer_for_upstream(&source, scratch.path())?;
    let files = lab.nydus_image()?.create(&source, scratch.path(), &["--type", "tar-rafs"])?;
    compare_as(&files, &expected, scratch.path(), Listing::in_whole_seconds)
}

/// An index over a gzip stream has no chunks of its own.
fn zran(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let tar = scratch.path().join("layer.tar");
    fs::write(&tar, corpus::upper().to_tar())?;
    process::run(Command::new("gzip").arg(&tar))?;
    let source = scratch.path().join("layer.tar.gz");
    let files = lab.nydus_image()?.create(&source, scratch.path(), &["--type", "targz-ref"])?;
    let error = files.open().err().context("it is read now: compare it")?;
    ensure!(error.to_string().contains("not supported: gzip compression"), "{error:#}");
    Ok(())
}

fn debian(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let [source, _] = lab.demo_layers()?;
    let files = lab.nydus_image()?.create(&source, scratch.path(), &["--type", "tar-rafs"])?;
    files.check()?;
    let seen = scratch.path().join("seen");
    files.unpack_to(&seen)?;
    let expected = scratch.path().join("expected");
    gnu_tar::extract(&source, &expected)?;
    expect_same(list(&seen)?, "our unpack", &list(&expected)?)
}

fn dictionary(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let (old, new) = (scratch.path().join("old"), scratch.path().join("new"));
    Tree::make(&[corpus::base()], &old)?;
    Tree::make(&[corpus::base(), corpus::upper()], &new)?;
    let nydus_image = lab.nydus_image()?;
    let dictionary = nydus_image.create(&old, &scratch.path().join("dictionary"), &[])?;
    let argument = format!("bootstrap={}", dictionary.bootstrap.display());
    let files = nydus_image.create(&new, &scratch.path().join("image"), &["--chunk-dict", &argument])?;
    let blob = only_file(&dictionary.blobs)?;
    fs::rename(&blob, files.blobs.join(blob.file_name().context("a file has a name")?))?;
    let (bootstrap, _) = files.open()?;
    ensure!(bootstrap.blobs().len() == 2, "{:?}", bootstrap.blobs());
    compare(&files, lab.generated()?, scratch.path())
}

fn merged(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let nydus_image = lab.nydus_image()?;
    let blobs = scratch.path().join("blobs");
    fs::create_dir(&blobs)?;
    // It gives a directory that a layer has no entry for made-up metadata, also where the layer below has it.
    let mut upper = corpus::Layer::default();
    upper.directory("").spelled("./").mode(0o1755).owner(3, 4);
    upper.directory("changed").mtime(1_650_000_000, 0);
    upper.directory("changed/kept-directory").mode(0o711).owner(11, 12).mtime(1_640_000_000, 0);
    upper.entries.append(&mut corpus::upper().entries);
    let sources = ["lower.tar", "upper.tar"].map(|name| scratch.path().join(name));
    layer_for_upstream(&sources[0], scratch.path())?;
    fs::write(&sources[1], upper.to_tar())?;
    let mut expected = lab.generated()?.clone().in_whole_seconds();
    NOT_IN_TARS.iter().for_each(|path| expected.remove(&format!("./{path}")));
    // What was removed from there before it was packed changed its time.
    expected.ignore_mtime("./links");
    let mut bootstraps: Vec<PathBuf> = Vec::new();
    for source in &sources {
        let dir = source.with_extension("image");
        let files = nydus_image.create(source, &dir, &["--type", "tar-rafs"])?;
        // Merging takes a blob's id from the name of its layer's bootstrap.
        let blob = only_file(&files.blobs)?;
        let id = blob.file_name().context("a file has a name")?;
        fs::rename(&blob, blobs.join(id))?;
        let bootstrap = dir.join(id);
        fs::rename(&files.bootstrap, &bootstrap)?;
        bootstraps.push(bootstrap);
    }
    let files = nydus_image.merge(&bootstraps, &blobs, &scratch.path().join("merged"), &[])?;
    compare_as(&files, &expected, scratch.path(), |mut seen| {
        seen.ignore_mtime("./links");
        seen.in_whole_seconds()
    })
}
