use super::*;

#[test]
fn the_command_line_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn a_compression_level_is_none_of_the_log() {
    let words =
        ["nydus-cluster", "--log-level", "warn", "image", "convert", "a", "b", "--compression-level", "-1"];
    let arguments = Arguments::try_parse_from(words).unwrap();
    let Command::Image(Image::Convert(convert)) = arguments.command else { panic!("another command") };
    assert_eq!(convert.options.0.compression_level, Some(-1));
}

/// What the documents show to be typed, in blocks for a shell: (document, command line).
fn documented() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let pages = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|page| page.extension().is_some_and(|extension| extension == "md"));
    let mut found = Vec::new();
    for page in pages.chain([root.join("README.md")]) {
        let text = std::fs::read_to_string(&page).unwrap().replace("\\\n", "");
        for block in text.split("```").skip(1).step_by(2) {
            let (language, lines) = block.split_once('\n').unwrap();
            let lines = lines.lines().filter(|_| ["sh", "console"].contains(&language));
            let ours = lines.filter_map(|line| line.split_once("nydus-cluster "));
            let ours = ours.filter(|(before, _)| before.is_empty() || before.ends_with("| "));
            found.extend(ours.map(|(_, arguments)| (page.clone(), arguments.to_owned())));
        }
    }
    found
}

#[test]
fn every_command_that_the_documents_show_is_understood() {
    let shown = documented();
    assert!(shown.len() > 40, "{shown:?}");
    for (page, line) in shown {
        let (command, _) = line.split_once(" #").unwrap_or((&line, ""));
        // What stands for a digest is no digest.
        let command = command.replace("BLOB", &"0".repeat(64)).replace(":…", &format!(":{}", "0".repeat(64)));
        let words = command.split_whitespace().map(|word| word.trim_matches(['"', '\'']));
        let parsed = Arguments::try_parse_from(["nydus-cluster"].into_iter().chain(words));
        assert!(parsed.is_ok(), "{}: {line}\n{}", page.display(), parsed.unwrap_err());
    }
}
