//! A chart's archive of any bytes, as it is and gzipped; and a Chart.yaml of any text.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| cluster::fuzzing::chart(bytes));
