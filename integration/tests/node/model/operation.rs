//! What happens to a node, one thing after the other. Numbers choose among what there is when the operation's turn comes, so
//! that a list of operations stays one when some are taken out.

use std::time::Duration;

use integration::fault_proxy::Failure;

use super::random::Random;
use super::tamper::Tamper;

/// Deadline of reads in the runs.
pub(super) const DEADLINE: Duration = Duration::from_secs(6);
/// A server that takes so long is slow: after a sixth of the deadline, which is less, the next one is asked too. But every read
/// can be answered in time: it waits for three answers at most, one after the other, and two seconds are left for a busy machine.
const SLOW: Duration = Duration::from_millis(1300);

/// A line on which what is fetched at once, a mebibyte at most, takes a second.
pub(super) const SLOW_LINE: Failure = Failure::Bandwidth(1_000_000);

/// Bytes that a cache may take: as many as it likes, or so few that something has to give way.
pub(super) const QUOTAS: [u64; 5] = [0, 0, 0, 128 << 10, 1 << 20];

#[derive(Clone, Debug)]
pub(super) enum Operation {
    Mount {
        image: Choice,
        homes: Homes,
    },
    /// The daemon hears of another place that has a mounted image's blobs.
    AddBackend {
        mount: u64,
        home: u64,
    },
    /// Parts of files, one after the other.
    Read {
        mount: u64,
        parts: Vec<Part>,
    },
    /// All that the mount shows.
    ReadAll {
        mount: u64,
        cold: bool,
    },
    /// Readers side by side, each of a mount of its own choice, and meanwhile something else.
    ReadTogether {
        readers: Vec<(u64, Vec<Part>)>,
        meanwhile: Option<Box<Operation>>,
    },
    Unmount {
        mount: u64,
    },
    /// A hostile image comes and goes; then one comes that it lied about.
    HostileGuest {
        image: u64,
        part: Part,
    },
    /// Nothing stays in the cache but what mounts use, and the blobs of these images.
    CleanUp {
        keep: Vec<u64>,
    },
    /// An image is removed, with all that share a blob with it, while what was read ahead of somebody may be on its way
    /// over a slow line; and comes back.
    RemoveAndMountAgain {
        mount: u64,
        before: Part,
        after: Vec<Part>,
        slow: bool,
        /// One of its blobs, by number, is pinned before: that stays.
        pin: Option<u64>,
    },
    /// A server goes bad, or all of them; for all blobs or one.
    Fail {
        remote: Option<u64>,
        failure: Failure,
        blob: Option<u64>,
    },
    /// All servers are well again.
    Heal,
    Restart {
        kill: bool,
        tamper: Option<Tamper>,
    },
    /// Another daemon serves all mounts on.
    HandOver {
        ending: Ending,
        /// The first of them is killed before it has all of them.
        stumbles: bool,
    },
    KillWorker,
    /// A blob is kept from pruning and from giving way, or no longer.
    Pin {
        blob: u64,
        pinned: bool,
    },
    /// All goes that no mount uses and that is not pinned.
    Prune,
    /// What the cache holds is verified.
    Verify,
    /// The daemon may take so many bytes of the disk from now on, for which it starts again.
    Quota {
        bytes: u64,
    },
}

/// How a daemon ends whose mounts another one goes on with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    Kill,
    Terminate,
    /// It makes place for its own program.
    Upgrade,
}

/// From where to mount an image.
#[derive(Clone, Copy, Debug)]
pub(super) enum Homes {
    One(u64),
    All,
}

/// Which image to mount.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choice {
    Any(u64),
    Hostile(u64),
    /// One that shares a blob with a mounted one.
    Related(u64),
}

/// A part of a file.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) file: u64,
    /// Where it starts, in thousandths of the file.
    pub(super) from: u64,
    /// Bytes at most.
    pub(super) len: u64,
    /// The page cache forgets the file before.
    pub(super) cold: bool,
}

impl Part {
    fn random(random: &mut Random) -> Self {
        Self {
            file: random.next(),
            from: if random.chance(30) { 0 } else { random.within(0..1000) },
            len: *random.one_of(&[1, 4096, 20_000, 131_072, u64::MAX]),
            cold: random.chance(40),
        }
    }

    fn several(random: &mut Random, most: u64) -> Vec<Self> {
        (0..random.within(1..most)).map(|_| Self::random(random)).collect()
    }
}

/// What runs consist of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mix {
    /// Everything.
    Any,
    /// Reads, and power cuts between them.
    PowerCuts,
}

