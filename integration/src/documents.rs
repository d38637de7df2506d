//! What the documents say of the tree is held against the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The top of the checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace").to_owned()
}

/// `README.md` and all of `docs`.
fn documents() -> Vec<PathBuf> {
    let mut found = files_below(&root().join("docs"), "md");
    found.push(root().join("README.md"));
    found
}

/// The files of an extension in a folder and those in it.
fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found
}

/// What stands in backquotes and begins with a folder of the top level.
fn paths_named(text: &str) -> Vec<&str> {
    let folders: Vec<String> = std::fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| format!("{}/", entry.file_name().display()))
        .collect();
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|quoted| folders.iter().any(|folder| quoted.starts_with(folder.as_str())))
        .collect()
}

#[test]
fn every_path_that_the_architecture_names_exists() {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let named = paths_named(&text);
    assert!(named.len() > 40, "few paths were found in the page: {named:?}");
    let missing: Vec<&str> = named.into_iter().filter(|path| !root().join(path).exists()).collect();
    assert_eq!(missing, Vec::<&str>::new(), "docs/architecture.md names what is not there");
}

#[test]
fn every_crate_is_in_the_table_of_the_architecture() {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, members) = manifest.split_once("members = [").unwrap();
    let (members, _) = members.split_once(']').unwrap();
    let missing: Vec<&str> = members
        .split(',')
        .map(|member| member.trim().trim_matches('"'))
        .filter(|member| !text.contains(&format!("| `{member}/` |")))
        .collect();
    assert_eq!(missing, Vec::<&str>::new(), "docs/architecture.md does not say what these crates are");
}

/// The crates that a line of the table of the architecture, or a manifest, names.
fn crates_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_lowercase() && letter != '-');
    words.filter(|word| root().join(word).join("Cargo.toml").is_file()).collect()
}

#[test]
fn crates_depend_on_what_the_architecture_says() {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let rows = text.lines().filter_map(|line| {
        let [name, _, on] = line.trim_matches('|').split(" | ").collect::<Vec<_>>()[..] else { return None };
        Some((name.trim().trim_matches('`').strip_suffix('/')?, on.trim_end_matches(" |").trim()))
    });
    let mut seen = 0;
    for (name, on) in rows.filter(|(_, on)| *on != "all") {
        let manifest = std::fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let (_, dependencies) = manifest.split_once("\n[dependencies]\n").unwrap();
        let (dependencies, _) = dependencies.split_once("\n[").unwrap();
        let dependencies: String = dependencies
            .lines()
            .filter_map(|line| line.split_once(".workspace"))
            .fold(String::new(), |all, (name, _)| all + name + " ");
        assert_eq!(crates_in(on), crates_in(&dependencies), "{name}");
        seen += 1;
    }
    assert!(seen > 8, "{seen} crates were found in the table");
}

/// Words that readers whose first language is not English stumble over, and what is said instead.
const HARD_WORDS: [(&str, &str); 6] = [
    ("beside", "next to"),
    ("beneath", "below"),
    ("anew", "again"),
    ("be had", "be there, be read, be fetched"),
    ("its kin", "and the like"),
    ("in vain", "without"),
];

#[test]
fn documents_are_written_in_plain_words() {
    let mut found = Vec::new();
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap().to_lowercase();
        // What is quoted are names; where links lead, too.
        let prose: String = text
            .split('`')
            .step_by(2)
            .flat_map(|prose| prose.split("](").enumerate())
            .map(
                |(number, part)| {
                    if number == 0 { part } else { part.split_once(')').map_or("", |(_, prose)| prose) }
                },
            )
            .collect();
        for (word, instead) in HARD_WORDS {
            if prose.split(word).skip(1).any(|rest| !rest.starts_with(char::is_alphanumeric)) {
                found.push(format!("{}: {word:?}; write {instead:?}", document.display()));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

/// The crates whose type names are all different: a name alone says which type is meant.
const WITHOUT_NAMESAKES: [&str; 9] =
    ["rafs", "registry", "image", "yaml", "service", "exporter", "snapshotter", "cli", "test-support"];

/// Whether a file holds tests alone, whose types have names for themselves.
fn is_of_tests(file: &Path) -> bool {
    file.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
}

#[test]
fn no_type_name_stands_for_two_types_of_a_crate() {
    for name in WITHOUT_NAMESAKES {
        let mut seen = BTreeMap::<String, Vec<PathBuf>>::new();
        let files = files_below(&root().join(name).join("src"), "rs");
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
        assert!(!seen.is_empty(), "no types were found in {name}");
        seen.retain(|_, files| files.len() > 1);
        assert!(seen.is_empty(), "{seen:#?}");
    }
}

/// What stands in backquotes in the first two columns of a page's tables.
fn messages_of(page: &str) -> Vec<&str> {
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let cells = rows.flat_map(|row| row.split(" | ").take(2));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).filter(|quoted| quoted.contains(' ')).collect()
}

#[test]
fn messages_that_the_troubleshooting_quotes_are_the_programs() {
    let page = std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let messages = messages_of(&page);
    assert!(messages.len() > 20, "few messages were found in the page: {messages:?}");
    let crates = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path().join("src"));
    let sources: String = crates
        .filter(|folder| folder.is_dir() && !folder.starts_with(root().join("integration")))
        .flat_map(|folder| files_below(&folder, "rs"))
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    let is_there = |message: &&str| message.split('…').all(|part| sources.contains(part.trim()));
    let gone: Vec<&str> = messages.into_iter().filter(|message| !is_there(message)).collect();
    assert_eq!(gone, Vec::<&str>::new(), "docs/troubleshooting.md quotes what nothing says");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        let folder = document.parent().unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !link.contains(':') && !folder.join(link).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
}

#[test]
fn scripts_explain_themselves_before_they_do_anything() {
    for name in ["bench", "deps", "quickstart", "soak", "test"] {
        let script = root().join("scripts").join(name);
        let output = std::process::Command::new(&script).args(["stop", "--help"]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {:?}", output.stderr);
        assert!(said.contains(&format!("usage: scripts/{name}")), "{name}: {said}");
    }
}
