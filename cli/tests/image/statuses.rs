//! How commands end.

use std::fs;

use serde_json::Value;

use crate::lab::{Lab, expect, only_file, stderr, stdout};

#[test]
fn a_configuration_that_is_missing_or_broken_is_no_damage() {
    let lab = Lab::new();
    lab.convert("files:out");
    fs::write(lab.path("broken.toml"), "[registry\n").unwrap();
    for config in ["absent.toml", "broken.toml"] {
        for command in ["check", "inspect"] {
            let refused = expect(2, lab.image(&[command, "files:out"]).args(["--config", config]));
            assert!(stderr(&refused).contains(config), "{refused:?}");
        }
    }
    expect(2, &mut lab.image(&["check"]));
}

#[test]
fn a_check_says_sound_damaged_or_unknown() {
    let lab = Lab::new();
    lab.convert("files:out");
    let sound = stdout(&expect(0, &mut lab.image(&["check", "files:out"])));
    // 300,000 bytes in chunks of 64 KiB, and a small file.
    assert!(sound.contains("5 inodes, 6 chunks, 300020 bytes of content checked: sound"), "{sound}");
    let same = expect(0, &mut lab.image(&["check", "files:out", "--source", "directory:root", "--json"]));
    let same: Value = serde_json::from_slice(&same.stdout).unwrap();
    assert_eq!(
        (&same["verdict"], &same["compared"], &same["chunks"]),
        (&"sound".into(), &true.into(), &6.into())
    );

    let blob = only_file(&lab.path("out/blobs"));
    let mut bytes = fs::read(&blob).unwrap();
    bytes[5] ^= 0xff;
    fs::write(&blob, &bytes).unwrap();
    let damaged = stdout(&expect(1, &mut lab.image(&["check", "files:out"])));
    let id = blob.file_name().unwrap().to_str().unwrap();
    assert!(damaged.contains(&format!("blob {id}, chunk        0: ")), "{damaged}");
    assert!(!damaged.contains(['{', '}']), "Rust's own notation: {damaged}");
    let damaged = expect(1, &mut lab.image(&["check", "files:out", "--json"]));
    let damaged: Value = serde_json::from_slice(&damaged.stdout).unwrap();
    assert_eq!(damaged["verdict"], "damaged");
    assert!(damaged["findings"][0]["subject"].as_str().unwrap().contains(id), "{damaged}");

    // Nobody answers there.
    let unknown = expect(2, &mut lab.image(&["check", "localhost:1/app:v1", "--json"]));
    let unknown: Value = serde_json::from_slice(&unknown.stdout).unwrap();
    assert_eq!((&unknown["verdict"], &unknown["findings"]), (&"unknown".into(), &Value::Array(Vec::new())));
    assert_eq!(unknown["unknown"][0]["subject"], "localhost:1/app:v1");

    // What cannot be looked at hides no finding: the bootstrap is damaged, and nobody said where its blobs are.
    let mut bootstrap = fs::read(lab.path("out/image.boot")).unwrap();
    let at = bootstrap.windows(5).position(|name| name == b"large").unwrap();
    bootstrap[at] = b'/';
    fs::write(lab.path("bad.boot"), &bootstrap).unwrap();
    let both = expect(1, &mut lab.image(&["check", "bad.boot"]));
    assert!(stdout(&both).contains("/: "), "{both:?}");
}

#[test]
fn a_difference_is_told_from_trouble() {
    let lab = Lab::new();
    lab.convert("files:a");
    expect(0, &mut lab.image(&["diff", "files:a", "files:a"]));
    fs::write(lab.path("root/large"), "small").unwrap();
    lab.convert("files:b");
    let differ = expect(1, &mut lab.image(&["diff", "files:a", "files:b", "--json"]));
    let report: Value = serde_json::from_slice(&differ.stdout).unwrap();
    assert_eq!(report["changes"][0]["path"], "/large");
    // Which of the two is broken is said.
    fs::create_dir(lab.path("c")).unwrap();
    fs::write(lab.path("c/image.boot"), "no bootstrap").unwrap();
    for (a, b) in [("files:a", "files:c"), ("files:c", "files:a")] {
        let refused = expect(2, &mut lab.image(&["diff", a, b]));
        assert!(stderr(&refused).contains("files:c") && !stderr(&refused).contains("files:a"), "{refused:?}");
    }
}

#[test]
fn a_merge_is_told_in_json_too() {
    let lab = Lab::new();
    lab.convert("files:out");
    let blob = only_file(&lab.path("out/blobs"));
    let merged = expect(0, lab.image(&["merge", "--json", "--output", "merged.boot"]).arg(&blob));
    let merged: Value = serde_json::from_slice(&merged.stdout).unwrap();
    assert_eq!(merged["blobs"][0], blob.file_name().unwrap().to_str().unwrap());
    assert_eq!(merged["bootstrap_bytes"], fs::metadata(lab.path("merged.boot")).unwrap().len());
}

/// Before anything is fetched: the image is not even looked for.
#[test]
fn a_destination_that_cannot_be_is_refused_at_once() {
    let lab = Lab::new();
    let refused = expect(2, &mut lab.image(&["unpack", "localhost:1/app:v1", "root"]));
    assert!(stderr(&refused).contains("root is a directory: add --directory"), "{refused:?}");
    let refused = expect(2, &mut lab.image(&["unpack", "localhost:1/app:v1", "root", "--directory"]));
    assert!(stderr(&refused).contains("root is not empty"), "{refused:?}");
}

#[test]
fn help_says_how_commands_end() {
    let lab = Lab::new();
    for arguments in [&["check", "--help"][..], &["diff", "--help"]] {
        let help = stdout(&expect(0, &mut lab.image(arguments)));
        assert!(help.contains("Exit status:") && help.contains("damaged"), "{help}");
    }
}
