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

/// The help of a command, and of those that it has.
fn helps(command: &mut clap::Command) -> Vec<(String, String)> {
    let own = (command.get_name().to_owned(), command.render_long_help().to_string());
    std::iter::once(own).chain(command.get_subcommands_mut().flat_map(helps)).collect()
}

#[test]
fn help_is_written_in_plain_words() {
    let helps = helps(&mut Arguments::command());
    assert!(helps.len() > 30, "{} commands", helps.len());
    for (name, help) in helps {
        // Lines are wrapped.
        let said = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(test_support::hard_words(&said), Vec::<String>::new(), "{name}");
    }
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
