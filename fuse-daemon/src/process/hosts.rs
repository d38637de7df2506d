//! What is counted of the hosts that blobs are read from, over all workers that there were: of repositories there may be thousands, of
//! hosts there are a few.
//!
//! Which hosts there are is the front's own knowledge, and the worker counts by numbers that it was given. What it says can make a
//! number too large, and never smaller.

use reqwest::Url;

use super::given::repository;
use crate::control::BackendSpec;
use crate::worker::{HostTotals, host_of};

/// Hosts that are told apart. Whoever may run an image on the node names its host: those that come later are one.
pub(crate) const HOSTS_LIMIT: usize = 64;

/// The name of those that come later.
const OTHERS: &str = "other";

/// Where backends are.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct SourceHost {
    /// What kind of backends.
    pub(crate) kind: &'static str,
    /// `HOST[:PORT]` of a registry, as images name it, or of an HTTP server; nothing for directories.
    pub(crate) name: String,
}

impl SourceHost {
    /// Where a backend is.
    pub(crate) fn of(backend: &BackendSpec) -> Self {
        match backend {
            BackendSpec::Registry { .. } => {
                let name = repository(backend).map(|repository| repository.host().to_owned());
                Self { kind: "registry", name: name.unwrap_or_default() }
            }
            BackendSpec::Directory { .. } => Self { kind: "directory", name: String::new() },
            BackendSpec::HttpDirectory { url } => {
                let name = Url::parse(url).ok().as_ref().and_then(host_of);
                Self { kind: "http_directory", name: name.unwrap_or_default() }
            }
        }
    }
}

/// The hosts, each at the place of its number.
#[derive(Default)]
pub(super) struct Hosts(Vec<CountedHost>);

struct CountedHost {
    host: SourceHost,
    /// Of the workers that have ended, as far as they said it.
    before: HostTotals,
    /// Of the one that runs.
    now: HostTotals,
    /// How often it refused credentials.
    refused: u64,
}

/// What was counted of a host.
#[derive(Clone, Debug)]
pub(crate) struct HostCount {
    pub(crate) host: SourceHost,
    pub(crate) totals: HostTotals,
    /// How often it refused credentials, or that there were none, so that others were looked for.
    pub(crate) refused: u64,
}

impl Hosts {
    /// The number of a backend's host.
    pub(super) fn number(&mut self, backend: &BackendSpec) -> u32 {
        let place = self.place(SourceHost::of(backend));
        u32::try_from(place).unwrap_or(u32::MAX)
    }

    fn place(&mut self, mut host: SourceHost) -> usize {
        let find = |known: &[CountedHost], host: &SourceHost| known.iter().position(|one| one.host == *host);
        if let Some(place) = find(&self.0, &host) {
            return place;
        }
        if self.0.len() >= HOSTS_LIMIT {
            OTHERS.clone_into(&mut host.name);
            if let Some(place) = find(&self.0, &host) {
                return place;
            }
        }
        let (before, now) = (HostTotals::default(), HostTotals::default());
        self.0.push(CountedHost { host, before, now, refused: 0 });
        self.0.len() - 1
    }

    /// The worker that runs has counted so much.
    pub(super) fn told(&mut self, said: Vec<(u32, HostTotals)>) {
        for (number, totals) in said {
            let known = usize::try_from(number).ok().and_then(|place| self.0.get_mut(place));
            if let Some(known) = known {
                known.now.combine(totals, u64::max);
            }
        }
    }

    /// The worker has ended; the next one counts from nothing.
    pub(super) fn worker_ended(&mut self) {
        for known in &mut self.0 {
            known.before.combine(std::mem::take(&mut known.now), u64::saturating_add);
        }
    }

    /// A backend's host refused credentials.
    pub(super) fn refused(&mut self, backend: &BackendSpec) {
        let place = self.place(SourceHost::of(backend));
        self.0[place].refused += 1;
    }

