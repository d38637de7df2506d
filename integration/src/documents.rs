//! What the documents say of the tree is held against the tree.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use test_support::{Need, needs};

use crate::conventions::sources;
use crate::peers::ContainerdVersion;
use crate::servers::{ContainerdOptions, CriSnapshotter, ProxySnapshotter, SNAPSHOTTER_NAME};

/// The top of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace").to_owned()
}

/// `README.md` and all of `docs`.
pub(crate) fn documents() -> Vec<PathBuf> {
    let mut found = files_below(&root().join("docs"), "md");
    found.push(root().join("README.md"));
    found
}

/// The files of an extension in a folder and those in it.
pub(crate) fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
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

/// The module of a crate that a file below its sources is of.
fn module_of<'a>(file: &'a Path, sources: &Path) -> &'a str {
    let first = file.strip_prefix(sources).unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs")
}

#[test]
fn a_module_of_the_exporter_uses_only_those_that_the_architecture_lists_behind_it() {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (_, list) =
        page.split_once("A module of the exporter uses only those behind it in this list: ").unwrap();
    let (list, _) = list.split_once('.').unwrap();
    let order: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
    let sources = root().join("exporter/src");
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for file in files_below(&sources, "rs").iter().filter(|file| !file.ends_with("src/lib.rs")) {
        let user = module_of(file, &sources);
        let text = std::fs::read_to_string(file).unwrap();
        let used = text.split("crate::").skip(1).map(|rest| {
            rest.split(|letter: char| !letter.is_ascii_lowercase() && !letter.is_ascii_digit())
                .next()
                .unwrap()
        });
        let place = |module: &str| order.iter().position(|listed| *listed == module);
        let backward = used.filter(|used| place(used) < place(user));
        wrong.extend(backward.map(|used| format!("{} uses {used:?}", file.display())));
        seen.insert(user.to_owned());
    }
    assert_eq!(
        seen,
        order.iter().map(|module| (*module).to_owned()).collect(),
        "docs/architecture.md lists others"
    );
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn structs_that_the_format_names_are_the_layouts() {
    let page = std::fs::read_to_string(root().join("docs/format.md")).unwrap();
    let layout = root().join("rafs/src/layout");
    let named = page.split('`').skip(1).step_by(2).filter_map(|quoted| quoted.split_once("::"));
    let (mut seen, mut unknown) = (0, Vec::new());
    for (module, name) in named {
        let mut files = files_below(&layout, "rs");
        files.retain(|file| {
            file.with_extension("") == layout.join(module) || file.starts_with(layout.join(module))
        });
        let declared = format!("pub struct {name} {{");
        let is_there = |file: &PathBuf| std::fs::read_to_string(file).unwrap().contains(&declared);
        if !files.iter().any(is_there) {
            unknown.push(format!("{module}::{name}"));
        }
        seen += 1;
    }
    assert!(seen > 10, "{seen} structs were found in the page");
    assert_eq!(unknown, Vec::<String>::new(), "docs/format.md names structs that do not exist");
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
    let sources: String = sources().into_iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
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

/// The blocks of a document that are TOML, as far as they are about `what`.
fn toml_blocks(text: &str, what: &str) -> Vec<toml::Table> {
    let blocks = text.split("```toml\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks
        .map(|(block, _)| block)
        .filter(|block| block.contains(what))
        .map(|block| block.parse().unwrap())
        .collect()
}

/// Asserts that all that is documented is in what is tested. Of a list, that is its first element: the others are for what else a
/// node may have.
fn assert_tested(documented: &toml::Value, tested: &toml::Value, place: &str) {
    match (documented, tested) {
        (toml::Value::Table(documented), toml::Value::Table(tested)) => {
            for (key, value) in documented {
                let place = format!("{place}.{key}");
                let tested =
                    tested.get(key).unwrap_or_else(|| panic!("{place} is documented and not tested"));
                assert_tested(value, tested, &place);
            }
        }
        (toml::Value::Array(documented), toml::Value::Array(tested)) => {
            assert_tested(&documented[0], &tested[0], place);
        }
        _ => assert_eq!(documented, tested, "{place}"),
    }
}

#[test]
fn containerd_is_configured_in_tests_as_the_documents_say() {
    needs!(Need::Program("runc"));
    let text = std::fs::read_to_string(root().join("docs/node.md")).unwrap();
    let documented = toml_blocks(&text, "[proxy_plugins.");
    let versions = [ContainerdVersion::V1_7, ContainerdVersion::V2_4];
    assert_eq!(documented.len(), versions.len(), "a block for each format");
    for (documented, version) in documented.into_iter().zip(versions) {
        let snapshotter = ProxySnapshotter {
            name: SNAPSHOTTER_NAME.to_owned(),
            socket: "/run/nydus-cluster/snapshotter.sock".into(),
        };
        let options = ContainerdOptions {
            version,
            sandbox_image: "pause".to_owned(),
            snapshotter: CriSnapshotter::Proxy(snapshotter),
            annotations: true,
            capabilities: Vec::new(),
        };
        let tested = options.configuration(Path::new("/c"), Path::new("/c/containerd.sock")).unwrap();
        assert_tested(
            &documented.into(),
            &tested.parse::<toml::Table>().unwrap().into(),
            &version.to_string(),
        );
    }
}
