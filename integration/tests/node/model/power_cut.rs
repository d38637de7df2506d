//! What a power cut leaves of a cache. Nothing of it is ever waited for, so of each file any part may be there, as it was at
//! any time, in any order: data without bits and bits without data, pages that are torn or another file's, files that have
//! no content yet, that have their old name still, or come back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::random::Random;
use super::tamper::{DATA, MAP, blob_files, is};

const PAGE: u64 = 4096;
/// What the name of a file ends with that is to take another's place.
const NEW: &str = ".new";
/// Of a page that is being written, some of these are.
const SECTOR: u64 = 512;

/// What the files of a cache held at some time; of data only that it was there: a chunk is written once.
#[derive(Debug, Default)]
pub(super) struct Past(BTreeMap<PathBuf, Vec<u8>>);

impl Past {
    /// Notes what they hold now.
    pub(super) fn note(&mut self, cache: &Path) -> Result<()> {
        self.0.clear();
        for (path, _) in blob_files(cache)? {
            // It may be deleted, or take its last name, while we look.
            let content = if is(&path, DATA) { Ok(Vec::new()) } else { fs::read(&path) };
            self.0.extend(content.ok().map(|content| (path, content)));
        }
        Ok(())
    }
}

/// Leaves of a cache, of which nobody has anything open, what a power cut might.
pub(super) fn leave(cache: &Path, past: &Past, random: &mut Random) -> Result<()> {
    for (path, _) in blob_files(cache)? {
        let left = if is(&path, DATA) {
            of_data(&path, random)
        } else if is(&path, MAP) {
            of_map(&path, past, random)
        } else {
            of_replaced(&path, past, random)
        };
        left.with_context(|| format!("of {}", path.display()))?;
    }
    // What was deleted, but not for good.
    for (path, content) in past.0.iter().filter(|(path, _)| !path.exists()) {
        if random.chance(25) {
            fs::write(path, content)?;
        }
    }
    Ok(())
}

/// Chunks are written in place, and the file is made long before.
fn of_data(path: &Path, random: &mut Random) -> Result<()> {
    match random.within(0..20) {
        0..5 => Ok(()),
        5 => cut(path, 0),
        6 | 7 => {
            let pages = fs::metadata(path)?.len() / PAGE;
            cut(path, random.within(0..pages + 1) * PAGE)
        }
        8 => Ok(fs::remove_file(path)?),
        _ => {
            for _ in 0..random.within(1..40) {
                spoil_page(path, 0, random)?;
            }
            Ok(())
        }
    }
}

/// Bits are written in place too.
fn of_map(path: &Path, past: &Past, random: &mut Random) -> Result<()> {
    match random.within(0..20) {
        0..7 => Ok(()),
        // The header, which says in which boot it was written, apart from the bits.
        7..12 => match past.0.get(path) {
            Some(old) => older_pages(path, old, random),
            None => cut(path, 0),
        },
        12 | 13 => {
            let length = fs::metadata(path)?.len();
            cut(path, random.within(0..length + 1))
        }
        14 => Ok(fs::remove_file(path)?),
        15 => all_bits(path),
        _ => spoil_page(path, PAGE, random),
    }
}

/// Files that are written under another name first: the new name may come before the content.
fn of_replaced(path: &Path, past: &Past, random: &mut Random) -> Result<()> {
    let content = fs::read(path)?;
    match random.within(0..10) {
        0..4 => Ok(()),
        4 | 5 => match past.0.get(path) {
            Some(old) => Ok(fs::write(path, old)?),
            None => Ok(fs::remove_file(path)?),
        },
        6 => cut(path, 0),
        7 => cut(path, random.within(0..content.len() as u64 + 1)),
        8 => spoil_page(path, 0, random),
        _ if is(path, NEW) => Ok(()),
        // A part of the next one is left.
        _ => {
            let length = random.within(0..content.len() as u64 + 1);
            Ok(fs::write(format!("{}{NEW}", path.display()), &content[..length as usize])?)
        }
    }
}

fn cut(path: &Path, length: u64) -> Result<()> {
    Ok(File::options().write(true).open(path)?.set_len(length)?)
}

/// One page from `start` on was not written, or in part, or what is there belonged to something else before.
fn spoil_page(path: &Path, start: u64, random: &mut Random) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    if length <= start {
        return Ok(());
    }
    let page = start + random.within(0..(length - start).div_ceil(PAGE)) * PAGE;
    let size = PAGE.min(length - page);
    let mut bytes = vec![0; size as usize];
    match random.within(0..10) {
        0..5 => {}
        5..8 => {
            file.read_exact_at(&mut bytes, page)?;
            let sectors: Vec<bool> = (0..PAGE / SECTOR).map(|_| random.chance(50)).collect();
            let torn = bytes.chunks_mut(SECTOR as usize).zip(sectors).filter(|(_, lost)| *lost);
            torn.for_each(|(sector, _)| sector.fill(0));
        }
        _ => bytes.fill_with(|| random.next() as u8),
    }
    Ok(file.write_all_at(&bytes, page)?)
}

/// Some pages are as they were before.
fn older_pages(path: &Path, old: &[u8], random: &mut Random) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    for (number, page) in old.chunks(PAGE as usize).enumerate() {
        if random.chance(60) {
            file.write_all_at(page, number as u64 * PAGE)?;
        }
    }
    Ok(())
}

/// Says of all chunks that they are there, of which the data may have none.
fn all_bits(path: &Path) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    let length = file.metadata()?.len().saturating_sub(PAGE);
    Ok(file.write_all_at(&vec![0xff; length as usize], PAGE)?)
}
