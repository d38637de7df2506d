//! What precedes the content of an entry, for readers that do their own input: streams that come in pieces, archives whose
//! files are read where they lie. [`super::TarSource`] reads layers by the same headers and records.

use super::error::Problem;
use super::header::{HeaderBlock, until_nul};
use super::pax::{HEADER_LIMIT_BYTES, Numbers, Records};

/// The unit of a tar stream, in bytes.
pub const BLOCK_BYTES: usize = super::header::BLOCK_BYTES;

/// The headers of a tar, block by block.
#[derive(Debug, Default)]
pub struct Heads {
    global: Numbers,
    records: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

/// What a header block is.
#[derive(Debug, Eq, PartialEq)]
pub enum Head {
    /// The end of the archive.
    End,
    /// It says something about entries that follow: its content is for [`Heads::extend`].
    Extension(Extension),
    /// An entry.
    Entry(EntryHead),
}

/// What says something about entries that follow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extension {
    typeflag: u8,
    /// Bytes of its content, at most 1 MiB.
    pub size: usize,
}

/// An entry, as all that precedes its content says together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EntryHead {
    /// Its path as it stands there.
    pub path: Vec<u8>,
    /// The target, if it is a link.
    pub link: Vec<u8>,
    /// What it is: `0` and NUL are files.
    pub typeflag: u8,
    /// Bytes of content that follow.
    pub size: u64,
    /// Whether it is a sparse file, whose content is not just the file's.
    pub is_sparse: bool,
}

impl EntryHead {
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        matches!(self.typeflag, 0 | b'0' | b'7')
    }
}

impl Heads {
    /// Takes the next header block.
    ///
    /// # Errors
    ///
    /// When it is none, a number in it is wrong, or it announces more about other entries than is ever needed.
    pub fn next(&mut self, block: [u8; BLOCK_BYTES]) -> Result<Head, Problem> {
        if block.iter().all(|&byte| byte == 0) {
            return Ok(Head::End);
        }
        let header = HeaderBlock::parse(block)?;
        let typeflag = header.typeflag();
        if matches!(typeflag, b'x' | b'g' | b'L' | b'K') {
            let size = header.size()?;
            // Held in memory before it is understood, so it may not be as large as a file may be.
            if size > HEADER_LIMIT_BYTES {
                return Err(Problem::TooLong {
                    what: "what a header says about other entries",
                    size,
                    limit: HEADER_LIMIT_BYTES,
                });
            }
            return Ok(Head::Extension(Extension { typeflag, size: size as usize }));
        }
        // What extension headers said is about the next entry alone. All of it goes now, also what is not used: a long name
        // left here would become that of the entry after.
        let records = self.records.take().unwrap_or_else(|| Records::new(self.global));
        let (name, link) = (self.name.take(), self.link.take());
        // With a size in a record the field of the header counts for nothing: of files above 8 GiB some writers leave in it
        // what does not fit.
        let size = match records.numbers.size {
            Some(size) => size,
            None => header.size()?,
        };
        Ok(Head::Entry(EntryHead {
            is_sparse: typeflag == b'S' || records.sparse.is_given(),
            path: records.path.or(name).unwrap_or_else(|| header.path()),
            link: records.link.or(link).unwrap_or_else(|| header.link().to_vec()),
            typeflag,
            size,
        }))
    }

    /// Takes the content of `extension`, all of it.
    ///
    /// # Errors
    ///
    /// When it is not what such content is.
    pub fn extend(&mut self, extension: Extension, content: &[u8]) -> Result<(), Problem> {
        match extension.typeflag {
            b'L' => self.name = Some(until_nul(content).to_vec()),
            b'K' => self.link = Some(until_nul(content).to_vec()),
            b'g' => self.global.add(content).map_err(|(_, problem)| problem)?,
            _ => {
                let global = self.global;
                let records = self.records.get_or_insert_with(|| Records::new(global));
                records.add(content).map_err(|(_, problem)| problem)?;
            }
        }
        Ok(())
    }
}
