//! What happens to cache files while the daemon is not there: disks fill, people delete, power goes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fuse_daemon::control::BlobId;

use super::power_cut::{self, Past};
use super::random::Random;

/// The suffixes of a blob's files.
pub(super) const DATA: &str = ".blob.data";
pub(super) const MAP: &str = ".chunk_map";
/// Where a map has the boot in which it was written, and how many bytes that are.
const BOOT_OFFSET: u64 = 16;
const BOOT_SIZE: usize = 16;
/// What a boot that is over is called.
const OTHER_BOOT: [u8; BOOT_SIZE] = [0xb0; BOOT_SIZE];
/// Names blobs of mounts that outlive their daemon, below the boot in which these mounts are.
const HANDED_OVER: &str = "handed-over";

#[derive(Clone, Debug)]
pub(super) enum Tamper {
    /// A blob's data file is shorter: to this many thousandths.
    Shorten { blob: u64, thousandths: u64 },
    /// A blob loses one of its files.
    Delete { file: u64 },
    /// One of a blob's files, other than its data, is cut short or filled with something else.
    Spoil { file: u64, cut: bool },
    /// The machine starts again, after a power cut if a seed says what that left.
    Reboot { cut: Option<u64> },
}

/// Of which blobs nobody can say any more what the cache holds.
pub(super) enum Lost {
    Nothing,
    One(BlobId),
    Everything,
}

impl Tamper {
    pub(super) fn random(random: &mut Random) -> Self {
        match random.within(0..7) {
            0 => Self::Shorten { blob: random.next(), thousandths: random.within(0..1000) },
            1 => Self::Delete { file: random.next() },
            2 => Self::Spoil { file: random.next(), cut: random.chance(50) },
            3 => Self::Reboot { cut: None },
            _ => Self::power_cut(random),
        }
    }

    pub(super) fn power_cut(random: &mut Random) -> Self {
        Self::Reboot { cut: Some(random.next()) }
    }

    /// Does it; `past` is what the cache's files held some time ago.
    pub(super) fn apply(&self, cache: &Path, past: &Past) -> Result<Lost> {
        let files = blob_files(cache)?;
        let of = |kind: &str| -> Vec<&(PathBuf, BlobId)> {
            files.iter().filter(|(path, _)| is(path, kind)).collect()
        };
        let pick = |among: &[&(PathBuf, BlobId)], number: u64| {
            (!among.is_empty()).then(|| among[(number % among.len() as u64) as usize].clone())
        };
        let all: Vec<_> = files.iter().collect();
        let others: Vec<_> = all.iter().filter(|(path, _)| !is(path, DATA)).copied().collect();
        Ok(match *self {
            Self::Shorten { blob, thousandths } => match pick(&of(DATA), blob) {
                Some((path, id)) => {
                    let file = File::options().write(true).open(&path)?;
                    file.set_len(file.metadata()?.len() * thousandths / 1000)?;
                    Lost::One(id)
                }
                None => Lost::Nothing,
            },
            Self::Delete { file } => match pick(&all, file) {
                Some((path, id)) => {
                    fs::remove_file(path)?;
                    Lost::One(id)
                }
                None => Lost::Nothing,
            },
            Self::Spoil { file, cut } => match pick(&others, file) {
                Some((path, id)) => {
                    let length = fs::metadata(&path)?.len();
                    match cut {
                        true => File::options().write(true).open(&path)?.set_len(length / 2)?,
                        false => fs::write(&path, vec![0xa5; length as usize])?,
                    }
                    Lost::One(id)
                }
                None => Lost::Nothing,
            },
            Self::Reboot { cut: seed } => {
                if let Some(seed) = seed {
                    power_cut::leave(cache, past, &mut Random::new(seed))?;
                }
                for (path, _) in blob_files(cache)?.iter().filter(|(path, _)| is(path, MAP)) {
                    let map = File::options().write(true).open(path)?;
                    // An empty one stays that.
                    if map.metadata()?.len() >= BOOT_OFFSET + BOOT_SIZE as u64 {
                        map.write_all_at(&OTHER_BOOT, BOOT_OFFSET)?;
                    }
                }
                end_mounts(cache)?;
                if seed.is_some() { Lost::Everything } else { Lost::Nothing }
            }
        })
    }
}

/// No mount outlives its boot.
fn end_mounts(cache: &Path) -> Result<()> {
    let path = cache.join(HANDED_OVER);
    if !path.exists() {
        return Ok(());
    }
    let text = fs::read_to_string(&path)?;
    let blobs = text.split_once('\n').map_or("", |(_boot, blobs)| blobs);
    fs::write(&path, format!("{}\n{blobs}", hex::encode(OTHER_BOOT)))?;
    Ok(())
}

/// Whether a file is one of these of a blob.
pub(super) fn is(path: &Path, kind: &str) -> bool {
    path.to_string_lossy().ends_with(kind)
}

/// The files in a cache that belong to a blob, in order.
pub(super) fn blob_files(cache: &Path) -> Result<Vec<(PathBuf, BlobId)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(cache).with_context(|| format!("listing {}", cache.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let id = name.split('.').next().unwrap_or_default().parse::<BlobId>();
        if let Ok(id) = id {
            files.push((path, id));
        }
    }
    files.sort();
    Ok(files)
}
