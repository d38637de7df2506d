use rafs::blob::Blob;
use rafs::tree::{Image, Tree};

use super::*;
use crate::layer::{ChunkDict, DictionaryBlobs};

fn set(pairs: &[(&str, &str)]) -> Result<Options, OptionsError> {
    let mut options = Options::default();
    for (word, value) in pairs {
        assert!(options.set(Used::Convert, word, value)?, "{word}");
    }
    options.check()?;
    Ok(options)
}

fn fingerprint(options: Options) -> String {
    Recipe::new(options, None, Vec::new(), 0).unwrap().fingerprint().to_string()
}

#[test]
fn what_help_calls_the_default_is_the_default() {
    for word in WORDS {
        let mut options = Options::default();
        if let Some(default) = word.default {
            word.set(&mut options, default).unwrap();
            assert_eq!(fingerprint(options), fingerprint(Options::default()), "{}", word.name);
        }
        if let Takes::OneOf(values) = word.takes {
            assert!(
                values.iter().all(|value| word.set(&mut Options::default(), value).is_ok()),
                "{}",
                word.name
            );
        }
    }
}

#[test]
fn a_value_that_means_nothing_is_named_with_what_was_expected() {
    for (word, value, expected) in [
        ("compressor", "gzip", "expected zstd, lz4 or none"),
        ("compression-level", "99", "expected a level of zstd: -131072 to 22"),
        ("digester", "md5", "expected blake3 or sha256"),
        ("chunk-size", "5K", "expected a power of two from 4K to 16M"),
        ("batch-size", "x", "expected a power of two from 4K to the chunk size"),
        ("inline-chunk-info", "maybe", "expected true or false"),
        ("platform", "linux", "platform"),
        ("prefetch", "/a,/[", "unclosed"),
    ] {
        let error = set(&[(word, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{word}={value:?}: ")) && error.contains(expected), "{error}");
    }
}

#[test]
fn values_that_do_not_go_together_say_so_whatever_their_order() {
    for pairs in [
        [("compressor", "lz4"), ("compression-level", "3")],
        [("batch-size", "2M"), ("chunk-size", "1M")],
        [("compressor", "none"), ("batch-size", "64K")],
        [("batch-size", "64K"), ("chunk-size", "16M")],
    ] {
        let errors = [pairs, [pairs[1], pairs[0]]].map(|pairs| set(&pairs).unwrap_err());
        assert!(errors[0] == errors[1] && matches!(errors[0], OptionsError::Together(_)), "{errors:?}");
    }
}

#[test]
fn a_word_that_a_place_does_not_have_is_none_of_it() {
    let mut options = Options::default();
    assert!(!options.set(Used::Build, "platform", "linux/amd64").unwrap());
    assert!(!options.set(Used::Merge, "compressor", "lz4").unwrap());
    assert!(!options.set(Used::Convert, "compresor", "lz4").unwrap());
    assert_eq!(options, Options::default());
}

#[test]
fn lists_add_up() {
    let options =
        set(&[("prefetch", "/a,/b"), ("prefetch", "/c"), ("platform", "linux/amd64,linux/arm64")]).unwrap();
    assert_eq!((options.prefetch.len(), options.platforms.len()), (3, 2));
}

/// Pinned: a fingerprint is stored and compared later.
#[test]
fn a_fingerprint_names_what_decides_how_a_layer_is_converted_and_nothing_else() {
    let default = fingerprint(Options::default());
    assert_eq!(default, "1-5ddbcf062267dbd33cc594d0cb283deb");
    for same in [
        [("compression-level", "3"), ("prefetch", "/a")],
        [("inline-chunk-info", "true"), ("also-oci", "true")],
        [("platform", "linux/arm64"), ("compressor", "zstd")],
    ] {
        assert_eq!(fingerprint(set(&same).unwrap()), default, "{same:?}");
    }
    let mut all = vec![default];
    for other in [
        ("compression-level", "4"),
        ("compressor", "lz4"),
        ("compressor", "none"),
        ("chunk-size", "64K"),
        ("batch-size", "64K"),
        ("digester", "sha256"),
    ] {
        all.push(fingerprint(set(&[other]).unwrap()));
    }
    for id in [1, 2] {
        let dictionary = ChunkDict::new(dictionary_of(id), DictionaryBlobs::Unknown);
        let recipe = Recipe::new(Options::default(), Some(dictionary), Vec::new(), 0).unwrap();
        all.push(recipe.fingerprint().to_string());
    }
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "{all:?}");
}

/// An image that has one blob, without chunks, of this id.
fn dictionary_of(id: u8) -> Image {
    let build = BuildOptions::default();
    let blob = Blob {
        id: Some(rafs::digest::Digest([id; 32])),
        ..Blob::coding(build.chunk_size, build.compressor, build.digester)
    };
    Image { tree: Tree::new(), blobs: vec![blob] }
}
