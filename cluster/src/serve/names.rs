//! Registries as the first part of names of repositories.

use std::collections::BTreeMap;

/// What each of `hosts` is called, no two the same.
pub(super) fn of_hosts<'a>(hosts: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, String> {
    hosts.into_iter().map(|host| (host.to_owned(), of_host(host))).collect()
}

/// The host itself, with `_` for the colon before its port. What names of repositories may not have, such as the brackets of
/// an IPv6 address, is written as its number, all of it behind two of `_`, which no host has.
fn of_host(host: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    match host.rsplit_once(':') {
        None if host.chars().all(plain) => host.to_owned(),
        Some((name, port)) if name.chars().chain(port.chars()).all(plain) => format!("{name}_{port}"),
        _ => format!("host__{}", host.bytes().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_has_a_name_of_its_own_that_repositories_may_have() {
        let hosts =
            ["docker.io", "a.example:5000", "a-b.example", "[fd00::1]:5000", "A.example", "10.0.0.1:80"];
        let names = of_hosts(hosts);
        assert_eq!(names["docker.io"], "docker.io");
        assert_eq!(names["a.example:5000"], "a.example_5000");
        for name in names.values() {
            assert!(registry::Repository::parse(&format!("x.example/{name}/app")).is_ok(), "{name}");
        }
        let different: std::collections::BTreeSet<_> = names.values().collect();
        assert_eq!(different.len(), hosts.len());
    }
}
