//! Tests that not every machine can run, and that must not look as if they had.
//!
//! With `CI=true`, which `scripts/test` sets, what cannot run is a failure. Otherwise the test passes with a line
//! `skipped: needs …` that the test runner does not hide.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What a test needs of the machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need<'a> {
    /// To be root.
    Root,
    /// To be root and have `/dev/fuse`: then FUSE file systems can be mounted.
    Fuse,
    /// A program in the `PATH`.
    Program(&'a str),
    /// Anything else, and whether it is there.
    Other(&'a str, bool),
}

impl Need<'_> {
    fn is_met(self) -> bool {
        let is_root = || nix::unistd::geteuid().is_root();
        match self {
            Self::Root => is_root(),
            Self::Fuse => is_root() && Path::new("/dev/fuse").exists(),
            Self::Program(name) => std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file())),
            Self::Other(_, is_met) => is_met,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Root => "root".to_owned(),
            Self::Fuse => "root and /dev/fuse".to_owned(),
            Self::Program(name) | Self::Other(name, _) => name.to_owned(),
        }
    }
}

/// Whether a test can run that has these needs. If not it says so; with `CI=true` it fails.
pub fn has(needs: &[Need<'_>]) -> bool {
    let missing: Vec<String> = needs.iter().filter(|need| !need.is_met()).map(|need| need.name()).collect();
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    assert!(!is_ci(), "needs {missing}, and CI=true allows no test to be skipped");
    let thread = std::thread::current();
    // Not by a macro, whose text the test runner shows of tests that fail alone.
    let shown =
        writeln!(std::io::stderr(), "skipped: needs {missing}: {}", thread.name().unwrap_or("a test"));
    shown.unwrap();
    false
}

/// Whether what cannot run is a failure.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// The helm that `scripts/deps` built, or that of the system. Without one the test says what it needs; in CI it fails.
pub fn helm() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("NYDUS_CLUSTER_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("nydus-cluster")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/nydus-cluster")));
    let built = cache.map(|cache| cache.join("peers/helm/bin/helm"));
    let of_system = std::env::var_os("PATH").unwrap_or_default();
    let of_system = std::env::split_paths(&of_system).map(|folder| folder.join("helm")).collect::<Vec<_>>();
    let found = built.into_iter().chain(of_system).find(|path| path.is_file());
    has(&[Need::Other("helm (run scripts/deps helm)", found.is_some())]);
    found
}

/// Ends a test that this machine cannot run; see [`has`].
#[macro_export]
macro_rules! needs {
    ($($need:expr),+ $(,)?) => {
        if !$crate::has(&[$($need),+]) {
            return;
        }
    };
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Run by the tests below alone, in processes of their own.
    #[test]
    #[ignore = "has a need that nothing meets"]
    fn never_runs() {
        crate::needs!(Need::Program("sh"), Need::Other("a miracle", false));
        panic!("it ran");
    }

    fn run(ci: &str) -> (bool, String) {
        let name = "needs::tests::never_runs";
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--ignored", "--exact", name]).env("CI", ci).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    #[test]
    fn what_cannot_run_says_so_although_it_passes() {
        let (passed, said) = run("false");
        assert!(passed && said.contains("skipped: needs a miracle: needs::tests::never_runs"), "{said}");
    }

    #[test]
    fn what_cannot_run_fails_in_ci() {
        let (passed, said) = run("true");
        assert!(!passed && said.contains("needs a miracle") && !said.contains("it ran"), "{said}");
    }

    #[test]
    fn programs_are_looked_for_in_the_path() {
        assert!(Need::Program("sh").is_met() && !Need::Program("no-such-program").is_met());
        assert!(Need::Fuse.is_met() <= Need::Root.is_met());
    }
}
