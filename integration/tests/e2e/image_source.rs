//! `image check --source`: an image is what it was made from, or the check names what is not.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::demo;
use rafs::bootstrap::WriteOptions;
use rafs::build::{BuildOptions, build_directory};

use crate::fixture::Fixture;
use crate::image_commands::{expect_exit, image};

/// The demonstration, against BuildKit's own exports of the same build, in every form.
pub(crate) fn plain_image(fixture: &Fixture) -> Result<()> {
    let demo = fixture.demo()?;
    let dir = fixture.subdir("source")?;
    let (oci, docker) = (dir.join("oci.tar"), dir.join("docker.tar"));
    let pushed = format!("{}/demo-plain:v1", fixture.registry()?.address());
    let buildctl = fixture.plain_buildctl()?;
    for output in [
        format!("type=oci,dest={}", oci.display()),
        format!("type=docker,name=demo:v1,dest={}", docker.display()),
        format!("type=image,name={pushed},push=true,registry.insecure=true"),
    ] {
        buildctl.build(&demo.context, &[&output])?;
    }
    for source in
        [format!("oci-archive:{}", oci.display()), format!("docker-archive:{}", docker.display()), pushed]
    {
        let checked = expect_exit(0, image("check", &demo.name)?.args(["--source", &source]))?;
        ensure!(checked.stdout.contains("the same as the source"), "{source}: {}", checked.stdout);
    }
    // The nydus image itself, in an OCI layout.
    let layout = format!("oci:{}:demo", dir.join("layout").display());
    integration::process::run(std::process::Command::new(integration::peers::system("skopeo")?).args([
        "copy",
        "--src-tls-verify=false",
        &format!("docker://{}", demo.name),
        &layout,
    ]))?;
    let source = format!("oci-archive:{}", oci.display());
    expect_exit(0, image("check", &layout)?.args(["--source", &source]))?;
    // Another image is another image.
    let other =
        expect_exit(1, image("check", &demo.name)?.args(["--metadata-only", "--source", fixture.pause()?]))?;
    ensure!(other.stdout.contains("which the source does not have"), "{}", other.stdout);
    Ok(())
}

type Change = fn(&Path) -> Result<()>;

/// One thing that is changed in the source, the path that must be named, and what must be said of it.
const CHANGES: &[(&str, &str, &str, Change)] = &[
    ("a byte", "/deep/er/file", "content from byte 2097152 on", |root| {
        let file = File::options().write(true).open(root.join("deep/er/file"))?;
        let time = file.metadata()?.modified()?;
        file.write_all_at(b"y", (2 << 20) + 17)?;
        Ok(file.set_modified(time)?)
    }),
    ("a mode", "/link-target", "its mode is 0644; expected 0600", |root| {
        Ok(fs::set_permissions(root.join("link-target"), fs::Permissions::from_mode(0o600))?)
    }),
    ("an xattr", "/link-target", "its xattr user.note is \"new\"; expected \"old\"", |root| {
        Ok(xattr::set(root.join("link-target"), "user.note", b"old")?)
    }),
    ("an owner", "/deep/er", "its owner is 1234:70000; expected 1:2", |root| {
        Ok(std::os::unix::fs::chown(root.join("deep/er"), Some(1), Some(2))?)
    }),
    ("a time", "/empty", "its mtime is", |root| {
        let file = File::options().write(true).open(root.join("empty"))?;
        Ok(file.set_modified(std::time::UNIX_EPOCH + Duration::new(7, 8))?)
    }),
    ("a hard link", "/second-name", "its hard link is", |root| {
        let time = fs::metadata(root)?.modified()?;
        fs::rename(root.join("second-name"), root.join("tmp"))?;
        fs::copy(root.join("tmp"), root.join("second-name"))?;
        fs::remove_file(root.join("tmp"))?;
        Ok(File::open(root)?.set_modified(time)?)
    }),
    ("a file less", "/fifo", "which the source does not have", |root| {
        Ok(fs::remove_file(root.join("fifo"))?)
    }),
    ("a file more", "/more", "missing; the source has", |root| Ok(fs::write(root.join("more"), "more")?)),
];

pub(crate) fn differences(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("source-differences")?;
    let tree = dir.join("tree");
    let make = |tree: &Path| -> Result<()> {
        demo::special_files(tree)?;
        fs::write(tree.join("link-target"), "target")?;
        fs::set_permissions(tree.join("link-target"), fs::Permissions::from_mode(0o644))?;
        Ok(xattr::set(tree.join("link-target"), "user.note", b"new")?)
    };
    make(&tree)?;
    let bootstrap = built(&tree, &dir)?;
    let check = |tree: &Path| {
        let mut command = image("check", bootstrap.to_str().context("a path in UTF-8")?)?;
        command.arg("--blobs").arg(&dir).arg("--source").arg(format!("directory:{}", tree.display()));
        anyhow::Ok(command)
    };
    expect_exit(0, &mut check(&tree)?)?;
    for (what, path, problem, change) in CHANGES {
        let changed = dir.join("changed");
        integration::process::run(std::process::Command::new("cp").arg("-a").arg(&tree).arg(&changed))?;
        change(&changed)?;
        let found = expect_exit(1, &mut check(&changed)?).with_context(|| format!("{what} differs"))?.stdout;
        let named =
            found.lines().any(|line| line.starts_with(&format!("{path}: ")) && line.contains(problem));
        ensure!(named, "{what}: expected {path}: …{problem}…, found {found}");
        fs::remove_dir_all(&changed)?;
    }
    for nowhere in ["127.0.0.1:1/absent:v1", "oci:/nowhere", "directory:/nowhere"] {
        let mut command = image("check", bootstrap.to_str().context("a path in UTF-8")?)?;
        expect_exit(2, command.arg("--blobs").arg(&dir).args(["--source", nowhere]))?;
    }
    Ok(())
}

/// Builds a directory into a bootstrap and a blob in `dir`.
fn built(tree: &Path, dir: &Path) -> Result<PathBuf> {
    let mut blob = Vec::new();
    let layer = build_directory(tree, &mut blob, &BuildOptions::default())?;
    let id = layer.blobs[0].id.context("a finished blob has an id")?;
    fs::write(dir.join(id.to_string()), blob)?;
    let bootstrap = dir.join("image.boot");
    let mut out = File::create(&bootstrap)?;
    rafs::bootstrap::write(&rafs::merge::merge(vec![layer])?, &WriteOptions::default(), &mut out)?;
    Ok(bootstrap)
}
