//! The words of all JSON are those that docs/images.md explains.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use test_support::text;

use crate::lab::{Lab, only_file};

const DOCUMENTED: &str = include_str!("../../../docs/images.md");

/// What stands in backquotes in the table of words.
fn documented() -> BTreeSet<&'static str> {
    let (_, section) = DOCUMENTED.split_once("\n## JSON\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect()
}

/// All keys of a value, however deep.
fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                found.insert(key.clone());
                keys(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

/// The keys of everything that commands say of two images that differ, one of which was not made of what it is compared with.
fn said() -> BTreeSet<String> {
    let lab = Lab::new();
    let mut found = BTreeSet::new();
    let mut run = |arguments: &[&str]| {
        let output = lab.image(arguments).arg("--json").output().unwrap();
        let said = serde_json::from_slice(&output.stdout);
        keys(&said.unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}")), &mut found);
    };
    run(&["convert", "--fresh", "directory:root", "files:a", "--chunk-size", "64K"]);
    fs::write(lab.path("root/large"), text(3, 300_000)).unwrap();
    fs::remove_file(lab.path("root/link")).unwrap();
    run(&["convert", "--fresh", "directory:root", "oci:b:v1", "--chunk-size", "64K", "--batch-size", "16K"]);
    run(&["inspect", "oci:b:v1"]);
    run(&["inspect", "oci:b:v1", "--file", "/etc/hosts"]);
    run(&["check", "files:a", "--source", "directory:root"]);
    run(&["diff", "files:a", "oci:b:v1"]);
    let blob = only_file(&lab.path("a/blobs"));
    run(&["merge", blob.to_str().unwrap(), "--output", "merged.boot"]);
    found
}

#[test]
fn all_words_of_json_are_explained() {
    let (explained, said) = (documented(), said());
    assert!(explained.len() > 40, "{explained:?}");
    let is_explained = |key: &str| {
        let bare =
            ["used_", "new_", "reused_"].iter().find_map(|prefix| key.strip_prefix(prefix)).unwrap_or(key);
        bare.ends_with("_bytes") || bare.ends_with("_offset") || explained.contains(bare)
    };
    let unknown: Vec<&String> = said.iter().filter(|key| !is_explained(key)).collect();
    assert_eq!(unknown, Vec::<&String>::new(), "docs/images.md does not explain these");
}
