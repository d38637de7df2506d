//! Everything pulled and read over a link of 1 Gbit/s, next to what containerd does with the image in the forms that suit it best. The image
//! has several layers, of which some can be unpacked while others come.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::process;
use tar::{Archive, EntryType};

use super::sides::{Fresh, Side};
use crate::lab::Lab;

/// 1 Gbit/s.
const BYTES_PER_SECOND: u64 = 125_000_000;
const LAYERS: u64 = 4;
/// What ends a tar.
const END: [u8; 1024] = [0; 1024];

pub(super) const SIDES: [Side; 4] = [Side::Ours, Side::Overlayfs, Side::ParallelOverlayfs, Side::Erofs];

/// The image in each side's form, behind the link.
pub(super) struct LinkImages {
    proxy: FaultProxy,
}

impl LinkImages {
    /// Builds and pushes them. The large root file system is `big.tar` in `context`.
    pub(super) fn make(lab: &Lab, context: &Path) -> Result<Self> {
        let dir = lab.subdir("link")?;
        let near = lab.registry.address();
        split(&context.join("big.tar"), &dir)?;
        let layers: String = (0..LAYERS).map(|number| format!("ADD {number}.tar /\n")).collect();
        fs::write(dir.join("Dockerfile"), format!("FROM scratch\n{layers}"))?;
        lab.buildctl()?.build(&dir, &[&format!("type=nydus-cluster,name={near}/link:nydus")])?;
        let plain = format!("{near}/link:zstd");
        let output = format!(
            "type=image,name={plain},push=true,registry.insecure=true,compression=zstd,force-compression=true"
        );
        lab.plain_buildctl()?.build(&dir, &[&output])?;
        to_erofs(lab, &plain, &format!("{near}/link:erofs"))?;
        let proxy = FaultProxy::start(near)?;
        proxy.set_rules(vec![Rule::always("/", Failure::Link(BYTES_PER_SECOND))]);
        Ok(Self { proxy })
    }

    /// That of a side.
    pub(super) fn of(&self, side: Side) -> String {
        let tag = match side {
            Side::Overlayfs | Side::ParallelOverlayfs => "zstd",
            Side::Erofs => "erofs",
            _ => "nydus",
        };
        format!("{}/link:{tag}", self.proxy.address())
    }
}

/// Has containerd make an image of EROFS layers, in zstd, of another.
fn to_erofs(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let converter = Fresh::new(lab, Side::Erofs, "erofs-converter")?;
    let node = converter.node()?;
    node.cri().pull(from)?;
    let ctr = || node.containerd().ctr();
    process::run(ctr().args(["images", "convert", "--erofs", "zstd", from, to]))?;
    process::run(ctr().args(["images", "push", "--plain-http", to]))?;
    Ok(())
}

/// Cuts a tar into as many of about the same size, `0.tar` and so on in `dir`, that give the same tree one after the other.
fn split(tar: &Path, dir: &Path) -> Result<()> {
    let mut archive = Archive::new(File::open(tar).with_context(|| format!("opening {}", tar.display()))?);
    let size = fs::metadata(tar)?.len();
    let mut cuts = vec![0];
    // What describes an entry at length stays before it.
    let mut may_cut = true;
    let mut end = 0;
    for entry in archive.entries_with_seek()?.raw(true) {
        let entry = entry?;
        let at = entry.raw_header_position();
        if may_cut && at >= size / LAYERS * cuts.len() as u64 && (cuts.len() as u64) < LAYERS {
            cuts.push(at);
        }
        let kind = entry.header().entry_type();
        may_cut = !matches!(
            kind,
            EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink
        );
        end = entry.raw_file_position() + entry.size().next_multiple_of(512);
    }
    ensure!(cuts.len() as u64 == LAYERS, "{} has entries too large to cut it", tar.display());
    cuts.push(end);
    let mut whole = File::open(tar)?;
    for (number, range) in cuts.windows(2).enumerate() {
        let mut part = File::create(dir.join(format!("{number}.tar")))?;
        whole.seek(SeekFrom::Start(range[0]))?;
        io::copy(&mut (&mut whole).take(range[1] - range[0]), &mut part)?;
        part.write_all(&END)?;
    }
    Ok(())
}
