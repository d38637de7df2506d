//! A power cut at any moment: of what was written since the disk was last waited for, any part is there, in any order, and
//! pages are torn. What was answered is there nevertheless.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

use super::*;

const SECTOR: usize = 512;
/// How often the power is cut over the same operations, each time at another moment and with other parts lost.
const CUTS: u64 = 48;

/// A disk that says what it held, had the power been cut now.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Written>>);

#[derive(Debug, Default)]
struct Written {
    /// What a reader sees.
    content: Vec<u8>,
    /// What is there for good.
    durable: Vec<u8>,
    /// Sectors that were written since.
    pending: BTreeSet<usize>,
    /// Writes until the power is cut, and what is left then.
    left: Option<u64>,
    after: Option<Vec<u8>>,
    seed: u64,
}

impl Disk {
    /// The power will be cut after so many writes.
    fn cut_after(&self, writes: u64, seed: u64) {
        let mut written = self.lock();
        (written.left, written.seed) = (Some(writes), seed);
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap()
    }
}

impl Written {
    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// What is left: of sectors that nobody had waited for some, and a length from before or after.
    fn cut(&mut self) -> Vec<u8> {
        let mut left = self.durable.clone();
        if !self.random().is_multiple_of(4) {
            left.resize(self.content.len(), 0);
        }
        for sector in self.pending.clone() {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.content.len()).min(left.len());
            if self.random().is_multiple_of(2) && range.start < range.end {
                left[range.clone()].copy_from_slice(&self.content[range]);
            }
        }
        left
    }

    fn count_down(&mut self) {
        match self.left {
            Some(0) => {
                self.left = None;
                self.after = Some(self.cut());
            }
            Some(left) => self.left = Some(left - 1),
            None => {}
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (start, written) = (offset as usize, self.lock());
        let found = written.content.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut written = self.lock();
        written.count_down();
        written.content.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut written = self.lock();
        written.count_down();
        let Written { content, durable, pending, .. } = &mut *written;
        durable.resize(content.len(), 0);
        for sector in std::mem::take(pending) {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(content.len());
            durable[range.clone()].copy_from_slice(&content[range]);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.lock();
        written.count_down();
        let (start, end) = (offset as usize, offset as usize + data.len());
        written.content[start..end].copy_from_slice(data);
        written.pending.extend(start / SECTOR..end.div_ceil(SECTOR));
        Ok(())
    }
}

/// What is left after a power cut.
struct Left {
    /// Keys that were answered to be there by then, and to be gone.
    there: BTreeSet<String>,
    gone: BTreeSet<String>,
    /// Whether the file had its name, which it gets when it is a database.
    is_made: bool,
    content: Vec<u8>,
}

/// Layers are unpacked and containers come and go, until the power is cut.
fn until_the_cut(writes: u64, seed: u64) -> Option<Left> {
    let disk = Disk::default();
    disk.cut_after(writes, seed);
    drop(disk::database(disk.clone(), Failed::default()).unwrap());
    let is_made = disk.lock().after.is_none();
    let file = disk.clone();
    let state = State::open_with(Box::new(move |failed| disk::database(file.clone(), failed))).unwrap();
    let (mut there, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for number in 1..20_u64 {
        let (key, name) = (format!("{number}-a"), format!("{number}"));
        let parent = (number > 1).then(|| format!("{}", number - 1));
        let is_cut = || disk.lock().after.is_some();
        state.create(creation(number * 2, Kind::Active, &key, parent.as_deref())).unwrap();
        if is_cut() {
            break;
        }
        state.commit(&key, commit(&name, Usage::default())).unwrap();
        if is_cut() {
            break;
        }
        gone.insert(key);
        there.insert(name);
        let container = format!("{number}-container");
        state.create(creation(number * 2 + 1, Kind::Active, &container, None)).unwrap();
        state.remove(&container).unwrap();
        if is_cut() {
            break;
        }
        gone.insert(container);
    }
    let after = disk.lock().after.take();
    after.map(|content| Left { there, gone, is_made, content })
}

#[test]
fn what_was_answered_before_a_power_cut_is_there_after_it() {
    let (root, mut cuts) = (tempfile::tempdir().unwrap(), 0);
    let path = root.path().join("snapshots.redb");
    for seed in 0..CUTS {
        let left = until_the_cut(seed * 37 % 601, seed);
        let Some(Left { there, gone, is_made, content }) = left else { continue };
        cuts += 1;
        let _ = std::fs::remove_file(&path);
        std::fs::write(if is_made { path.clone() } else { path.with_extension("new") }, content).unwrap();
        let state = State::open(&path).unwrap();
        let found: BTreeSet<String> = {
            let mut found = BTreeSet::new();
            state.walk(|key, _| Ok(found.insert(key))).unwrap();
            found
        };
        let lost: Vec<_> = there.difference(&found).collect();
        assert!(lost.is_empty(), "cut {seed}: lost {lost:?}");
        let back: Vec<_> = gone.intersection(&found).collect();
        assert!(back.is_empty(), "cut {seed}: {back:?} came back");
        // And it can be gone on with.
        let next = state.next_id().unwrap().0;
        state.create(creation(next, Kind::Active, "next", None)).unwrap();
    }
    assert!(cuts > CUTS / 2, "only {cuts} cuts");
}
