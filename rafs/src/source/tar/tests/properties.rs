//! What the `tar` crate writes is what is read, and no change of its bytes does harm.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::{Files, read_all};
use crate::source::{Entry, EntryKind, Source, SourceError};
use crate::tree::{DeviceNumber, Metadata, Time, Xattrs};

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if matches!(byte, 0 | b'/') { b'_' } else { byte });
    vec(vec(byte, 1..40), 1..12).prop_map(|components| components.join(&b'/'))
}

fn xattrs() -> impl Strategy<Value = Xattrs> {
    let value = vec(any::<u8>(), 0..300).prop_map(Box::from);
    btree_map("user\\.[a-z%]{1,20}".prop_map(|name| name.into_bytes().into()), value, 0..4)
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let time = (-10_000_000_000_i64..10_000_000_000, 0..1_000_000_000_u32);
    let time = time.prop_map(|(seconds, nanoseconds)| Time { seconds, nanoseconds });
    (0..0o10000_u16, any::<u32>(), any::<u32>(), time, xattrs())
        .prop_map(|(permissions, uid, gid, mtime, xattrs)| Metadata { permissions, uid, gid, mtime, xattrs })
}

fn kind() -> impl Strategy<Value = EntryKind> {
    let device = (0..1_u32 << 12, 0..1_u32 << 20).prop_map(|(major, minor)| DeviceNumber { major, minor });
    prop_oneof![
        3 => Just(EntryKind::Regular { size: 0 }),
        1 => Just(EntryKind::Directory),
        1 => name().prop_map(|target| EntryKind::Symlink(target.into())),
        1 => name().prop_map(EntryKind::HardLink),
        1 => device.clone().prop_map(EntryKind::CharDevice),
        1 => device.prop_map(EntryKind::BlockDevice),
        1 => Just(EntryKind::Fifo),
    ]
}

fn file() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    (name(), metadata(), kind(), vec(any::<u8>(), 0..2000)).prop_map(|(path, metadata, kind, content)| {
        match kind {
            EntryKind::Regular { .. } => {
                let kind = EntryKind::Regular { size: content.len() as u64 };
                (Entry { path, metadata, kind }, content)
            }
            kind => (Entry { path, metadata, kind }, Vec::new()),
        }
    })
}

/// Writes PAX records for all that a header may not hold.
fn write(files: &Files) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (entry, content) in files {
        append(&mut builder, entry, content);
    }
    builder.into_inner().unwrap()
}

fn append(builder: &mut ::tar::Builder<Vec<u8>>, entry: &Entry, content: &[u8]) {
    let mut header = ::tar::Header::new_ustar();
    let (typeflag, link, device) = match &entry.kind {
        EntryKind::Regular { .. } => (b'0', None, None),
        EntryKind::Directory => (b'5', None, None),
        EntryKind::Symlink(target) => (b'2', Some(target.to_vec()), None),
        EntryKind::HardLink(target) => (b'1', Some(target.clone()), None),
        EntryKind::CharDevice(device) => (b'3', None, Some(device)),
        EntryKind::BlockDevice(device) => (b'4', None, Some(device)),
        EntryKind::Fifo | EntryKind::Socket => (b'6', None, None),
    };
    header.set_entry_type(::tar::EntryType::new(typeflag));
    header.set_mode(entry.metadata.permissions.into());
    header.set_size(content.len() as u64);
    if let Some(device) = device {
        header.set_device_major(device.major).unwrap();
        header.set_device_minor(device.minor).unwrap();
    }
    header.set_cksum();
    let mut records = vec![
        ("path".to_owned(), entry.path.clone()),
        ("uid".to_owned(), entry.metadata.uid.to_string().into_bytes()),
        ("gid".to_owned(), entry.metadata.gid.to_string().into_bytes()),
        ("mtime".to_owned(), decimal(entry.metadata.mtime).into_bytes()),
    ];
    records.extend(link.map(|target| ("linkpath".to_owned(), target)));
    for (name, value) in &entry.metadata.xattrs {
        records.push((format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)), value.to_vec()));
    }
    builder
        .append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
        .unwrap();
    builder.append(&header, content).unwrap();
}

fn decimal(time: Time) -> String {
    match time {
        Time { seconds, nanoseconds } if seconds < 0 && nanoseconds > 0 => {
            format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
        }
        Time { seconds, nanoseconds } => format!("{seconds}.{nanoseconds:09}"),
    }
}

/// Reads with a limit on what sparse files may make up.
fn exhaust(archive: &[u8]) -> Result<(), SourceError> {
    let mut source = super::TarSource::new(archive);
    let mut buffer = [0; 4096];
    while source.next_entry()?.is_some() {
        for _ in 0..64 {
            if source.read(&mut buffer)? == 0 {
                break;
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn reading_gives_back_what_was_written(files in vec(file(), 0..12)) {
        let read = read_all(write(&files).as_slice()).unwrap();
        prop_assert_eq!(read, files);
    }

    #[test]
    fn changed_bytes_never_panic_and_errors_are_placed_within_the_archive(
        files in vec(file(), 1..4),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut archive = write(&files);
        for (index, byte) in changes {
            let index = index.index(archive.len());
            archive[index] = byte;
        }
        archive.truncate(cut.index(archive.len() + 1));
        if let Err(SourceError::Tar(error)) = exhaust(&archive) {
            prop_assert!(error.offset <= archive.len() as u64, "{}", error);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..3000)) {
        let _ = exhaust(&bytes);
    }
}
