//! Lists of images that people wrote: a reference a line.
//!
//! | file | line |
//! |---|---|
//! | `imageList`, `manifests/imageList` | `REF` |
//! | `images/shim/**` | `REF`, `docker://REF`, `containers-storage:REF`, `docker-daemon:REF` |
//! | `images/skopeo/tar.txt` | `docker-archive:FILE@REF`, `oci-archive:FILE@REF` (also `:` before `REF`, as skopeo has it) |
//!
//! Empty lines and what follows `#` are skipped, quotes around a line are dropped.

use super::ask::{Archive, ArchiveKind, Origin, Request, Requests, Way};

/// Where the archives that `tar.txt` names lie.
const ARCHIVES: &str = "images/skopeo";

/// Kinds of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum List {
    /// References alone.
    References,
    /// References, some with where they were pulled from.
    Shim,
    /// Archives beside the list.
    Archives,
}

/// What the list `text` in `file` asks for.
pub(crate) fn read(list: List, file: &str, text: &str) -> Requests {
    let mut requests = Requests::default();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let Some(entry) = entry(line) else { continue };
        let (text, archive) = match list {
            List::References => (entry, None),
            List::Shim => (without_transport(entry), None),
            List::Archives => match archive(entry) {
                Ok((archive, reference)) => (reference, Some(archive)),
                Err(reason) => {
                    requests.problem(file, line_number, reason);
                    continue;
                }
            },
        };
        let origin = Origin { file: file.to_owned(), line: line_number, way: Way::List, values: None };
        requests.requests.push(Request { text: text.to_owned(), origin, archive });
    }
    requests
}

/// What a line says, without quotes and comments; `None` if it says nothing.
fn entry(line: &str) -> Option<&str> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    // A reference has no blanks: what comes after one can only be a comment.
    let line = line.find(" #").or_else(|| line.find("\t#")).map_or(line, |end| &line[..end]).trim();
    let line = line.trim_matches(['"', '\'']).trim();
    (!line.is_empty()).then_some(line)
}

/// The reference of an image that was pulled from somewhere else than its registry.
fn without_transport(entry: &str) -> &str {
    for transport in ["docker://", "containers-storage:", "docker-daemon:"] {
        if let Some(rest) = entry.strip_prefix(transport) {
            // containers-storage says in brackets which store it means.
            return match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                Some((_, reference)) => reference,
                None => rest,
            };
        }
    }
    entry
}

fn archive(entry: &str) -> Result<(Archive, &str), String> {
    let wrong = || format!("{entry:?}: expected docker-archive:FILE@REFERENCE or oci-archive:FILE@REFERENCE");
    let (transport, rest) = entry.split_once(':').ok_or_else(wrong)?;
    let kind = match transport {
        "docker-archive" => ArchiveKind::DockerArchive,
        "oci-archive" => ArchiveKind::OciArchive,
        _ => return Err(wrong()),
    };
    let end = rest.find(['@', ':']).ok_or_else(wrong)?;
    let (file, reference) = (&rest[..end], &rest[end + 1..]);
    if file.is_empty() || reference.is_empty() {
        return Err(wrong());
    }
    if file.starts_with('/') || file.split('/').any(|part| part == "..") {
        return Err(format!("{entry:?}: the archive has to be in {ARCHIVES}"));
    }
    Ok((Archive { kind, path: format!("{ARCHIVES}/{}", file.trim_start_matches("./")) }, reference))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(list: List, text: &str) -> Vec<(usize, String)> {
        let read = read(list, "file", text);
        assert_eq!(read.problems, []);
        read.requests.into_iter().map(|request| (request.origin.line, request.text)).collect()
    }

    #[test]
    fn blanks_comments_and_quotes_are_dropped() {
        let found =
            texts(List::References, "\n# all of it\r\n nginx:1 \r\n\"redis\"\n'a/b:1' # why\nc\t# d\n");
        let expected = [(3, "nginx:1"), (4, "redis"), (5, "a/b:1"), (6, "c")];
        assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn shims_say_where_an_image_was() {
        let text = "docker.io/a:1\ncontainers-storage:b:2\ncontainers-storage:[overlay@/x]c\ndocker-daemon:d:3\ndocker://e";
        let found: Vec<_> = texts(List::Shim, text).into_iter().map(|(_, text)| text).collect();
        assert_eq!(found, ["docker.io/a:1", "b:2", "c", "d:3", "e"]);
    }

    #[test]
    fn archives_lie_beside_their_list() {
        let text = "docker-archive:a.tar@repo:tag\noci-archive:./b.tar@host:5000/c@sha256:0\ndocker-archive:c.tar:d:1\n";
        let found = read(List::Archives, "tar.txt", text);
        let paths: Vec<_> =
            found.requests.iter().map(|r| (r.archive.clone().unwrap().path, r.text.as_str())).collect();
        let expected = [("a.tar", "repo:tag"), ("b.tar", "host:5000/c@sha256:0"), ("c.tar", "d:1")];
        assert_eq!(paths, expected.map(|(file, text)| (format!("images/skopeo/{file}"), text)));
    }

    #[test]
    fn what_names_no_archive_is_an_error_with_its_line() {
        for line in
            ["nginx:1", "docker-archive:a.tar", "docker-archive:@x", "dir:a@b", "oci-archive:../a.tar@b"]
        {
            let found = read(List::Archives, "images/skopeo/tar.txt", &format!("\n{line}\n"));
            assert_eq!(found.problems[0].line, Some(2), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([a-z:@/\\[\\]\"' #.é]|docker-archive:|\n|\t){0,60}") {
            for list in [List::References, List::Shim, List::Archives] {
                let _ = read(list, "file", &text).finish(None);
            }
        }
    }
}
