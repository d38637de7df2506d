//! Whatever `convert` writes can be checked, inspected, compared, unpacked and mounted.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use test_support::{Need, needs};

use crate::lab::{Lab, expect, stdout};

const FORMS: [&str; 4] =
    ["oci:layout:v1", "oci-archive:archive.tar:v1", "oci-archive:other.tar", "files:out"];

/// What is expected to happen at once may take this long.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn every_form_that_convert_writes_is_read_by_all_commands() {
    let lab = Lab::new();
    for (number, form) in FORMS.into_iter().enumerate() {
        lab.convert(form);
        let checked = stdout(&expect(0, &mut lab.image(&["check", form, "--source", "directory:root"])));
        assert!(
            checked.contains("6 chunks") && checked.contains("sound, and the same as the source"),
            "{checked}"
        );
        let inspected = stdout(&expect(0, &mut lab.image(&["inspect", form, "--file", "/large"])));
        assert_eq!(inspected.lines().count(), 6, "{inspected}");
        expect(0, &mut lab.image(&["diff", form, FORMS[0]]));
        let target = format!("unpacked-{number}");
        expect(0, &mut lab.image(&["unpack", "--directory", form, &target]));
        same(&lab.path("root"), &lab.path(&target));
    }
    // A form that an image cannot be in is named as the user named it.
    let refused = expect(2, &mut lab.image(&["check", "oci-archive:archive.tar:absent"]));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("archive.tar") && !said.contains("/tmp/"), "{said}");
}

fn same(a: &Path, b: &Path) {
    for file in ["etc/hosts", "large"] {
        assert!(fs::read(a.join(file)).unwrap() == fs::read(b.join(file)).unwrap(), "{file}");
    }
    assert_eq!(fs::read_link(a.join("link")).unwrap(), fs::read_link(b.join("link")).unwrap());
}

#[test]
fn every_form_that_convert_writes_is_mounted() {
    needs!(Need::Fuse);
    let lab = Lab::new();
    for form in FORMS {
        lab.convert(form);
        let mountpoint = lab.path("mnt");
        let mut mount = lab.image(&["mount", form, "mnt"]).stdout(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + SOON;
        while !mountpoint.join("large").exists()
            && mount.try_wait().unwrap().is_none()
            && Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        let read = fs::read(mountpoint.join("large"));
        kill(Pid::from_raw(mount.id() as i32), Signal::SIGINT).unwrap();
        let status = mount.wait().unwrap();
        assert!(
            read.unwrap() == fs::read(lab.path("root/large")).unwrap() && status.success(),
            "{form}: {status}"
        );
    }
}
