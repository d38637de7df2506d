//! Files that get their name when they are complete.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::NamedTempFile;

/// Writes are gathered to this many bytes.
const BUFFER_BYTES: usize = 1 << 20;

/// A file that is being written under a temporary name next to its final one. Dropped without [`OutputFile::finish`], it is
/// deleted.
pub(crate) struct OutputFile {
    file: BufWriter<NamedTempFile>,
    name: PathBuf,
    folder: PathBuf,
}

impl OutputFile {
    /// Begins the file that will be called `name`.
    pub(crate) fn create(name: &Path) -> anyhow::Result<Self> {
        let folder = name.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // As any other file is made: the user's umask decides.
        let file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .with_context(|| format!("cannot write to the folder {}", folder.display()))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self { file, name: name.to_owned(), folder: folder.to_owned() })
    }

    /// Gives the file its name, in place of what has it, once all is on disk.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let context = || format!("cannot write {}", self.name.display());
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error).with_context(context)?;
        file.as_file().sync_all().with_context(context)?;
        file.persist(&self.name).with_context(context)?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).with_context(context)
    }
}

impl io::Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_that_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("file");
        let mut output = OutputFile::create(&name).unwrap();
        output.write_all(b"half").unwrap();
        drop(output);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        let mut output = OutputFile::create(&name).unwrap();
        output.write_all(b"whole").unwrap();
        output.finish().unwrap();
        assert_eq!(std::fs::read(&name).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }
}
