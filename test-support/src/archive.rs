//! Layers: tar streams, plain or compressed.

use std::io::Write as _;

/// A tar stream of regular files with mode 0644.
pub fn tar_of(files: &[(impl AsRef<str>, impl AsRef<[u8]>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let content = content.as_ref();
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path.as_ref(), content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// The bytes compressed by gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_compressed_tar_has_its_files() {
        let packed = gzip(&tar_of(&[("a", "first"), ("dir/b", "")]));
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&packed[..]));
        let files = archive.entries().unwrap().map(|entry| {
            let (mut entry, mut text) = (entry.unwrap(), String::new());
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        });
        let files: Vec<_> = files.collect();
        assert_eq!(files, [("a".to_owned(), "first".to_owned()), ("dir/b".to_owned(), String::new())]);
    }
}
