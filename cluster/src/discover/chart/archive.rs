//! The files of a chart's archive, as far as helm would take them.

use std::io::Read as _;

use thiserror::Error;

use crate::helm::Files;

/// The most that an archive's files have together, as in helm.
pub(crate) const CHART_LIMIT_BYTES: u64 = 100 << 20;

/// The most files in an archive.
pub(crate) const FILES_LIMIT: usize = 20_000;

/// Why an archive cannot be read.
#[derive(Debug, Error)]
pub(crate) enum ArchiveError {
    /// It is no gzip, or no tar.
    #[error("no chart: {0}")]
    Broken(String),
    /// It unpacks to more than any chart.
    #[error("it unpacks to more than {CHART_LIMIT_BYTES} bytes or {FILES_LIMIT} files")]
    TooLarge,
    /// A path leads out of it.
    #[error("entry {0:?} leads out of the chart")]
    Path(String),
    /// There is no chart in it.
    #[error("no chart: it holds no Chart.yaml")]
    NoChart,
}

/// The files of the chart in `archive`, without the folder that all of them are in.
pub(crate) fn read(archive: &[u8]) -> Result<Files, ArchiveError> {
    let broken = |error: std::io::Error| ArchiveError::Broken(error.to_string());
    // A byte more than the limit shows that there is more.
    let plain = flate2::read::MultiGzDecoder::new(archive).take(CHART_LIMIT_BYTES + 1);
    let mut tar = tar::Archive::new(plain);
    let mut files = Files::new();
    let mut left = CHART_LIMIT_BYTES;
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let Some(path) = inner_path(&entry.path_bytes())? else { continue };
        let mut content = Vec::new();
        entry.by_ref().take(left + 1).read_to_end(&mut content).map_err(broken)?;
        left = left.checked_sub(content.len() as u64).ok_or(ArchiveError::TooLarge)?;
        if files.len() == FILES_LIMIT {
            return Err(ArchiveError::TooLarge);
        }
        files.insert(path, content);
    }
    if files.contains_key("Chart.yaml") { Ok(files) } else { Err(ArchiveError::NoChart) }
}

/// An entry's path without its first folder; `None` for what lies beside that folder.
fn inner_path(path: &[u8]) -> Result<Option<String>, ArchiveError> {
    let text = std::str::from_utf8(path)
        .map_err(|_| ArchiveError::Path(String::from_utf8_lossy(path).into_owned()))?;
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if text.starts_with('/') || parts.contains(&"..") || text.contains(['\0', '\\']) {
        return Err(ArchiveError::Path(text.to_owned()));
    }
    Ok((parts.len() > 1).then(|| parts[1..].join("/")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_support::gzip;

    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            // Written by hand: the builder refuses paths that lead out.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append(&header, *content).unwrap();
        }
        gzip(&tar.into_inner().unwrap())
    }

    #[test]
    fn the_folder_around_all_files_is_left_out() {
        let files = read(&archive(&[
            ("web/Chart.yaml", b"name: web"),
            ("./web/templates/a.yaml", b"a"),
            ("pax", b""),
        ]));
        let names: Vec<_> = files.unwrap().into_keys().collect();
        assert_eq!(names, ["Chart.yaml", "templates/a.yaml"]);
    }

    #[test]
    fn what_is_no_chart_or_means_harm_is_refused() {
        assert!(matches!(read(b"not gzip"), Err(ArchiveError::Broken(_))));
        assert!(matches!(read(&archive(&[("web/values.yaml", b"")])), Err(ArchiveError::NoChart)));
        for path in ["web/../../x", "/web/x", "web\\..\\x"] {
            assert!(matches!(read(&archive(&[(path, b"x")])), Err(ArchiveError::Path(_))), "{path}");
        }
        let zeros = vec![0; 60 << 20];
        let bomb = archive(&[("web/Chart.yaml", b""), ("web/a", &zeros), ("web/b", &zeros)]);
        assert!(bomb.len() < 2 << 20);
        assert!(read(&bomb).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            at in proptest::collection::vec((0_usize..2048, any::<u8>()), 0..20),
        ) {
            let _ = read(&bytes);
            let _ = read(&gzip(&bytes));
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(archive(&[("web/Chart.yaml", b"x")]).as_slice()).read_to_end(&mut plain).unwrap();
            for (at, byte) in at {
                plain[at % 1024] = byte;
            }
            let _ = read(&gzip(&plain));
        }
    }
}
