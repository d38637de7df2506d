//! What we build, upstream's tools and the kernel take: no finding, and the same tree to the last attribute.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use integration::corpus::{self, Layer, Tree};
use integration::image_files::{ImageFiles, LayerInput, MountedErofs, fsck};
use integration::servers::{ImageMount, Nydusd};
use integration::tree::Listing;
use rafs::bootstrap::{Bootstrap, WriteOptions};
use rafs::build::{BuildOptions, Dictionary};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;

use crate::lab::{Lab, list, list_tar};
use crate::{Test, named};

const ZSTD: Compressor = Compressor::Zstd { level: 3 };

/// How the tars of layers are compressed.
#[derive(Clone, Copy)]
enum Packing {
    Plain,
    /// Of several members, as parallel compressors write it.
    Gzip,
    Zstd,
}

/// A way to build.
#[derive(Clone)]
struct Way {
    name: &'static str,
    options: BuildOptions,
    packing: Packing,
}

impl Way {
    fn new(
        name: &'static str,
        compressor: Compressor,
        digester: DigestAlgorithm,
        chunk_size: u32,
        packing: Packing,
    ) -> Self {
        let options = BuildOptions { compressor, digester, chunk_size, ..BuildOptions::default() };
        Self { name, options, packing }
    }

    fn batch(mut self, batch_size: u32) -> Self {
        self.options.batch_size = Some(batch_size);
        self
    }

    /// Whether upstream's 2.2 knows how to read it: batches came with 2.3.
    fn upstream_reads(&self) -> bool {
        self.options.batch_size.is_none()
    }
}

fn ways() -> Vec<Way> {
    let (blake3, sha256) = (DigestAlgorithm::Blake3, DigestAlgorithm::Sha256);
    vec![
        Way::new("zstd_blake3_1m", ZSTD, blake3, 1 << 20, Packing::Plain),
        Way::new("zstd_sha256_16m", ZSTD, sha256, 16 << 20, Packing::Gzip),
        Way::new("lz4_sha256_64k", Compressor::Lz4, sha256, 64 << 10, Packing::Zstd),
        Way::new("none_blake3_4k", Compressor::None, blake3, 4 << 10, Packing::Plain),
        Way::new("zstd_blake3_1m_batch_128k", ZSTD, blake3, 1 << 20, Packing::Plain).batch(128 << 10),
        Way::new("lz4_sha256_64k_batch_64k", Compressor::Lz4, sha256, 64 << 10, Packing::Plain)
            .batch(64 << 10),
    ]
}

pub(crate) fn tests() -> Vec<(String, Test)> {
    let mut tests = vec![
        named("ours_upstream::a_directory_with_a_socket", directory),
        named("ours_upstream::what_nydus_image_does_not_take", beyond_upstream),
        named("ours_upstream::chunks_of_a_dictionary", dictionary),
        named("ours_upstream::files_to_prefetch", prefetch),
        named("ours_upstream::our_cache_is_the_kernels_device", our_cache),
    ];
    for way in ways() {
        let of_way = |what: &str| format!("ours_upstream::{what}::{}", way.name);
        let (stacked, single) = (way.clone(), way.clone());
        tests.push((of_way("generated_layers"), Box::new(move |lab| generated(lab, &stacked))));
        if way.upstream_reads() {
            tests.push((of_way("unpack"), Box::new(move |lab| unpack(lab, &single))));
        }
        if ["zstd_blake3_1m", "lz4_sha256_64k", "zstd_blake3_1m_batch_128k"].contains(&way.name) {
            let way = way.clone();
            tests.push((of_way("debian"), Box::new(move |lab| debian(lab, &way))));
        }
    }
    tests
}

/// Whose look at an image is compared.
struct Views<'a> {
    lab: &'a Lab,
    files: &'a ImageFiles,
    expected: &'a Listing,
    scratch: &'a Path,
}