    /// All that was counted.
    pub(super) fn counts(&self) -> Vec<HostCount> {
        let count = |known: &CountedHost| {
            let CountedHost { host, before, now, refused } = known;
            let mut totals = before.clone();
            totals.combine(now.clone(), u64::saturating_add);
            HostCount { host: host.clone(), totals, refused: *refused }
        };
        self.0.iter().map(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::message::{FROM_WORKER_LIMIT, FromWorker};

    fn registry(host: &str) -> BackendSpec {
        BackendSpec::Registry { repository: format!("{host}/library/app") }
    }

    fn requests(requests: u64) -> HostTotals {
        HostTotals { requests, ..HostTotals::default() }
    }

    #[test]
    fn a_host_is_one_whatever_is_read_from_it() {
        let mut hosts = Hosts::default();
        let http = |path: &str| BackendSpec::HttpDirectory { url: format!("http://files.example:81/{path}") };
        let directory = |path: &str| BackendSpec::Directory { path: path.into() };
        let other = BackendSpec::Registry { repository: "one.example:5000/other".to_owned() };
        let numbers =
            [registry("one.example:5000"), http("a"), directory("/a"), other, http("b"), directory("/b")]
                .map(|backend| hosts.number(&backend));
        assert_eq!(numbers, [0, 1, 2, 0, 1, 2]);
        let names: Vec<_> =
            hosts.counts().into_iter().map(|count| (count.host.kind, count.host.name)).collect();
        let expected =
            [("registry", "one.example:5000"), ("http_directory", "files.example:81"), ("directory", "")];
        assert_eq!(names, expected.map(|(kind, name)| (kind, name.to_owned())));
    }

    #[test]
    fn hosts_beyond_the_limit_are_one_of_each_kind() {
        let mut hosts = Hosts::default();
        for number in 0..10 * HOSTS_LIMIT {
            hosts.number(&registry(&format!("r{number}.example")));
            hosts.number(&BackendSpec::HttpDirectory { url: format!("http://h{number}.example/") });
            hosts.number(&BackendSpec::Directory { path: "/blobs".into() });
        }
        let counts = hosts.counts();
        assert!(counts.len() <= HOSTS_LIMIT + 3, "{}", counts.len());
        let others = counts.iter().filter(|count| count.host.name == OTHERS);
        assert_eq!(others.count(), 2);
        assert_eq!(hosts.number(&registry("r0.example")), 0, "who was there stays");
    }

    #[test]
    fn what_is_counted_of_all_hosts_fits_into_one_message() {
        let mut most = HostTotals::default();
        most.combine(HostTotals::default(), |_, _| u64::MAX);
        let all = (0..HOSTS_LIMIT + 3).map(|_| (u32::MAX, most.clone())).collect();
        let message = FromWorker::Totals { number: u64::MAX, hosts: all };
        assert!(serde_json::to_vec(&message).unwrap().len() < FROM_WORKER_LIMIT);
    }

    #[test]
    fn what_workers_say_adds_up_and_never_falls() {
        let mut hosts = Hosts::default();
        let number = hosts.number(&registry("one.example"));
        let counted = |hosts: &Hosts| hosts.counts()[0].totals.requests;
        // Numbers that nobody was given are nobody's.
        for (told, sum) in [(5, 5), (7, 7), (3, 7)] {
            hosts.told(vec![(number, requests(told)), (77, requests(9)), (u32::MAX, requests(9))]);
            assert_eq!(counted(&hosts), sum);
        }
        hosts.worker_ended();
        assert_eq!(counted(&hosts), 7);
        hosts.told(vec![(number, requests(2))]);
        assert_eq!(counted(&hosts), 9);
        hosts.told(vec![(number, requests(u64::MAX))]);
        hosts.worker_ended();
        hosts.told(vec![(number, requests(4))]);
        assert_eq!(counted(&hosts), u64::MAX);
    }
}