impl Operation {
    /// The operations of a run.
    pub(super) fn list(random: &mut Random, mix: Mix, count: usize) -> Vec<Self> {
        // Some mounts first: what follows is about several images.
        let next = |number| match mix {
            _ if number < 4 => Self::mount(random),
            Mix::Any => Self::random(random),
            Mix::PowerCuts => Self::around_power_cuts(random),
        };
        (0..count.max(4)).map(next).collect()
    }

    fn around_power_cuts(random: &mut Random) -> Self {
        match random.within(0..100) {
            0..22 => Self::Restart { kill: random.chance(70), tamper: Some(Tamper::power_cut(random)) },
            22..40 => Self::Read { mount: random.next(), parts: Part::several(random, 5) },
            40..60 => Self::ReadAll { mount: random.next(), cold: true },
            60..66 => Self::Heal,
            _ => Self::random(random),
        }
    }

    fn mount(random: &mut Random) -> Self {
        let image = match random.within(0..10) {
            0 | 1 => Choice::Hostile(random.next()),
            2..6 => Choice::Related(random.next()),
            _ => Choice::Any(random.next()),
        };
        let homes = if random.chance(30) { Homes::All } else { Homes::One(random.next()) };
        Self::Mount { image, homes }
    }

    fn random(random: &mut Random) -> Self {
        let mount = random.next();
        match random.within(0..100) {
            0..19 => Self::mount(random),
            19 | 20 => Self::hand_over(random),
            21 => Self::KillWorker,
            22..26 => Self::HostileGuest { image: random.next(), part: Part::random(random) },
            26..42 => Self::Read { mount, parts: Part::several(random, 5) },
            42..45 => Self::of_cache(random),
            45..50 => Self::ReadAll { mount, cold: random.chance(50) },
            50..60 => Self::ReadTogether {
                readers: (0..random.within(2..5))
                    .map(|_| (random.next(), Part::several(random, 4)))
                    .collect(),
                meanwhile: match random.within(0..11) {
                    0 => Some(Box::new(Self::mount(random))),
                    1 => Some(Box::new(Self::Unmount { mount: random.next() })),
                    2 => Some(Box::new(Self::clean_up(random))),
                    3..6 => Some(Box::new(Self::hand_over(random))),
                    6 | 7 => Some(Box::new(Self::KillWorker)),
                    8 => Some(Box::new(Self::Prune)),
                    9 => Some(Box::new(Self::Verify)),
                    _ => None,
                },
            },
            60..70 => Self::Unmount { mount },
            70..72 => Self::clean_up(random),
            72..75 => Self::of_cache(random),
            75 => Self::AddBackend { mount, home: random.next() },
            76..81 => Self::RemoveAndMountAgain {
                mount,
                before: Part { len: 1, ..Part::random(random) },
                after: Part::several(random, 6),
                slow: random.chance(60),
                pin: random.chance(40).then(|| random.next()),
            },
            81..90 => Self::fail(random),
            90..96 => Self::Heal,
            _ => Self::Restart {
                kill: random.chance(50),
                tamper: random.chance(60).then(|| Tamper::random(random)),
            },
        }
    }

    fn of_cache(random: &mut Random) -> Self {
        match random.within(0..10) {
            0..4 => Self::Pin { blob: random.next(), pinned: random.chance(70) },
            4..7 => Self::Prune,
            7 | 8 => Self::Verify,
            _ => Self::Quota { bytes: *random.one_of(&QUOTAS) },
        }
    }

    fn hand_over(random: &mut Random) -> Self {
        let ending = *random.one_of(&[Ending::Kill, Ending::Kill, Ending::Terminate, Ending::Upgrade]);
        Self::HandOver { ending, stumbles: random.chance(30) }
    }

    fn clean_up(random: &mut Random) -> Self {
        Self::CleanUp { keep: (0..random.within(0..3)).map(|_| random.next()).collect() }
    }

    fn fail(random: &mut Random) -> Self {
        let failure = match random.within(0..10) {
            0 | 1 => Failure::Delay(SLOW),
            2 | 3 => SLOW_LINE,
            4 => Failure::Stall,
            5 => Failure::StallDownload(random.within(0..100_000)),
            6 => Failure::CutDownload(random.within(0..100_000)),
            7 => Failure::WrongBytes,
            _ => Failure::Status(*random.one_of(&[401, 403, 404, 429, 500, 502, 503])),
        };
        // A server that is slow with one blob alone would be a strange one.
        let one = !is_harmless(failure) && random.chance(40);
        let blob = one.then(|| random.next());
        let all = is_harmless(failure) && random.chance(50);
        Self::Fail { remote: (!all).then(|| random.next()), failure, blob }
    }
}

/// Whether all can be fetched in time from a server that fails so.
pub(super) fn is_harmless(failure: Failure) -> bool {
    matches!(failure, Failure::Delay(_) | Failure::Bandwidth(_))
}