impl Views<'_> {
    fn ours(&self) -> Result<()> {
        self.files.check()?;
        let unpacked = self.scratch.join("unpacked");
        self.files.unpack_to(&unpacked)?;
        list(&unpacked)?.expect_same("our unpack", self.expected, "the source")
    }

    fn upstream(&self) -> Result<()> {
        self.lab.nydus_image()?.check(self.files)?;
        self.nydusd()
    }

    fn nydusd(&self) -> Result<()> {
        let dir = self.scratch.join("nydusd");
        let daemon = Nydusd::start(self.lab.peers(), &dir, &self.files.bootstrap, &self.files.blobs)?;
        // nydusd gives files of the time 0 the time of the mount.
        let seen = list(daemon.mountpoint())?.ignoring_times_of_zero_in(self.expected);
        let expected = self.expected.clone().ignoring_times_of_zero_in(self.expected);
        seen.expect_same("nydusd", &expected, "the source")
    }

    fn kernel(&self) -> Result<()> {
        let devices = self.files.devices(&self.scratch.join("devices"))?;
        self.kernel_with(&devices)
    }

    fn kernel_with(&self, devices: &[std::path::PathBuf]) -> Result<()> {
        fsck(&self.files.bootstrap, devices)?;
        let mounted = MountedErofs::new(&self.files.bootstrap, devices, &self.scratch.join("erofs"))?;
        list(mounted.path())?.expect_same("the kernel", self.expected, "the source")
    }
}

fn packed(layer: &Layer, packing: Packing) -> Result<Vec<u8>> {
    let tar = layer.to_tar();
    Ok(match packing {
        Packing::Plain => tar,
        Packing::Zstd => zstd::encode_all(&tar[..], 1)?,
        Packing::Gzip => {
            let mut members = Vec::new();
            for part in tar.chunks(tar.len() / 5 + 1) {
                let mut member = GzEncoder::new(&mut members, Compression::fast());
                member.write_all(part)?;
                member.finish()?;
            }
            members
        }
    })
}

fn write_options(options: &BuildOptions) -> WriteOptions {
    WriteOptions { chunk_size: options.chunk_size, ..WriteOptions::default() }
}

fn generated(lab: &Lab, way: &Way) -> Result<()> {
    let scratch = lab.scratch()?;
    let layers = [packed(&corpus::base(), way.packing)?, packed(&corpus::upper(), way.packing)?];
    let layers = layers.each_ref().map(|layer| LayerInput::Tar(layer));
    let files = ImageFiles::build(&layers, &way.options, &write_options(&way.options), scratch.path())?;
    let views = Views { lab, files: &files, expected: lab.generated()?, scratch: scratch.path() };
    views.ours()?;
    views.kernel()?;
    if way.upstream_reads() { views.upstream() } else { Ok(()) }
}

fn debian(lab: &Lab, way: &Way) -> Result<()> {
    let scratch = lab.scratch()?;
    let layers = lab.demo_layers()?;
    let layers = layers.each_ref().map(|layer| LayerInput::TarFile(layer));
    let files = ImageFiles::build(&layers, &way.options, &write_options(&way.options), scratch.path())?;
    let views = Views { lab, files: &files, expected: lab.demo()?, scratch: scratch.path() };
    files.check()?;
    views.kernel()?;
    if way.upstream_reads() { views.upstream() } else { Ok(()) }
}

/// Of one layer, for nydus-image 2.2 unpacks no more than one blob. Its archives have no root, no fractions of seconds,
/// and hard links to regular files alone.
fn unpack(lab: &Lab, way: &Way) -> Result<()> {
    let scratch = lab.scratch()?;
    let layer = packed(&corpus::base(), way.packing)?;
    let write = write_options(&way.options);
    let files = ImageFiles::build(&[LayerInput::Tar(&layer)], &way.options, &write, scratch.path())?;
    let tar = scratch.path().join("upstream.tar");
    lab.nydus_image()?.unpack(&files, &tar)?;
    let mut seen = list_tar(&tar, scratch.path())?.in_whole_seconds();
    let expected = lab.generated_base()?.clone();
    let mut expected = expected.in_whole_seconds().without_links_of_special_files();
    seen.remove(".");
    expected.remove(".");
    seen.expect_same("nydus-image unpack", &expected, "the source")
}

/// What no tar has: sockets. And what every tar lacks: the whole of a directory's metadata from the file system itself.
fn directory(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let source = scratch.path().join("source");
    let mut tree = Tree::new(&source)?;
    tree.apply(&corpus::base())?;
    tree.apply(&corpus::beyond_upstream())?;
    UnixListener::bind(source.join("dev/socket"))?;
    tree.finish()?;
    let expected = list(&source)?;
    ensure!(expected.contains("./dev/socket"), "no socket was made");
    let options = BuildOptions::default();
    let layers = [LayerInput::Directory(&source)];
    let files = ImageFiles::build(&layers, &options, &WriteOptions::default(), scratch.path())?;
    let views = Views { lab, files: &files, expected: &expected, scratch: scratch.path() };
    views.ours()?;
    views.kernel()?;
    views.nydusd()
}

