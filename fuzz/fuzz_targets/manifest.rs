//! Manifests of any text.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| cluster::fuzzing::manifest(text));
