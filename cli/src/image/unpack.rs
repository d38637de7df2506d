//! `image unpack`: an image back into files.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use rafs::blob::source::load_chunk_info;
use rafs::bootstrap::Bootstrap;
use rafs::unpack;

use super::blobs::Blobs;
use super::source::Located;

/// Writes are gathered to this many bytes.
const BUFFER_BYTES: usize = 1 << 20;

/// Unpacks to a tar at `destination` (`-`: standard output), or to the directory of that name.
pub(super) async fn run(located: Located, destination: PathBuf, directory: bool) -> anyhow::Result<ExitCode> {
    tokio::task::spawn_blocking(move || unpack(&located, &destination, directory)).await??;
    Ok(ExitCode::SUCCESS)
}

fn unpack(located: &Located, destination: &Path, directory: bool) -> anyhow::Result<()> {
    let mut bootstrap = Bootstrap::open(&located.bootstrap)?;
    let source = Blobs::of(located)?;
    load_chunk_info(&mut bootstrap, &source)?;
    if directory {
        return Ok(unpack::to_directory(&bootstrap, &source, destination)?);
    }
    if destination == Path::new("-") {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
        unpack::to_tar(&bootstrap, &source, &mut out)?;
        return out.flush().context("writing to standard output");
    }
    let folder =
        destination.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write to the folder {}", folder.display()))?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, temporary);
    unpack::to_tar(&bootstrap, &source, &mut out)?;
    let temporary = out.into_inner().context("writing the tar")?;
    temporary.as_file().sync_all().context("writing the tar")?;
    temporary.persist(destination).with_context(|| format!("cannot rename to {}", destination.display()))?;
    Ok(())
}
