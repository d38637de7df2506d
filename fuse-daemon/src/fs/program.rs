//! Programs that are read nearly whole when they start.
//!
//! The run time of Go reads its tables of functions, types and garbage collection, which are strewn over the file: of such a
//! program 74 to 100 % of the chunks are read before it serves. Others read what they use.

use object::elf::FileHeader64;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

/// How much of a program has to be at hand to tell: the linker of Go puts its mark on the first page.
pub(super) const HEAD_BYTES: usize = 4096;

/// The note that the linker of Go leaves in each program: its build id.
const GO_NOTE: (&[u8], u32) = (b"Go", 4);

/// Whether a file that begins like this is a program, or a library.
pub(super) fn is_one(head: &[u8]) -> bool {
    head.starts_with(&elf::ELFMAG)
}

/// Whether a program that begins like this is read nearly whole. Of what is no program, or cannot be read, `false`.
pub(super) fn is_read_whole(head: &[u8]) -> bool {
    has_go_note(head).unwrap_or_default()
}

fn has_go_note(head: &[u8]) -> object::read::Result<bool> {
    let header = FileHeader64::<Endianness>::parse(head)?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, head)? {
        if segment.p_type(endian) != elf::PT_NOTE {
            continue;
        }
        let Some(mut notes) = segment.notes(endian, head)? else { continue };
        while let Some(note) = notes.next()? {
            if (note.name(), note.n_type(endian)) == GO_NOTE {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of 64 bits with one segment of notes, which holds one note of this name.
    fn program(name: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len() as u32 + 1, 4, GO_NOTE.1] {
            note.extend(word.to_le_bytes());
        }
        note.extend(name);
        note.push(0);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(b"body");
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        for (size, value) in [
            (2, 2),
            (2, 62),
            (4, 1),
            (8, 0),
            (8, 64),
            (8, 0),
            (4, 0),
            (2, 64),
            (2, 56),
            (2, 1),
            (2, 0),
            (2, 0),
            (2, 0),
        ] {
            bytes.extend(&u64::to_le_bytes(value)[..size]);
        }
        for (size, value) in
            [(4, 4), (4, 4), (8, 120), (8, 0), (8, 0), (8, note.len() as u64), (8, 0), (8, 4)]
        {
            bytes.extend(&u64::to_le_bytes(value)[..size]);
        }
        bytes.extend(note);
        bytes
    }

    #[test]
    fn go_programs_are_known_by_their_build_id() {
        assert!(is_read_whole(&program(b"Go")));
        assert!(!is_read_whole(&program(b"GNU")));
        let this_one = std::fs::read("/proc/self/exe").unwrap();
        assert!(!is_read_whole(&this_one[..HEAD_BYTES]));
    }

    #[test]
    fn what_is_cut_off_or_no_program_is_none() {
        let whole = program(b"Go");
        for len in 0..whole.len() {
            is_read_whole(&whole[..len]);
        }
        assert!(!is_read_whole(b"#!/bin/sh\n"));
    }
}
