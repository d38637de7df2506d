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
use libtest_mimic::{Arguments, Completion, Failed, Trial};

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
    let trials = tests.into_iter().flatten().map(|(name, test)| trial(&name, test, lab.clone())).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(lab);
    conclusion.exit_code()
}

fn trial(name: &str, test: Test, lab: Arc<Lab>) -> Trial {
    Trial::ignorable_test(name, move || match lab.missing() {
        Some(missing) if lab::in_ci() => Err(Failed::from(format!("needs {missing}"))),
        Some(missing) => {
            println!("skipped: needs {missing}");
            Ok(Completion::Ignored { reason: Some(format!("needs {missing}")) })
        }
        None => match test(&lab) {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        },
    })
}
