//! What a program's file says of the libraries that it is linked with, for the loader: ELF of 64 bits, little-endian.
//!
//! ```text
//!   head:    PT_INTERP ──> the loader's path     PT_LOAD: which part of the file an address is in
//!            PT_DYNAMIC ──> entries: DT_NEEDED, a name's place ──┐
//!                                    DT_STRTAB, DT_STRSZ ──> names <┘
//! ```

use std::ops::Range;

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

/// Bytes of the entries, and of the names, that are looked at: more than any program has.
const ENTRIES_LIMIT_BYTES: u64 = 64 << 10;
pub(super) const NAMES_LIMIT_BYTES: u64 = 4 << 20;

/// Bytes of a path with its NUL: `PATH_MAX`, beyond which the kernel starts no program with such a loader, and opens no file.
const PATH_LIMIT_BYTES: u64 = 4096;

/// Names that are looked at.
const NAMES_LIMIT: usize = 256;

/// Bytes of an entry: what it is, and a value.
const ENTRY_BYTES: usize = 16;

/// Where in a program's file the loader looks.
#[derive(Debug)]
pub(crate) struct Linked {
    /// For which processor it is: `EM_*`.
    pub(crate) machine: u16,
    /// Where the loader's path is.
    pub(crate) loader: Option<Range<u64>>,
    /// Where the entries are.
    pub(crate) entries: Range<u64>,
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Segment {
    address: u64,
    in_file: Range<u64>,
}

/// The names of libraries in a program's file.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct LibraryNames {
    /// Where all names are.
    pub(crate) all: Range<u64>,
    /// Where each begins in them.
    pub(crate) needed: Vec<u64>,
}

impl Linked {
    /// Of a program that begins like this; `None` if it is not linked with libraries.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        let header = FileHeader64::<Endianness>::parse(head).ok()?;
        let endian = header.endian().ok().filter(|endian| *endian == Endianness::Little)?;
        let (mut loader, mut entries, mut segments) = (None, None, Vec::new());
        for segment in header.program_headers(endian, head).ok()? {
            let start = segment.p_offset(endian);
            let in_file = start..start.checked_add(segment.p_filesz(endian))?;
            match segment.p_type(endian) {
                elf::PT_INTERP => loader = Some(in_file),
                elf::PT_DYNAMIC => entries = Some(in_file),
                elf::PT_LOAD => segments.push(Segment { address: segment.p_vaddr(endian), in_file }),
                _ => {}
            }
        }
        let entries = entries.filter(|entries| size(entries) <= ENTRIES_LIMIT_BYTES)?;
        let loader = loader.filter(|loader| size(loader) <= PATH_LIMIT_BYTES);
        Some(Self { machine: header.e_machine(endian), loader, entries, segments })
    }

    /// Which names the entries mean.
    pub(super) fn names(&self, entries: &[u8]) -> Option<LibraryNames> {
        let (mut table, mut bytes, mut needed) = (None, None, Vec::new());
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let (what, value) = entry.split_first_chunk::<8>()?;
            let value = u64::from_le_bytes(value.try_into().ok()?);
            match u32::try_from(u64::from_le_bytes(*what)) {
                Ok(elf::DT_NULL) => break,
                Ok(elf::DT_STRTAB) => table = Some(value),
                Ok(elf::DT_STRSZ) => bytes = Some(value),
                Ok(elf::DT_NEEDED) if needed.len() < NAMES_LIMIT => needed.push(value),
                _ => {}
            }
        }
        let start = self.in_file(table?)?;
        let all = start..start.checked_add(bytes.filter(|bytes| *bytes <= NAMES_LIMIT_BYTES)?)?;
        Some(LibraryNames { all, needed })
    }

    /// Where in the file an address is.
    fn in_file(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|Segment { address: first, in_file }| {
            let offset = address.checked_sub(*first).filter(|offset| *offset < size(in_file))?;
            in_file.start.checked_add(offset)
        })
    }
}

