//! The demonstration's build: a Dockerfile over real root file systems, as a context for buildctl.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::peers::{self, Peers};
use crate::wait;

/// What the application's answer starts with: numpy ran.
pub const ANSWER_START: &str = "numpy ";
/// How long a single question to the application may take.
const ASK_DEADLINE: Duration = Duration::from_secs(10);

/// Makes the context of the three-layer demonstration image at `dir`: Debian, Python with numpy, the application.
pub fn three_layers(peers: &Peers, dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    for layer in ["base", "numpy"] {
        link_or_copy(&peers.demo_layer(layer)?, &dir.join(format!("{layer}.tar")))?;
    }
    for file in ["Dockerfile", "app.py"] {
        let source = peers::demo_sources().join(file);
        fs::copy(&source, dir.join(file)).with_context(|| format!("copying {}", source.display()))?;
    }
    Ok(dir.to_owned())
}

/// Makes a context at `dir` whose image is the single layer `tar`.
pub fn one_layer(tar: &Path, dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    link_or_copy(tar, &dir.join("layer.tar"))?;
    fs::write(dir.join("Dockerfile"), "FROM scratch\nADD layer.tar /\nCMD [\"/bin/sleep\", \"infinity\"]\n")?;
    Ok(dir.to_owned())
}

/// Makes a small context at `dir`: busybox, and each of `files` (name, size) in a layer of its own, filled with bytes
/// that do not compress, so that a chunk's place in its blob is its place in the file.
pub fn random_files(peers: &Peers, dir: &Path, files: &[(&str, u64)]) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    link_or_copy(&peers.pause_rootfs()?, &dir.join("busybox.tar"))?;
    let mut dockerfile = "FROM scratch\nADD busybox.tar /\n".to_owned();
    for (name, size) in files {
        random_file(&dir.join(name), *size)?;
        dockerfile += &format!("COPY {name} /{name}\n");
    }
    dockerfile += "CMD [\"/bin/sleep\", \"infinity\"]\n";
    fs::write(dir.join("Dockerfile"), dockerfile)?;
    Ok(dir.to_owned())
}

/// Makes a file of bytes that do not compress.
pub fn random_file(path: &Path, size: u64) -> Result<()> {
    let mut source = File::open("/dev/urandom")?.take(size);
    io::copy(&mut source, &mut File::create(path)?)?;
    Ok(())
}

/// Large tars are not copied where the file system can share them. (buildctl does not follow symbolic links.)
fn link_or_copy(source: &Path, target: &Path) -> Result<()> {
    match fs::remove_file(target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    if fs::hard_link(source, target).is_err() {
        fs::copy(source, target).with_context(|| format!("copying {}", source.display()))?;
    }
    Ok(())
}

/// Asks an HTTP service on loopback for `/`; its answer's body if it says 200.
pub fn ask(address: SocketAddr) -> Result<String> {
    ask_for(address, "/")
}

/// What a service has at a path.
pub fn ask_for(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ASK_DEADLINE)?;
    stream.set_read_timeout(Some(ASK_DEADLINE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("the service answered {head}");
    }
    Ok(body.to_owned())
}

/// Asks until the service answers.
pub fn ask_until_answered(address: SocketAddr, deadline: Duration) -> Result<String> {
    wait::until("the application answered", deadline, || Ok(ask(address).ok()))
}

/// A small tree with everything a file system knows, as a directory: for what real packages lack.
pub fn special_files(dir: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;

    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    fs::create_dir_all(dir.join("deep/er"))?;
    fs::write(dir.join("empty"), "")?;
    fs::write(dir.join("deep/er/file"), vec![b'x'; 3 << 20])?;
    fs::hard_link(dir.join("deep/er/file"), dir.join("second-name"))?;
    symlink("deep/er/file", dir.join("link"))?;
    symlink("/no/such/target", dir.join("dangling"))?;
    fs::write(dir.join(std::ffi::OsStr::from_bytes(b"latin-\xe9")), "not UTF-8")?;
    fs::write(dir.join("n".repeat(255)), "long name")?;
    let mode = Mode::from_bits_truncate(0o640);
    mknod(&dir.join("fifo"), SFlag::S_IFIFO, mode, 0)?;
    mknod(&dir.join("null"), SFlag::S_IFCHR, mode, makedev(1, 3))?;
    mknod(&dir.join("loop"), SFlag::S_IFBLK, mode, makedev(7, 0))?;
    // cap_net_raw+ep, as a file capability is stored (revision 2). BuildKit puts no other attribute into layers.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(dir.join("second-name"), "security.capability", &capability)?;
    std::os::unix::fs::chown(dir.join("deep/er"), Some(1234), Some(70_000))?;
    Ok(())
}
