//! The image format against its peers: upstream's nydus-image and nydusd, the kernel's EROFS and overlayfs.
//!
//! Where something is missing, tests say `skipped: needs …`; with `CI=true` they fail instead.

mod lab;
mod large;
mod ours_upstream;
mod overlayfs;
mod upstream_ours;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use integration::suite::trial;
use libtest_mimic::Arguments;

use lab::Lab;

type Test = Box<dyn FnOnce(&Lab) -> Result<()> + Send>;

/// A test and its name.
fn named(name: &str, test: fn(&Lab) -> Result<()>) -> (String, Test) {
    (name.to_owned(), Box::new(test))
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let lab = match Lab::new() {
        Ok(lab) => Arc::new(lab),
        Err(error) => {
            eprintln!("the tests of the image format cannot start: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let tests = [ours_upstream::tests(), upstream_ours::tests(), overlayfs::tests(), large::tests()];
    let trials = tests.into_iter().flatten().map(|(name, test)| {
        let shared = lab.clone();
        trial(&name, lab.missing(), move || test(&shared))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(lab);
    conclusion.exit_code()
}
