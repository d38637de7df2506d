//! Whole images to start from: one of each kind that the format has, of a few files each.

use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rafs::blob::Blob;
use rafs::blob::source::BlobSource;
use rafs::bootstrap::{self, WriteOptions};
use rafs::build::{BuildOptions, Dictionary, build_layer};
use rafs::compress::Compressor;
use rafs::digest::{Digest, DigestAlgorithm};
use rafs::merge::merge;
use rafs::tree::{Image as Tree, Layer};

use crate::archive::{entry, pax};

/// An image: a bootstrap and the streams of its blobs.
#[derive(Clone)]
pub struct Image {
    /// The bootstrap.
    pub bootstrap: Vec<u8>,
    /// Ids and streams of the blobs.
    pub blobs: Vec<(Digest, Vec<u8>)>,
}

impl BlobSource for Image {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        Ok(self.stream(blob).len() as u64)
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        let range = range.start as usize..range.end as usize;
        self.stream(blob).get(range).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Image {
    /// A blob whose id is not known is the first.
    fn stream(&self, blob: &Blob) -> &[u8] {
        let found = self.blobs.iter().find(|(id, _)| Some(*id) == blob.id).or(self.blobs.first());
        found.map_or(&[], |(_, stream)| stream)
    }
}

const SMALL: BuildOptions = BuildOptions {
    compressor: Compressor::Zstd { level: 1 },
    digester: DigestAlgorithm::Blake3,
    chunk_size: 4096,
    batch_size: None,
    threads: 1,
    dictionary: None,
};

/// An archive with a file of every type, in few bytes.
pub fn archive() -> Vec<u8> {
    let text: Vec<u8> = (0..5000_u32).map(|at| b"abcdefghijklmnop"[(at * at / 7) as usize % 16]).collect();
    let long = "n".repeat(200);
    [
        entry("d/", b'5', "", b""),
        entry("d/a", b'0', "", &text),
        entry("d/b", b'0', "", b"hello"),
        entry("copy", b'0', "", &text),
        entry("empty", b'0', "", b""),
        entry("link", b'1', "d/b", b""),
        entry("symlink", b'2', "d/a", b""),
        entry("device", b'3', "", b""),
        entry("pipe", b'6', "", b""),
        pax(&[("path", &long), ("SCHILY.xattr.user.a", "value"), ("mtime", "1.5")]),
        entry("long", b'0', "", b"content"),
        vec![0; 1024],
    ]
    .concat()
}

/// An archive of a layer that removes and replaces files of [`archive`].
pub fn upper_archive() -> Vec<u8> {
    [
        entry("d/.wh.a", b'0', "", b""),
        entry("d/b/", b'5', "", b""),
        entry("e/.wh..wh..opq", b'0', "", b""),
        entry("e/c", b'0', "", b"more"),
        entry(".wh.pipe", b'0', "", b""),
        vec![0; 1024],
    ]
    .concat()
}

/// Archives in the dialects of tar, to be changed.
pub fn archives() -> &'static [Vec<u8>] {
    static ARCHIVES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    ARCHIVES.get_or_init(|| {
        let long = [b"n".repeat(120), vec![0]].concat();
        let mut gnu_sparse = entry("sparse", b'S', "", b"data");
        gnu_sparse[257..265].copy_from_slice(b"ustar  \0");
        gnu_sparse[386..410].copy_from_slice(b"00000001000\x0000000000004\0");
        gnu_sparse[483..495].copy_from_slice(b"00000002000\0");
        let gnu = [entry("././@LongLink", b'L', "", &long), entry("././@LongLink", b'K', "", &long)].concat();
        let (size, map) = ("GNU.sparse.size", "GNU.sparse.map");
        let (major, minor, real) = ("GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.realsize");
        let (count, at, length) = ("GNU.sparse.numblocks", "GNU.sparse.offset", "GNU.sparse.numbytes");
        let in_content = [&b"1\n512\n4\n"[..], &[0; 503], b"data"].concat();
        let pax_sparse = [
            pax(&[(size, "1000"), (count, "1"), (at, "512"), (length, "4")]),
            entry("0.0", b'0', "", b"data"),
            pax(&[(size, "1000"), (map, "512,4")]),
            entry("0.1", b'0', "", b"data"),
            pax(&[(major, "1"), (minor, "0"), (real, "1000"), ("GNU.sparse.name", "1.0")]),
            entry("placeholder", b'0', "", &in_content),
        ];
        let end = vec![0; 1024];
        vec![
            archive(),
            upper_archive(),
            [gnu, entry("cut", b'2', "cut", b""), gnu_sparse, end.clone()].concat(),
            [pax_sparse.concat(), end].concat(),
        ]
    })
}

