//! How documents and sources are written: plain words, and one name for one thing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use test_support::hard_words;

use crate::documents::{documents, files_below, root};

/// What of a file is said to people.
type Said = fn(&str) -> String;

/// The text of a page without what is quoted, which are names, and without the places that links lead to.
fn prose(page: &str) -> String {
    let unlinked = |(number, part)| match number {
        0 => part,
        _ => str::split_once(part, ')').map_or("", |(_, prose)| prose),
    };
    page.split('`').step_by(2).flat_map(|prose| prose.split("](").enumerate().map(unlinked)).collect()
}

/// What a script or a file of settings says to people: comments, and what it prints.
fn said_by_script(text: &str) -> String {
    let printed = ["say \"", "fail \"", "echo \""];
    let is_said = |line: &&str| line.contains('#') || printed.iter().any(|word| line.contains(word));
    text.lines().filter(is_said).map(|line| prose(line) + "\n").collect()
}

/// The messages of a source file: what is in quotes and is more than a word.
fn messages_in(source: &str) -> String {
    let (source, _) = source.split_once("\n#[cfg(test)]\nmod ").unwrap_or((source, ""));
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let quoted = lines.flat_map(|line| line.split('"').skip(1).step_by(2));
    quoted.filter(|text| text.contains(' ')).map(|text| prose(text) + "\n").collect()
}

/// The sources of all crates but this one, without files of tests.
pub(crate) fn sources() -> Vec<PathBuf> {
    let crates = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path().join("src"));
    let crates = crates.filter(|folder| folder.is_dir() && !folder.starts_with(root().join("integration")));
    crates.flat_map(|folder| files_below(&folder, "rs")).filter(|file| !is_of_tests(file)).collect()
}

#[test]
fn there_is_one_word_for_a_limit() {
    let is_other = |line: &&str| {
        let constant = line.trim_start().split_once("const ");
        let (_, named) =
            constant.filter(|(shown, _)| shown.is_empty() || shown.starts_with("pub")).unwrap_or_default();
        named.split(':').next().is_some_and(|name| name.split('_').any(|word| word == "MAX"))
    };
    for file in sources() {
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().find(is_other), None, "in {}", file.display());
    }
}

