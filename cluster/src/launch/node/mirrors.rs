//! `certs.d`: where containerd asks for images of a host.

use std::path::Path;

use super::ledger::Ledger;
use crate::launch::error::LaunchError;
use crate::launch::task::Mirror;

const CERTS_DIR: &str = "/etc/containerd/certs.d";

/// Puts us before what each host's file says.
pub(super) fn put(ledger: &mut Ledger, mirrors: &[Mirror]) -> Result<(), LaunchError> {
    for mirror in mirrors {
        // containerd writes a port's colon as it is.
        let file = Path::new(CERTS_DIR).join(&mirror.host).join("hosts.toml");
        let before = ledger.before(&file)?.unwrap_or_default();
        ledger.file(&file, &merged(mirror, &before))?;
    }
    Ok(())
}

/// The file with our table before those that are there, and behind what stands before the first table.
fn merged(mirror: &Mirror, before: &str) -> String {
    let tables = before.lines().position(|line| line.trim_start().starts_with('['));
    let lines: Vec<_> = before.lines().collect();
    let (head, tables) = lines.split_at(tables.unwrap_or(lines.len()));
    let ours = [
        format!("[host.{:?}]", mirror.url),
        "  capabilities = [\"pull\", \"resolve\"]".to_owned(),
        "  override_path = true".to_owned(),
    ];
    let all = head.iter().map(ToString::to_string).chain(ours).chain(tables.iter().map(ToString::to_string));
    all.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_stays_behind_us() {
        let mirror =
            Mirror { host: "a.example".to_owned(), url: "http://127.0.0.1:1/v2/a.example".to_owned() };
        let ours = "[host.\"http://127.0.0.1:1/v2/a.example\"]\n  capabilities = [\"pull\", \"resolve\"]\n  override_path = true\n";
        assert_eq!(merged(&mirror, ""), ours);
        let theirs = "[host.\"https://b\"]\n  ca = \"/x\"\n";
        assert_eq!(
            merged(&mirror, &format!("server = \"https://a\"\n\n{theirs}")),
            format!("server = \"https://a\"\n\n{ours}{theirs}")
        );
    }
}
