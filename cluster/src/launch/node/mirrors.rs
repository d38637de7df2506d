//! `certs.d`: where containerd asks for images of a host.

use std::collections::BTreeMap;
use std::path::Path;

use super::ledger::Ledger;
use crate::launch::error::LaunchError;
use crate::launch::task::Mirror;

/// Where containerd looks for it.
pub(super) const CERTS_DIR: &str = "/etc/containerd/certs.d";

/// Puts `mirrors` before what each host's file says, those of one host in their order.
pub(super) fn put(ledger: &mut Ledger, mirrors: &[Mirror]) -> Result<(), LaunchError> {
    let mut of_hosts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for mirror in mirrors {
        of_hosts.entry(&mirror.host).or_default().push(&mirror.url);
    }
    for (host, urls) in of_hosts {
        // containerd writes a port's colon as it is.
        let file = Path::new(CERTS_DIR).join(host).join("hosts.toml");
        let before = ledger.before(&file)?.unwrap_or_default();
        ledger.file(&file, &merged(&urls, &before))?;
    }
    Ok(())
}

/// The file with our tables before those that are there, and behind what stands before the first table.
fn merged(urls: &[&str], before: &str) -> String {
    let tables = before.lines().position(|line| line.trim_start().starts_with('['));
    let lines: Vec<_> = before.lines().collect();
    let (head, tables) = lines.split_at(tables.unwrap_or(lines.len()));
    let table = |url: &&str| {
        format!("[host.{url:?}]\n  capabilities = [\"pull\", \"resolve\"]\n  override_path = true")
    };
    let all = head.iter().map(ToString::to_string).chain(urls.iter().map(table));
    let all = all.chain(tables.iter().map(ToString::to_string));
    all.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_stays_behind_us() {
        let own = ["http://127.0.0.1:1/v2/a.example", "http://b:2/v2/a.example"];
        let table = |url: &str| {
            format!("[host.{url:?}]\n  capabilities = [\"pull\", \"resolve\"]\n  override_path = true\n")
        };
        let ours = table(own[0]) + &table(own[1]);
        assert_eq!(merged(&own, ""), ours);
        let theirs = "[host.\"https://b\"]\n  ca = \"/x\"\n";
        assert_eq!(
            merged(&own, &format!("server = \"https://a\"\n\n{theirs}")),
            format!("server = \"https://a\"\n\n{ours}{theirs}")
        );
    }
}