#[test]
fn documents_messages_and_scripts_are_written_in_plain_words() {
    let scripts = std::fs::read_dir(root().join("scripts")).unwrap().map(|entry| entry.unwrap().path());
    let mut scripts: Vec<PathBuf> = scripts.filter(|path| path.is_file()).collect();
    scripts.extend(files_below(&root().join("scripts/lib"), "sh"));
    scripts.extend(files_below(&root().join("scripts/units"), "service"));
    scripts.push(root().join("docs/config.toml"));
    assert!(scripts.len() > 9, "{scripts:?}");
    let kinds: [(Vec<PathBuf>, Said); 3] = [
        (documents(), prose),
        (scripts, said_by_script),
        // The list of hard words has them.
        (
            sources().into_iter().filter(|file| !file.ends_with("test-support/src/words.rs")).collect(),
            messages_in,
        ),
    ];
    let mut found = Vec::new();
    for (files, said) in kinds {
        for file in files {
            let text = said(&std::fs::read_to_string(&file).unwrap());
            found.extend(hard_words(&text).into_iter().map(|word| format!("{}: {word}", file.display())));
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

/// The crates whose type names are all different: a name alone says which type is meant.
const CRATES: [&str; 12] = [
    "rafs",
    "registry",
    "image",
    "yaml",
    "service",
    "cluster",
    "exporter",
    "snapshotter",
    "fuse-daemon",
    "cli",
    "test-support",
    "integration",
];

/// The files of a crate, and of each program that it has in addition.
fn files_of_crates(name: &str) -> Vec<Vec<PathBuf>> {
    let (src, programs) = (root().join(name).join("src"), root().join(name).join("src/bin"));
    let mut crates = vec![files_below(&src, "rs")];
    crates[0].retain(|file| !file.starts_with(&programs));
    for program in std::fs::read_dir(&programs).into_iter().flatten() {
        let program = program.unwrap().path();
        crates.push(if program.is_dir() { files_below(&program, "rs") } else { vec![program] });
    }
    crates
}

/// Whether a file holds tests alone, whose types have names for themselves.
fn is_of_tests(file: &Path) -> bool {
    file.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
}

#[test]
fn no_type_name_stands_for_two_types_of_a_crate() {
    for files in CRATES.into_iter().flat_map(files_of_crates) {
        let mut seen = BTreeMap::<String, Vec<PathBuf>>::new();
        let names = files.clone();
        for file in files.into_iter().filter(|file| !is_of_tests(file)) {
            let text = std::fs::read_to_string(&file).unwrap();
            // Tests and the items of traits are written further in, and have names for themselves.
            for line in text.lines().filter(|line| !line.starts_with(' ')) {
                let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
                if let (Some("struct" | "enum" | "trait" | "type" | "union"), Some(word)) =
                    (words.next(), words.next())
                {
                    let end = word.find(|letter: char| !letter.is_alphanumeric()).unwrap_or(word.len());
                    seen.entry(word[..end].to_owned()).or_default().push(file.clone());
                }
            }
        }
        assert!(!seen.is_empty(), "no types were found in {names:?}");
        seen.retain(|_, files| files.len() > 1);
        assert!(seen.is_empty(), "{seen:#?}");
    }
}

/// The crates whose comments and names are in plain words, too.
const PLAIN_CRATES: [&str; 7] =
    ["rafs", "registry", "image", "yaml", "service", "test-support", "integration"];

/// The comments of a source file, without what is quoted.
fn comments_in(source: &str) -> String {
    let comment = |line: &str| {
        // `https://` is no comment.
        let (at, _) = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':'))?;
        Some(prose(&line[at + 2..]) + "\n")
    };
    source.lines().filter_map(comment).collect()
}

/// The words of the names that a source file gives to its items. The words of `nydus_beside_plain` are left out: it is a key in
/// configuration files of users, and what belongs to it is named after it.
fn names_in(source: &str) -> String {
    let kinds = ["fn", "struct", "enum", "trait", "type", "union", "const", "static", "mod"];
    let mut words = String::new();
    for line in source.lines() {
        let mut rest = line.split_whitespace().skip_while(|word| !kinds.contains(word));
        let Some(name) = rest.nth(1).filter(|_| !line.trim_start().starts_with("//")) else { continue };
        let name = name.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next();
        for letter in name.unwrap_or_default().chars() {
            // A word of `CamelCase` begins; those of `CONSTANTS` have an underscore between them.
            if letter.is_uppercase() && words.ends_with(char::is_lowercase) {
                words.push(' ');
            }
            words.push(if letter == '_' { ' ' } else { letter });
        }
        words.push('\n');
    }
    words.to_lowercase().replace("beside", "")
}

#[test]
fn comments_and_names_are_written_in_plain_words() {
    let folders = PLAIN_CRATES.into_iter().flat_map(|name| {
        ["src", "tests", "benches"].map(|folder| root().join(name).join(folder)).into_iter()
    });
    let files = folders.filter(|folder| folder.is_dir()).flat_map(|folder| files_below(&folder, "rs"));
    let mut found = Vec::new();
    // The list of hard words has them.
    for file in files.filter(|file| !file.ends_with("test-support/src/words.rs")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let said = comments_in(&text) + &names_in(&text);
        found.extend(hard_words(&said).into_iter().map(|word| format!("{}: {word}", file.display())));
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn comments_and_names_are_found() {
    let source = "/// Said of `it`.\npub fn told_again(url: &str) {}\n    const NO_MORE: &str = \"http://nobody\"; // Why.\nenum BeHad {}\n";
    assert_eq!(comments_in(source), "/ Said of .\n Why.\n");
    assert_eq!(names_in(source), "told again\nno more\nbe had\n");
}