/// Streams of blobs, each with its table of contents.
pub fn streams() -> &'static [Vec<u8>] {
    static STREAMS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    STREAMS.get_or_init(|| v6().iter().map(|image| image.blobs[0].1.clone()).collect())
}

fn layer(archive: &[u8], options: &BuildOptions) -> (Layer, (Digest, Vec<u8>)) {
    let mut stream = Vec::new();
    let layer = build_layer(archive, &mut stream, options).expect("seeds can be built");
    let id = layer.blobs[0].id.expect("a layer's own blob has an id");
    (layer, (id, stream))
}

fn image(layers: Vec<Layer>, blobs: Vec<(Digest, Vec<u8>)>) -> Image {
    let image = merge(layers).expect("seeds can be merged");
    let prefetch = vec![b"d/a"[..].into(), b"copy"[..].into()];
    let mut bootstrap = Vec::new();
    let options = WriteOptions { prefetch, ..WriteOptions::default() };
    bootstrap::write(&image, &options, &mut bootstrap).expect("seeds can be written");
    Image { bootstrap, blobs }
}

fn one_layer(options: &BuildOptions) -> Image {
    let (layer, blob) = layer(&archive(), options);
    image(vec![layer], vec![blob])
}

/// Images of RAFS v6.
pub fn v6() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let zstd = one_layer(&SMALL);
        let lz4 = BuildOptions { compressor: Compressor::Lz4, digester: DigestAlgorithm::Sha256, ..SMALL };
        let none = BuildOptions { compressor: Compressor::None, ..SMALL };
        let batch = BuildOptions { batch_size: Some(4096), chunk_size: 8192, ..SMALL };
        let mut without_chunk_table = zstd.clone();
        without_chunk_table.bootstrap[1176..1192].fill(0);
        vec![
            upstream(
                include_bytes!("../../rafs/tests/data/v6-zstd.boot"),
                include_bytes!("../../rafs/tests/data/v6-zstd.blob"),
            ),
            zstd,
            one_layer(&lz4),
            one_layer(&none),
            one_layer(&batch),
            without_chunk_table,
            two_layers(),
            with_dictionary(),
            own_bootstrap(),
        ]
    })
}

/// Images of RAFS v5, made by nydus-image.
pub fn v5() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        vec![
            upstream(
                include_bytes!("../../rafs/tests/data/v5-lz4.boot"),
                include_bytes!("../../rafs/tests/data/v5-lz4.blob"),
            ),
            upstream(
                include_bytes!("../../rafs/tests/data/v5-none.boot"),
                include_bytes!("../../rafs/tests/data/v5-none.blob"),
            ),
        ]
    })
}

fn upstream(bootstrap: &[u8], blob: &[u8]) -> Image {
    Image { bootstrap: bootstrap.to_vec(), blobs: vec![(Digest([0; 32]), blob.to_vec())] }
}

fn two_layers() -> Image {
    let (lower, lower_blob) = layer(&archive(), &SMALL);
    let (upper, upper_blob) = layer(&upper_archive(), &SMALL);
    image(vec![lower, upper], vec![lower_blob, upper_blob])
}

/// A layer some of whose content is in the blob of another image.
fn with_dictionary() -> Image {
    let (known, known_blob) = layer(&[entry("known", b'0', "", b"hello"), vec![0; 1024]].concat(), &SMALL);
    let known = Tree { tree: known.tree, blobs: known.blobs };
    let options = BuildOptions { dictionary: Some(Arc::new(Dictionary::new(known))), ..SMALL };
    let (layer, blob) = layer(&archive(), &options);
    image(vec![layer], vec![blob, known_blob])
}

/// A layer's own bootstrap, where whiteouts are files and the blob has no id.
fn own_bootstrap() -> Image {
    let (layer, blob) = layer(&upper_archive(), &SMALL);
    let mut bootstrap = Vec::new();
    bootstrap::write_layer(&layer, &WriteOptions::default(), &mut bootstrap).expect("seeds can be written");
    Image { bootstrap, blobs: vec![blob] }
}