fn beyond_upstream(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let expected = lab.unpacked(&[corpus::beyond_upstream()])?;
    let layer = corpus::beyond_upstream().to_tar();
    let options = BuildOptions::default();
    let files =
        ImageFiles::build(&[LayerInput::Tar(&layer)], &options, &WriteOptions::default(), scratch.path())?;
    let views = Views { lab, files: &files, expected: &expected, scratch: scratch.path() };
    views.ours()?;
    views.kernel()?;
    // Its daemon takes what its builder and check do not.
    views.nydusd()?;
    let error =
        lab.nydus_image()?.check(&files).err().context("nydus-image takes them now: compare them too")?;
    ensure!(format!("{error:#}").contains("invalid xattr key"), "{error:#}");
    Ok(())
}

/// A layer whose content is in another image's blob, except for what is new.
fn dictionary(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let (base, upper) = (corpus::base().to_tar(), corpus::upper().to_tar());
    let write = WriteOptions::default();
    let plain = BuildOptions::default();
    let other = ImageFiles::build(&[LayerInput::Tar(&base)], &plain, &write, scratch.path())?;
    let image = Bootstrap::open(&other.bootstrap)?.to_image()?;
    let options =
        BuildOptions { dictionary: Some(Arc::new(Dictionary::new(image))), ..BuildOptions::default() };
    let layers = [LayerInput::Tar(&base), LayerInput::Tar(&upper)];
    let files = ImageFiles::build(&layers, &options, &write, scratch.path())?;
    let bootstrap = Bootstrap::open(&files.bootstrap)?;
    ensure!(
        bootstrap.blobs().len() == 2,
        "the dictionary's blob and the upper layer's: {:?}",
        bootstrap.blobs()
    );
    let views = Views { lab, files: &files, expected: lab.generated()?, scratch: scratch.path() };
    views.ours()?;
    views.kernel()?;
    views.upstream()
}

fn prefetch(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let layer = corpus::base().to_tar();
    let paths = ["/contents/several-chunks", "/links", "/etc/passwd", "/no/such/file"];
    let write = WriteOptions {
        prefetch: paths.map(|path| path.as_bytes().into()).to_vec(),
        ..WriteOptions::default()
    };
    let options = BuildOptions::default();
    let files = ImageFiles::build(&[LayerInput::Tar(&layer)], &options, &write, scratch.path())?;
    let listed = lab.nydus_image()?.prefetched(&files)?;
    let listed: Vec<_> = listed
        .as_array()
        .with_context(|| format!("no list: {listed}"))?
        .iter()
        .map(|file| file["path"][0].as_str().unwrap_or_default().trim_end_matches('/').to_owned())
        .collect();
    ensure!(listed == paths[..3], "nydus-image lists {listed:?}");
    let views = Views { lab, files: &files, expected: lab.generated_base()?, scratch: scratch.path() };
    views.kernel()?;
    views.upstream()
}

/// What our daemon leaves in its cache once everything was read is what EROFS takes as devices.
fn our_cache(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let layers = [corpus::base().to_tar(), corpus::upper().to_tar()];
    let layers = layers.each_ref().map(|layer| LayerInput::Tar(layer));
    let options = BuildOptions { batch_size: Some(64 << 10), ..BuildOptions::default() };
    let files = ImageFiles::build(&layers, &options, &WriteOptions::default(), scratch.path())?;
    let views = Views { lab, files: &files, expected: lab.generated()?, scratch: scratch.path() };
    let mount = ImageMount::start(&files, &scratch.path().join("ours"))?;
    list(mount.mountpoint())?.expect_same("image mount", views.expected, "the source")?;
    let bootstrap = Bootstrap::open(&files.bootstrap)?;
    let ids = bootstrap.blobs().iter().filter_map(|blob| blob.id);
    let devices: Vec<_> = ids.map(|id| mount.cached(&id.to_string())).collect();
    views.kernel_with(&devices)
}
