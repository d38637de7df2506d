//! What is large: a directory of 100,000 entries, a file of more than 4 GiB.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};
use integration::corpus;
use integration::image_files::{ImageFiles, LayerInput, MountedErofs, fsck};
use integration::servers::{ImageMount, Nydusd};
use rafs::bootstrap::WriteOptions;
use rafs::build::BuildOptions;

use crate::lab::{Lab, list};
use crate::{Test, named};

const ENTRIES: usize = 100_000;

/// Over 4 GiB, and no multiple of a chunk.
const LARGE: u64 = (4 << 30) + 123_457;

pub(crate) fn tests() -> Vec<(String, Test)> {
    vec![
        named("large::a_directory_of_100000_entries", many_entries),
        named("large::a_file_of_more_than_4_gib", large_file),
    ]
}

fn many_entries(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let layer = corpus::many_entries(ENTRIES);
    let expected = lab.unpacked(std::slice::from_ref(&layer))?;
    ensure!(expected.len() == ENTRIES + 2, "{} paths", expected.len());
    let options = BuildOptions::default();
    let tar = layer.to_tar();
    let files =
        ImageFiles::build(&[LayerInput::Tar(&tar)], &options, &WriteOptions::default(), scratch.path())?;
    // `nydus-image check` finds each entry of a directory by going through those before it: minutes for so many.
    files.check()?;

    let devices = files.devices(&scratch.path().join("devices"))?;
    fsck(&files.bootstrap, &devices)?;
    let mounted = MountedErofs::new(&files.bootstrap, &devices, &scratch.path().join("erofs"))?;
    list(mounted.path())?.expect_same("the kernel", &expected, "the source")?;

    // By FUSE the names alone: to look at each file takes long, and shows nothing new.
    let names = names(&mounted.path().join("many"))?;
    ensure!(names.len() == ENTRIES, "{} names", names.len());
    let daemon = Nydusd::start(lab.peers(), &scratch.path().join("nydusd"), &files.bootstrap, &files.blobs)?;
    ensure!(self::names(&daemon.mountpoint().join("many"))? == names, "nydusd lists other names");
    let mount = ImageMount::start(&files, &scratch.path().join("ours"))?;
    ensure!(self::names(&mount.mountpoint().join("many"))? == names, "image mount lists other names");
    Ok(())
}

/// Names in a directory, sorted, with what type each has.
fn names(directory: &Path) -> Result<Vec<(std::ffi::OsString, bool)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        names.push((entry.file_name(), entry.file_type()?.is_symlink()));
    }
    names.sort();
    Ok(names)
}

fn large_file(lab: &Lab) -> Result<()> {
    let scratch = lab.scratch()?;
    let tar = scratch.path().join("layer.tar");
    let layer = corpus::large_file(LARGE);
    layer.write_tar(&mut BufWriter::new(File::create(&tar)?))?;
    let expected = scratch.path().join("source");
    corpus::Tree::make(&[layer], &expected)?;

    let options = BuildOptions::default();
    let files =
        ImageFiles::build(&[LayerInput::TarFile(&tar)], &options, &WriteOptions::default(), scratch.path())?;
    files.check()?;
    lab.nydus_image()?.check(&files)?;
    let devices = files.devices(&scratch.path().join("devices"))?;
    fsck(&files.bootstrap, &devices)?;
    let mounted = MountedErofs::new(&files.bootstrap, &devices, &scratch.path().join("erofs"))?;
    same_places("the kernel", mounted.path(), &expected)?;
    let daemon = Nydusd::start(lab.peers(), &scratch.path().join("nydusd"), &files.bootstrap, &files.blobs)?;
    same_places("nydusd", daemon.mountpoint(), &expected)?;
    let mount = ImageMount::start(&files, &scratch.path().join("ours"))?;
    same_places("image mount", mount.mountpoint(), &expected)
}

/// Compares where the file's data is, and some of its holes: all of it would take long.
fn same_places(name: &str, seen: &Path, expected: &Path) -> Result<()> {
    let open = |root: &Path| File::open(root.join("large"));
    let (seen, expected) = (open(seen)?, open(expected)?);
    ensure!(seen.metadata()?.len() == LARGE, "{name}: {} bytes", seen.metadata()?.len());
    let length = 256 << 10;
    for start in [0, 1 << 30, LARGE / 2 - 1000, (4 << 30) - 1000, LARGE - length] {
        let read = |file: &File| -> Result<Vec<u8>> {
            let mut bytes = vec![0; length.min(LARGE - start) as usize];
            file.read_exact_at(&mut bytes, start)?;
            Ok(bytes)
        };
        ensure!(read(&seen)? == read(&expected)?, "{name}: other bytes from {start} on");
    }
    let mut end = [0; 16];
    ensure!(seen.read_at(&mut end, LARGE)? == 0, "{name}: there is more behind the end");
    Ok(())
}
