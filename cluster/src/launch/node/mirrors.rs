//! `certs.d`: where containerd asks for images of a host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Table;

use super::install;
use super::ledger::Ledger;
use crate::launch::error::LaunchError;
use crate::launch::task::Mirror;

/// Where containerd looks for it.
pub(super) const CERTS_DIR: &str = "/etc/containerd/certs.d";

/// The file in the folder `certs` that says where images of a host are asked for.
pub(super) fn file(certs: &Path, host: &str) -> PathBuf {
    // containerd writes a port's colon as it is.
    certs.join(host).join("hosts.toml")
}

/// Puts `mirrors` into the folder `certs`, before what each host's file says, those of one host in their order: the node's own, or else the
/// one in `tree`, of an image whose containerd is used. What earlier runs put there and neither this one nor that image has goes: it would be
/// asked first.
pub(super) fn put(
    ledger: &mut Ledger,
    certs: &Path,
    tree: Option<&Path>,
    mirrors: &[Mirror],
) -> Result<(), LaunchError> {
    let of_image = |file: &Path| {
        let of_image = tree.map(|tree| tree.join(file.strip_prefix("/").unwrap_or(file)));
        of_image.filter(|file| file.exists())
    };
    let mut of_files = BTreeMap::<_, Vec<&str>>::new();
    for mirror in mirrors {
        of_files.entry(file(certs, &mirror.host)).or_default().push(&mirror.url);
    }
    for file in ledger.below(certs) {
        if !of_files.contains_key(&file) && of_image(&file).is_none() {
            ledger.undo_at(&file)?;
        }
    }
    for (file, urls) in of_files {
        let before = match (ledger.before(&file)?, of_image(&file)) {
            (None, Some(of_image)) => install::read(&of_image)?,
            (before, _) => before.unwrap_or_default(),
        };
        let text = merged(&urls, &before)
            .map_err(|reason| LaunchError::wrong(file.display().to_string(), reason))?;
        ledger.file(&file, &text)?;
    }
    Ok(())
}

/// The file with our tables before those that are there, and behind what stands before the first table. A host that it has a table of
/// stays as it is.
fn merged(urls: &[&str], before: &str) -> Result<String, String> {
    let parse = |text: &str| toml::from_str::<Table>(text).map_err(|error| error.to_string());
    let theirs = parse(before)?;
    let is_theirs = |url: &str| theirs.get("host").is_some_and(|hosts| hosts.get(url).is_some());
    let lines: Vec<_> = before.lines().collect();
    // What stands before a line within a value does not parse.
    let is_table = |&number: &usize| {
        lines.get(number).is_some_and(|line| line.trim_start().starts_with('['))
            && lines.get(..number).is_some_and(|head| parse(&head.join("\n")).is_ok())
    };
    let first_table = (0..lines.len()).find(is_table).unwrap_or(lines.len());
    let (head, tables) = lines.split_at(first_table);
    let table = |url: &&str| {
        format!("[host.{url:?}]\n  capabilities = [\"pull\", \"resolve\"]\n  override_path = true")
    };
    let ours = urls.iter().filter(|url| !is_theirs(url)).map(table);
    let all = head.iter().map(ToString::to_string).chain(ours);
    let all = all.chain(tables.iter().map(ToString::to_string));
    let text: String = all.map(|line| line + "\n").collect();
    parse(&text).map(|_| text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn table(url: &str) -> String {
        format!("[host.{url:?}]\n  capabilities = [\"pull\", \"resolve\"]\n  override_path = true\n")
    }

    #[test]
    fn what_a_file_says_stays_behind_us() {
        let own = ["http://127.0.0.1:1/v2/a.example", "http://b:2/v2/a.example"];
        let ours = table(own[0]) + &table(own[1]);
        assert_eq!(merged(&own, "").as_ref(), Ok(&ours));
        let theirs = "[host.\"https://b\"]\n  ca = \"/x\"\n";
        assert_eq!(
            merged(&own, &format!("server = \"https://a\"\n\n{theirs}")),
            Ok(format!("server = \"https://a\"\n\n{ours}{theirs}"))
        );
        // A line within a value that looks like a table.
        let list = "client = [\n  [\"/c.crt\", \"/c.key\"],\n]\n";
        assert_eq!(merged(&own, &format!("{list}{theirs}")), Ok(format!("{list}{ours}{theirs}")));
        assert_eq!(merged(&own, list), Ok(format!("{list}{ours}")));
    }

    #[test]
    fn a_host_that_a_file_has_stays_as_it_is() {
        let theirs = "[host.'http://b/v2/a']\n  ca = \"/x\"\n";
        assert_eq!(merged(&["http://b/v2/a"], theirs).as_deref(), Ok(theirs));
        let merged = merged(&["http://c", "http://b/v2/a"], theirs).unwrap();
        assert_eq!(merged, table("http://c") + theirs);
    }

    #[test]
    fn a_file_that_cannot_have_a_table_more_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("certs");
        let file = file(&certs, "a.example");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        for wrong in ["server = \n", "host = { \"https://b\" = {} }\n"] {
            fs::write(&file, wrong).unwrap();
            let mirrors = [mirror("a.example", "http://own")];
            let error = put(&mut ledger, &certs, None, &mirrors).unwrap_err().to_string();
            assert!(error.starts_with(&file.display().to_string()), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), wrong);
        }
    }

    #[test]
    fn mirrors_of_an_earlier_run_go() {
        let dir = tempfile::tempdir().unwrap();
        let (certs, tree) = (dir.path().join("certs"), dir.path().join("tree"));
        let file = |host: &str| file(&certs, host);
        for host in ["theirs", "other"] {
            fs::create_dir_all(file(host).parent().unwrap()).unwrap();
            fs::write(file(host), "server = \"https://a\"\n").unwrap();
        }
        let run = |mirrors: &[Mirror]| {
            let mut ledger = Ledger::open(dir.path()).unwrap();
            put(&mut ledger, &certs, Some(&tree), mirrors).unwrap();
            ledger.changed()
        };
        let read = |host: &str| fs::read_to_string(file(host)).unwrap();
        run(&["theirs", "new", "of-image", "named"].map(|host| mirror(host, "http://gone")));
        // As the image's own is installed.
        let of_image = tree.join(file("of-image").strip_prefix("/").unwrap());
        fs::create_dir_all(of_image.parent().unwrap()).unwrap();
        fs::write(of_image, "server = \"https://i\"\n").unwrap();

        let now = [mirror("named", "http://own")];
        assert_eq!(run(&now), 3);
        assert_eq!(read("theirs"), "server = \"https://a\"\n");
        assert!(!file("new").parent().unwrap().exists());
        assert!(file("of-image").exists());
        assert_eq!(read("named"), table("http://own"));
        assert_eq!(read("other"), "server = \"https://a\"\n");
        assert_eq!(run(&now), 0);

        // What the image says stays behind mirrors.
        let now = ["named", "of-image"].map(|host| mirror(host, "http://own"));
        assert_eq!(run(&now), 1);
        assert_eq!(read("of-image"), format!("server = \"https://i\"\n{}", table("http://own")));
        assert_eq!(run(&now), 0);
    }

    fn mirror(host: &str, url: &str) -> Mirror {
        Mirror { host: host.to_owned(), url: url.to_owned() }
    }
}
