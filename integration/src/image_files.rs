//! An image as files: what upstream's tools, the kernel and our own commands take.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MsFlags, mount, umount};
use rafs::blob::BlobIndex;
use rafs::blob::source::{BlobDirectory, ChunkReader, load_chunk_info};
use rafs::bootstrap::{self, Bootstrap, WriteOptions};
use rafs::build::{BuildOptions, build_directory, build_layer};
use rafs::check;
use rafs::tree::Layer;

use crate::{peers, process};

/// A bootstrap, and a directory of blobs that are each named by their hexadecimal digest.
#[derive(Clone, Debug)]
pub struct ImageFiles {
    /// The bootstrap.
    pub bootstrap: PathBuf,
    /// The directory of the blobs.
    pub blobs: PathBuf,
}

/// What a layer is built of.
#[derive(Clone, Copy, Debug)]
pub enum LayerInput<'a> {
    /// A tar in a file, plain or compressed.
    TarFile(&'a Path),
    /// A tar in memory, plain or compressed.
    Tar(&'a [u8]),
    /// A directory.
    Directory(&'a Path),
}

impl ImageFiles {
    /// Builds and merges layers, the lowest first, with this project's library.
    pub fn build(
        layers: &[LayerInput<'_>],
        build: &BuildOptions,
        write: &WriteOptions,
        dir: &Path,
    ) -> Result<Self> {
        let files = Self { bootstrap: dir.join("image.boot"), blobs: dir.join("blobs") };
        fs::create_dir_all(&files.blobs)?;
        let built: Result<Vec<_>> = layers.iter().map(|layer| files.build_layer(*layer, build)).collect();
        let image = rafs::merge::merge(built?)?;
        let mut out = BufWriter::new(File::create(&files.bootstrap)?);
        bootstrap::write(&image, write, &mut out)?;
        out.flush()?;
        Ok(files)
    }

    fn build_layer(&self, input: LayerInput<'_>, options: &BuildOptions) -> Result<Layer> {
        let temporary = self.blobs.join("unfinished");
        let blob = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        let layer = match input {
            LayerInput::TarFile(path) => build_layer(File::open(path)?, blob, options)?,
            LayerInput::Tar(bytes) => build_layer(bytes, blob, options)?,
            LayerInput::Directory(path) => build_directory(path, blob, options)?,
        };
        let id = layer.blobs[0].id.ok_or_else(|| anyhow!("a blob without a digest"))?;
        fs::rename(temporary, self.blobs.join(id.to_string()))?;
        Ok(layer)
    }

    /// The bootstrap, with what it needs to know of the blobs.
    pub fn open(&self) -> Result<(Bootstrap, BlobDirectory)> {
        let mut bootstrap = Bootstrap::open(&self.bootstrap)?;
        let blobs = BlobDirectory::new(&self.blobs);
        load_chunk_info(&mut bootstrap, &blobs)?;
        Ok((bootstrap, blobs))
    }

    /// Fails if our own check finds anything.
    pub fn check(&self) -> Result<()> {
        let (mut bootstrap, blobs) = self.open()?;
        let mut report = check::structure(&bootstrap);
        report.merge(check::blobs(&mut bootstrap, &blobs, check::Options::default()));
        ensure!(report.is_clean(), "{} is not sound: {:#?}", self.bootstrap.display(), report.findings);
        Ok(())
    }

    /// Unpacks to a new directory, with this project's library.
    pub fn unpack_to(&self, dir: &Path) -> Result<()> {
        let (bootstrap, blobs) = self.open()?;
        Ok(rafs::unpack::to_directory(&bootstrap, &blobs, dir)?)
    }

    /// Makes the devices that EROFS wants for this bootstrap, in the order of its device table: each blob with its
    /// chunks uncompressed and in their places.
    pub fn devices(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(dir)?;
        let (bootstrap, source) = self.open()?;
        let mut reader = ChunkReader::new(&bootstrap, &source);
        let mut devices = Vec::new();
        for (index, blob) in (0..).zip(bootstrap.blobs()) {
            let index = BlobIndex(index);
            let path = dir.join(blob.id.ok_or_else(|| anyhow!("a blob without a digest"))?.to_string());
            let file = File::create(&path)?;
            file.set_len(blob.uncompressed_size.next_multiple_of(4096))?;
            for chunk in (0..bootstrap.chunk_count(index)).map(rafs::blob::ChunkIndex) {
                // What a merged image does not use, it need not describe.
                let Ok(described) = bootstrap.chunk(index, chunk) else { continue };
                file.write_all_at(&reader.read(index, chunk)?, described.uncompressed_offset)?;
            }
            devices.push(path);
        }
        Ok(devices)
    }
}

/// Fails if `fsck.erofs` finds anything. `devices` are in the order of the device table.
pub fn fsck(bootstrap: &Path, devices: &[PathBuf]) -> Result<()> {
    let mut fsck = Command::new(peers::system("fsck.erofs")?);
    fsck.args(devices.iter().map(|device| format!("--device={}", device.display())));
    process::run(fsck.arg(bootstrap))?;
    Ok(())
}

/// A bootstrap mounted by the kernel's EROFS driver; unmounted when dropped.
#[derive(Debug)]
pub struct MountedErofs(PathBuf);

impl MountedErofs {
    /// Mounts at `mountpoint`, which is made. `devices` are in the order of the device table.
    pub fn new(bootstrap: &Path, devices: &[PathBuf], mountpoint: &Path) -> Result<Self> {
        fs::create_dir_all(mountpoint)?;
        let devices: Vec<_> = devices.iter().map(|device| format!("device={}", device.display())).collect();
        // Not `mount(8)`, which would put a loop device in between.
        mount(
            Some(bootstrap),
            mountpoint,
            Some("erofs"),
            MsFlags::MS_RDONLY,
            Some(devices.join(",").as_str()),
        )
        .with_context(|| format!("mounting {} as EROFS", bootstrap.display()))?;
        Ok(Self(mountpoint.to_owned()))
    }

    /// Where the root is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for MountedErofs {
    fn drop(&mut self) {
        if let Err(error) = umount(&self.0) {
            process::tell(format_args!("unmounting {}: {error}", self.0.display()));
        }
    }
}