/// The name that begins at `at`, and ends with a zero.
pub(super) fn name(all: &[u8], at: u64) -> Option<&[u8]> {
    let rest = all.get(usize::try_from(at).ok()?..)?;
    // Each of its parts is looked for.
    let rest = &rest[..rest.len().min(PATH_LIMIT_BYTES as usize)];
    let end = rest.iter().position(|byte| *byte == 0)?;
    Some(&rest[..end]).filter(|name| !name.is_empty())
}

fn size(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `/proc/self/exe` says.
    fn this_program() -> (Vec<u8>, Linked) {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let linked = Linked::of(&bytes[..4096]).expect("it is linked with libraries");
        (bytes, linked)
    }

    fn part(bytes: &[u8], range: &Range<u64>) -> Vec<u8> {
        bytes[range.start as usize..range.end as usize].to_vec()
    }

    #[test]
    fn a_program_says_which_loader_and_libraries_it_needs() {
        let (bytes, linked) = this_program();
        let loader = part(&bytes, linked.loader.as_ref().unwrap());
        assert!(loader.starts_with(b"/") && loader.ends_with(b"\0"), "{loader:?}");
        let names = linked.names(&part(&bytes, &linked.entries)).unwrap();
        let all = part(&bytes, &names.all);
        let needed: Vec<&[u8]> = names.needed.iter().filter_map(|at| name(&all, *at)).collect();
        assert!(needed.iter().any(|name| name.starts_with(b"libc.so")), "{needed:?}");
    }

    /// The head of a program whose loader's path has so many bytes.
    fn head(loader_bytes: u64) -> Vec<u8> {
        let mut head = b"\x7fELF\x02\x01\x01".to_vec();
        head.resize(64 + 2 * 56, 0);
        let mut put = |at: usize, part: &[u8]| head[at..at + part.len()].copy_from_slice(part);
        // Where the table of segments is; the size of an entry, and how many there are.
        put(32, &64_u64.to_le_bytes());
        put(54, &[56, 0, 2, 0]);
        // Of each its type, where it is in the file, and its size.
        let segments = [(64, elf::PT_INTERP, loader_bytes), (64 + 56, elf::PT_DYNAMIC, 64)];
        for (place, kind, size) in segments {
            put(place, &kind.to_le_bytes());
            put(place + 8, &512_u64.to_le_bytes());
            put(place + 32, &size.to_le_bytes());
        }
        head
    }

    #[test]
    fn a_loader_whose_path_is_longer_than_paths_may_be_is_none() {
        let loader = |bytes| Linked::of(&head(bytes)).expect("it is linked with libraries").loader;
        assert_eq!(loader(4096), Some(512..512 + 4096));
        assert_eq!(loader(4097), None);
        assert_eq!(loader(1 << 40), None);
    }

    #[test]
    fn what_is_cut_off_or_no_program_has_none() {
        assert!(Linked::of(b"#!/bin/sh\n").is_none());
        let (bytes, linked) = this_program();
        (0..1024).for_each(|len| drop(Linked::of(&bytes[..len])));
        let entries = part(&bytes, &linked.entries);
        (0..entries.len()).for_each(|len| drop(linked.names(&entries[..len])));
        assert_eq!(linked.names(&[]), None);
        assert_eq!(name(b"one\0two\0", 4), Some(&b"two"[..]));
        assert_eq!(name(b"one\0two\0", 3), None);
        assert_eq!(name(b"one\0", u64::MAX), None);
        // What does not end, or is longer than a path, is no name.
        assert_eq!(name(b"one\0two", 4), None);
        let long = [&[b'a'; PATH_LIMIT_BYTES as usize][..], b"\0"].concat();
        assert_eq!((name(&long, 0), name(&long, 1).map(<[u8]>::len)), (None, Some(long.len() - 2)));
    }
}
