//! The words, and what their values mean.

use rafs::compress::zstd_levels;
use rafs::digest::DigestAlgorithm;
use rafs::layout::is_chunk_size;

use super::value::{boolean, parts, size};
use super::{Algorithm, Options, OptionsError, Pattern};
use crate::platform::InvalidPlatform;

/// Who has a word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Used {
    /// Outputs of builds, as a key.
    Build,
    /// `image convert`, as a flag.
    Convert,
    /// `image merge`, as a flag.
    Merge,
}

/// What stands behind a word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Takes {
    /// True or false; a flag alone is true.
    Switch,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// A value, called so in help.
    One(&'static str),
    /// Values, each called so in help, separated by commas; a flag may be repeated.
    Many(&'static str),
}

/// One choice.
#[derive(Debug)]
pub struct Word {
    /// The word.
    pub name: &'static str,
    /// What stands behind it.
    pub takes: Takes,
    /// What it does, in a line.
    pub help: &'static str,
    /// What is taken without it.
    pub default: Option<&'static str>,
    /// Who has it.
    pub used: &'static [Used],
    /// Takes a value, or says what was expected.
    parse: fn(&mut Options, &str) -> Result<(), String>,
}

impl Word {
    /// All words that `used` has.
    pub fn all(used: Used) -> impl Iterator<Item = &'static Self> {
        WORDS.iter().filter(move |word| word.used.contains(&used))
    }

    /// Takes its value.
    ///
    /// # Errors
    ///
    /// When the value means nothing.
    pub fn set(&'static self, options: &mut Options, value: &str) -> Result<(), OptionsError> {
        (self.parse)(options, value).map_err(|reason| OptionsError::Value {
            word: self.name,
            value: value.to_owned(),
            reason,
        })
    }
}

const EVERYWHERE: &[Used] = &[Used::Build, Used::Convert, Used::Merge];
const WHEN_BUILT: &[Used] = &[Used::Build, Used::Convert];

/// All words, in the order in which help lists them.
pub const WORDS: &[Word] = &[
    Word {
        name: "platform",
        takes: Takes::Many("OS/ARCH[/VARIANT]"),
        help: "Convert these images of an index [default: all]",
        default: None,
        used: &[Used::Convert],
        parse: |options, value| {
            for platform in parts(value) {
                options.platforms.push(platform.parse().map_err(|error: InvalidPlatform| error.to_string())?);
            }
            Ok(())
        },
    },
    Word {
        name: "also-oci",
        takes: Takes::Switch,
        help: "Keep the plain image next to the nydus image, in one index, so that clients without nydus run it too",
        default: None,
        used: WHEN_BUILT,
        parse: |options, value| boolean(value).map(|value| options.also_oci = value),
    },
    Word {
        name: "compressor",
        takes: Takes::OneOf(&["zstd", "lz4", "none"]),
        help: "How chunks are compressed",
        default: Some("zstd"),
        used: WHEN_BUILT,
        parse: |options, value| {
            options.compressor = match value {
                "zstd" => Algorithm::Zstd,
                "lz4" => Algorithm::Lz4,
                "none" => Algorithm::None,
                _ => return Err("expected zstd, lz4 or none".to_owned()),
            };
            Ok(())
        },
    },
    Word {
        name: "compression-level",
        takes: Takes::One("LEVEL"),
        help: "zstd's level",
        default: Some("3"),
        used: WHEN_BUILT,
        parse: |options, value| {
            let level = value.parse().ok().filter(|level| zstd_levels().contains(level));
            let expected =
                || format!("expected a level of zstd: {} to {}", zstd_levels().start(), zstd_levels().end());
            options.compression_level = Some(level.ok_or_else(expected)?);
            Ok(())
        },
    },
    Word {
        name: "digester",
        takes: Takes::OneOf(&["blake3", "sha256"]),
        help: "What chunk digests are made with",
        default: Some("blake3"),
        used: WHEN_BUILT,
        parse: |options, value| {
            options.digester = match value {
                "blake3" => DigestAlgorithm::Blake3,
                "sha256" => DigestAlgorithm::Sha256,
                _ => return Err("expected blake3 or sha256".to_owned()),
            };
            Ok(())
        },
    },
    Word {
        name: "chunk-size",
        takes: Takes::One("BYTES"),
        help: "Size of a chunk: a power of two from 4K to 16M",
        default: Some("1M"),
        used: WHEN_BUILT,
        parse: |options, value| {
            let expected = || {
                "expected a power of two from 4K to 16M, such as 1048576, 0x100000, 1024K or 1M".to_owned()
            };
            options.chunk_size = size(value).filter(|size| is_chunk_size(*size)).ok_or_else(expected)?;
            Ok(())
        },
    },
    Word {
        name: "batch-size",
        takes: Takes::One("BYTES"),
        help: "Compress files smaller than half of this together in batches of this size",
        default: None,
        used: WHEN_BUILT,
        parse: |options, value| {
            let expected = || "expected a power of two from 4K to the chunk size, such as 256K".to_owned();
            let size = size(value).filter(|size| is_chunk_size(*size)).ok_or_else(expected)?;
            options.batch_size = Some(size);
            Ok(())
        },
    },
    Word {
        name: "inline-chunk-info",
        takes: Takes::Switch,
        help: "Put the blobs' chunk information into the bootstrap layer, which saves a node a request for each",
        default: None,
        used: WHEN_BUILT,
        parse: |options, value| boolean(value).map(|value| options.inline_chunk_info = value),
    },
    Word {
        name: "prefetch",
        takes: Takes::Many("PATH"),
        help: "A file that nodes are to fetch first, a directory with all in it, or a glob (`/usr/lib/**/*.so`)",
        default: None,
        used: EVERYWHERE,
        parse: |options, value| {
            for part in parts(value) {
                options.prefetch.push(Pattern::parse(part)?);
            }
            Ok(())
        },
    },
    Word {
        name: "prefetch-list",
        takes: Takes::One("FILE"),
        help: "A file with such paths, one a line (`-`: standard input)",
        default: None,
        used: WHEN_BUILT,
        parse: |options, value| {
            options.prefetch_list = Some(named(value, "expected the name of a file")?);
            Ok(())
        },
    },
    Word {
        name: "flatten",
        takes: Takes::Switch,
        help: "Make one blob of all layers: what the final file system shows, without what is deleted or overwritten, the files \
               of --prefetch first",
        default: None,
        used: WHEN_BUILT,
        parse: |options, value| boolean(value).map(|value| options.flatten = value),
    },
    Word {
        name: "chunk-dict",
        takes: Takes::One("IMAGE"),
        help: "Do not store what this nydus image has: `[docker://]REF`, `oci:DIR[:IMAGE]`, `files:DIR`, or a bootstrap next to \
               its blobs/",
        default: None,
        used: WHEN_BUILT,
        parse: |options, value| {
            options.chunk_dict = Some(named(value, "expected an image")?);
            Ok(())
        },
    },
];

/// A name, which is not empty.
fn named(value: &str, expected: &str) -> Result<String, String> {
    if value.is_empty() { Err(expected.to_owned()) } else { Ok(value.to_owned()) }
}
