//! The disk says no at any moment, once or from then on, with or without a power cut behind it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

use super::super::disk::database;
use super::*;
use crate::control::set::tests::set;

/// A disk in memory. What is written counts after a power cut if it was synced.
#[derive(Debug, Default)]
struct Platter {
    content: Vec<u8>,
    synced: Vec<u8>,
    /// Changes until one fails; `None`: none does.
    left: Option<u64>,
    /// Those behind it fail as well.
    for_good: bool,
    failed: bool,
}

#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    /// Fails once, or for good, after so many more changes.
    fn fail_after(&self, changes: u64, for_good: bool) {
        let mut platter = self.platter();
        (platter.left, platter.for_good, platter.failed) = (Some(changes), for_good, false);
    }

    /// Works again, with what is left after a power cut if there was one; whether it had failed.
    fn mend(&self, power_cut: bool) -> bool {
        let mut platter = self.platter();
        platter.left = None;
        if power_cut {
            platter.content = platter.synced.clone();
        }
        std::mem::take(&mut platter.failed)
    }

    fn state(&self) -> Result<State, Error> {
        let disk = self.clone();
        State::open_with(Box::new(move |failed| database(disk.clone(), failed)))
    }
}

impl Platter {
    fn refuse(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => {
                if !self.for_good {
                    self.left = None;
                }
                self.failed = true;
                Err(io::Error::from_raw_os_error(nix::libc::EIO))
            }
            left => {
                left.iter_mut().for_each(|left| *left -= 1);
                Ok(())
            }
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        out.copy_from_slice(&self.platter().content[offset..offset + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.platter();
        platter.refuse()?;
        platter.content.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter();
        platter.refuse()?;
        platter.synced = platter.content.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.platter();
        let refused = platter.refuse();
        // What fails may be there in part.
        let part = if refused.is_ok() { data.len() } else { data.len() / 2 };
        let offset = offset as usize;
        platter.content[offset..offset + part].copy_from_slice(&data[..part]);
        refused
    }
}

type Step = fn(&State) -> Result<(), Error>;

/// One change after the other, as containerd and a set have them come.
const STEPS: [Step; 10] = [
    |state| state.create(creation(1, Kind::Active, "base-a", None)).map(drop),
    |state| state.commit("base-a", commit("base", Usage { inodes: 2, size: 4096 })),
    |state| state.create(creation(2, Kind::Active, "app", Some("base"))).map(drop),
    |state| {
        let labels = vec![("label".to_owned(), Some("value ".repeat(1000)))];
        state.update("app", LabelUpdate::Some(labels)).map(drop)
    },
    |state| {
        let names = vec!["registry.example/app:v1".to_owned()];
        state.remember_image(SnapshotId(1), &MountedImage { names, ..MountedImage::default() })
    },
    |state| state.put_set(&set("set", "seed", &[&["lower", "upper"]])).map(drop),
    |state| {
        let chain = set("set", "seed", &[&["lower", "upper"]]).chains[1].chain.to_string();
        let layer = state.lazy_chain(&chain)?.expect("the set has it");
        state.create_lazy(creation(3, Kind::Committed, &chain, None), &layer).map(drop)
    },
    |state| state.remove_set("set").map(drop),
    |state| state.forget_images(&[SnapshotId(1)]),
    |state| state.remove("app").map(drop),
];

/// All that the database says, but for times.
fn told(state: &State) -> Result<String, Error> {
    let mut told = format!("{:?} {:?} {:?}\n", state.next_id()?, state.images()?, state.sets()?);
    state.walk(|key, Record { id, kind, parent, labels, usage, lazy, .. }| {
        told += &format!("{key} {id} {kind} {parent:?} {labels:?} {usage:?} {lazy}\n");
        Ok(true)
    })?;
    state.each_lazy_layer(|id, layer| told += &format!("{id} {layer:?}\n"))?;
    Ok(told)
}

/// What is told before the first step and after each.
fn model() -> Vec<String> {
    let state = Disk::default().state().unwrap();
    let mut model = vec![told(&state).unwrap()];
    for step in STEPS {
        step(&state).unwrap();
        model.push(told(&state).unwrap());
    }
    model
}

/// Takes all steps on a disk that fails after so many changes; whether that came to pass.
fn outlive(model: &[String], changes: u64, for_good: bool, power_cut: bool) -> bool {
    let disk = Disk::default();
    let case = format!("change {changes} fails, for good: {for_good}, power cut: {power_cut}");
    // A file that is there: a new one gets its name when it is whole.
    drop(disk.state().unwrap());
    disk.fail_after(changes, for_good);
    let mut failed = false;
    let mut state = disk.state().unwrap_or_else(|_| {
        failed = disk.mend(power_cut);
        disk.state().unwrap_or_else(|error| panic!("{case}: {error}"))
    });
    for (number, step) in STEPS.iter().enumerate() {
        let Err(error) = step(&state) else { continue };
        assert!(matches!(error, Error::State { .. }), "{case}, step {number}: {error}");
        // Whoever asks now is told the truth, or nothing.
        let known = |told: &String| [&model[number], &model[number + 1]].contains(&told);
        assert!(told(&state).as_ref().map_or(true, known), "{case}, step {number}");
        failed |= disk.mend(power_cut);
        if power_cut {
            drop(state);
            state = disk.state().unwrap_or_else(|error| panic!("{case}, step {number}: {error}"));
        }
        // It comes back by itself where the disk does, with the step or without it.
        let now = told(&state).unwrap_or_else(|error| panic!("{case}, step {number}: {error}"));
        assert!(known(&now), "{case}, step {number}: {now}");
        if now == model[number] {
            step(&state).unwrap_or_else(|error| panic!("{case}, step {number} again: {error}"));
        }
        assert_eq!(told(&state).unwrap(), model[number + 1], "{case}, step {number}");
    }
    assert_eq!(&told(&state).unwrap(), model.last().unwrap(), "{case}");
    drop(state);
    failed |= disk.mend(power_cut);
    assert_eq!(&told(&disk.state().unwrap()).unwrap(), model.last().unwrap(), "{case}");
    failed
}

#[test]
fn whichever_change_of_the_disk_fails_each_step_is_there_whole_or_not_at_all() {
    let model = model();
    for (for_good, power_cut) in [(false, false), (true, false), (false, true), (true, true)] {
        let survived = (0..).take_while(|&changes| outlive(&model, changes, for_good, power_cut)).count();
        assert!(survived > 3 * STEPS.len(), "{survived} changes were made to fail");
    }
}
