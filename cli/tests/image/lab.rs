//! Images in all forms, made by the real binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use test_support::text;

/// A directory for everything.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    /// With a source of a few files, `root`.
    pub(crate) fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        let root = lab.path("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
        fs::write(root.join("large"), text(1, 300_000)).unwrap();
        std::os::unix::fs::symlink("etc/hosts", root.join("link")).unwrap();
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `nydus-cluster …`, in the directory.
    pub(crate) fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nydus-cluster"));
        command.current_dir(self.dir.path()).args(arguments);
        command
    }

    /// `nydus-cluster image …`, in the directory.
    pub(crate) fn image(&self, arguments: &[&str]) -> Command {
        self.program(&[&["image"], arguments].concat())
    }

    /// Converts `root` to `destination`.
    pub(crate) fn convert(&self, destination: &str) {
        let arguments = ["convert", "--fresh", "directory:root", destination, "--chunk-size", "64K"];
        expect(0, &mut self.image(&arguments));
    }
}

/// Runs the command, and fails if it ends in another way.
pub(crate) fn expect(code: i32, command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {output:?}");
    output
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The only file in a folder.
pub(crate) fn only_file(folder: &Path) -> PathBuf {
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("one file in {}: {files:?}", folder.display()) };
    file.clone()
}
