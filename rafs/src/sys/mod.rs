//! The crate's system calls that need `unsafe`.
#![allow(unsafe_code)]

mod guard;

use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::{Mmap, UncheckedAdvice};

use guard::Guard;

/// A whole file, mapped for reading.
///
/// The file must not be changed or shortened while it is mapped: bootstraps are written under another name and renamed into
/// place. Where that happens all the same, or the disk cannot read a block, what cannot be read is zeros from then on, and
/// the map is damaged; nobody else in the process suffers for it.
#[derive(Debug)]
pub(crate) struct Map {
    // Dropped before the mapping, whose addresses may be somebody else's then.
    guard: Guard,
    map: Mmap,
}

impl Map {
    /// Maps a file; `None` if there are too many maps, all of which are looked through when one fails.
    pub(crate) fn new(file: &File) -> io::Result<Option<Self>> {
        // SAFETY: the mapping is read-only and private. Nothing assumes that its bytes are valid as anything but bytes, nor
        // that they stay the same; what cannot be read any longer is replaced by zeros under the guard below.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Guard::new(map.as_ptr() as usize, map.len())?.map(|guard| Self { guard, map }))
    }

    /// Lets go of the pages that were read, which are the kernel's to keep or not from then on. Who reads them again gets them
    /// from there.
    pub(crate) fn let_go(&self) {
        // SAFETY: the mapping is read-only, so that no page of it has anything but what its file has, or zeros where one of
        // the guard's took its place: what is read after this is what was read before.
        // Where the kernel does not want to, it all stays, which is right too.
        let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
    }

    /// Whether some of it could not be read: what was read since it was made may be wrong.
    pub(crate) fn is_damaged(&self) -> bool {
        self.guard.is_damaged()
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PAGES: usize = 5;

    fn page_size() -> usize {
        nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap() as usize
    }

    fn mapped() -> (File, Map) {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; PAGES * page_size()], 0).unwrap();
        let map = Map::new(&file).unwrap().unwrap();
        (file, map)
    }

    #[test]
    fn of_a_file_that_is_shortened_the_rest_is_zeros_and_that_map_alone_is_damaged() {
        let (file, map) = mapped();
        let (_other_file, other) = mapped();
        file.set_len(page_size() as u64).unwrap();
        assert!(!map.is_damaged(), "nobody has noticed");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    assert_eq!((map[0], map[2 * page_size()], map[4 * page_size() + 9]), (7, 0, 0))
                });
            }
        });
        assert!(map.is_damaged());
        assert!(!other.is_damaged() && other.iter().all(|byte| *byte == 7));
        drop(map);
        let (_file, next) = mapped();
        assert!(!next.is_damaged(), "its place among the guards is as new");
    }

    #[test]
    fn what_was_let_go_of_is_read_again() {
        let (file, map) = mapped();
        assert_eq!(map[3 * page_size()], 7);
        map.let_go();
        assert!(map.iter().all(|byte| *byte == 7) && !map.is_damaged());
        file.set_len(page_size() as u64).unwrap();
        assert_eq!(map[3 * page_size()], 0);
        map.let_go();
        assert!(map[3 * page_size()] == 0 && map.is_damaged(), "zeros stay zeros");
    }

    /// A fault elsewhere ends the process as ever.
    #[test]
    fn other_bus_errors_are_not_swallowed() {
        const CHILD: &str = "RAFS_TEST_BUS_ERROR";
        if std::env::var_os(CHILD).is_none() {
            let name = "sys::tests::other_bus_errors_are_not_swallowed";
            let this = std::env::current_exe().unwrap();
            let output = Command::new(this).args(["--exact", name]).env(CHILD, "1").output().unwrap();
            let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
            assert_eq!(signal, Some(nix::libc::SIGBUS), "{}", output.status);
            return;
        }
        // No core file for a death that is wanted.
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
        let _guarded = mapped();
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        // SAFETY: read-only, and what is wrong with it is the point.
        let unguarded = unsafe { Mmap::map(&file) }.unwrap();
        file.set_len(0).unwrap();
        std::process::exit(i32::from(unguarded[0]));
    }
}
