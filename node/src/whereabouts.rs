//! Where nodes are reached: soft state beside Raft, newest (incarnation, seq) wins. Pure, but for load and save.
//!
//! Addresses are no part of Raft's membership: a fleet whose addresses all changed could not commit the
//! new ones. They travel between daemons directly and lie on each one's disk.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::env::Files;

/// How many addresses of one node are kept.
const KEPT: usize = 16;

/// Pause between two times that news is written.
const SAVE_PAUSE: Duration = Duration::from_millis(200);

/// Where one node said that it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The node's identity.
    pub uuid: Uuid,
    /// Its Raft id.
    pub node: u64,
    /// Grows with each start of its daemon.
    pub incarnation: u64,
    /// Grows with each change since then.
    pub seq: u64,
    /// Where its API listens, best first.
    pub addresses: Vec<SocketAddr>,
}

impl Record {
    /// Grows with each change of the record.
    pub fn version(&self) -> (u64, u64) {
        (self.incarnation, self.seq)
    }

    fn hosts(&self) -> Vec<IpAddr> {
        let mut hosts: Vec<IpAddr> = Vec::with_capacity(self.addresses.len());
        for ip in self.addresses.iter().map(SocketAddr::ip) {
            if !hosts.contains(&ip) {
                hosts.push(ip);
            }
        }
        hosts
    }

    /// A number that two versions do not share, as good as certainly.
    fn fingerprint(&self) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.uuid.as_bytes());
        hash.update(self.incarnation.to_be_bytes());
        hash.update(self.seq.to_be_bytes());
        hash.finalize().first_chunk().map_or(0, |b| u64::from_be_bytes(*b))
    }
}

/// Into how many parts records are divided when two books are compared.
const PARTS: usize = 64;

/// Fingerprints of records, part by part: where two books differ only those parts need be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests(Vec<u64>);

impl Default for Digests {
    fn default() -> Self {
        Self(vec![0; PARTS])
    }
}

impl Digests {
    /// Adds a record, or takes it out again: combined so that their order does not matter.
    fn toggle(&mut self, record: &Record) {
        self.0[part(record.uuid)] ^= record.fingerprint();
    }

    /// Whether the part that a node belongs to is the same; what another daemon sent may be of any length.
    fn agree(&self, other: &Self, uuid: Uuid) -> bool {
        let of = |digests: &Self| digests.0.get(part(uuid)).copied();
        of(self) == of(other)
    }
}

/// Identities are random, so that any of their bytes divides them evenly.
fn part(uuid: Uuid) -> usize {
    usize::from(uuid.as_bytes()[15]) % PARTS
}

/// Everything known about where nodes are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Book {
    records: BTreeMap<Uuid, Record>,
    /// Addresses without a known owner: from tickets and `endpoint add`.
    #[serde(default)]
    hints: Vec<SocketAddr>,
    /// Whether members said that this machine was removed; that is for good.
    #[serde(default)]
    removed: bool,
    #[serde(skip)]
    path: PathBuf,
    /// The records' fingerprints.
    #[serde(skip)]
    digests: Digests,
    /// When it was written last, and what then.
    #[serde(skip)]
    saved: Option<(Instant, Digests, bool)>,
}

impl Book {
    /// Reads the book; a missing or damaged file is an empty book, since peers tell it again.
    pub fn load(files: &dyn Files, path: &Path) -> Self {
        let bytes = files.read(path).unwrap_or_default();
        let mut book: Self = serde_json::from_slice(&bytes).unwrap_or_default();
        path.clone_into(&mut book.path);
        for record in book.records.values() {
            book.digests.toggle(record);
        }
        book
    }

    /// Writes the book.
    ///
    /// # Errors
    /// What the file system answered.
    pub fn save(&self, files: &dyn Files) -> std::io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(std::io::Error::other)?;
        files.replace(&self.path, &bytes, 0o600)
    }

    /// Writes the book where it is not as it was written last: news at once, a storm of them in turns.
    ///
    /// # Errors
    /// What the file system answered.
    pub fn save_news(&mut self, files: &dyn Files, now: Instant) -> std::io::Result<()> {
        let due = self.saved.as_ref().is_none_or(|(at, digests, removed)| {
            let news = *digests != self.digests || *removed != self.removed;
            news && now.saturating_duration_since(*at) >= SAVE_PAUSE
        });
        if !due {
            return Ok(());
        }
        // Noted first, so that a drive that fails is not asked again at each news.
        let before = self.saved.replace((now, self.digests.clone(), self.removed));
        self.save(files).inspect_err(|_| {
            let (digests, removed) = before.map(|(_, d, r)| (d, r)).unwrap_or_default();
            self.saved = Some((now, digests, removed));
        })
    }

    /// Takes in records; returns whether anything was news.
    pub fn merge(&mut self, records: impl IntoIterator<Item = Record>) -> bool {
        let mut news = false;
        for mut record in records {
            record.addresses.truncate(KEPT);
            let known = self.records.get(&record.uuid).map(Record::version);
            if known.is_none_or(|v| v < record.version()) {
                self.digests.toggle(&record);
                if let Some(former) = self.records.insert(record.uuid, record) {
                    self.digests.toggle(&former);
                }
                news = true;
            }
        }
        news
    }

    /// Returns the incarnation of a record of the same node that is newer than `record`, if there is one.
    pub fn newer_than(&self, record: &Record) -> Option<u64> {
        let known = self.records.get(&record.uuid)?;
        (known.version() > record.version()).then_some(known.incarnation)
    }

    /// Remembers an address whose owner is not known; returns whether it is new.
    pub fn hint(&mut self, address: SocketAddr) -> bool {
        let news = !self.hints.contains(&address);
        if news {
            self.hints.insert(0, address);
            self.hints.truncate(KEPT);
        }
        news
    }

    /// Remembers that members refuse this machine because it was removed; returns whether that is news.
    pub fn mark_removed(&mut self) -> bool {
        !std::mem::replace(&mut self.removed, true)
    }

    /// Tells whether members said that this machine was removed.
    pub fn removed(&self) -> bool {
        self.removed
    }

    /// Returns addresses without a known owner.
    pub fn hints(&self) -> &[SocketAddr] {
        &self.hints
    }

    /// Returns fingerprints of all records: books with equal ones need not be compared.
    pub fn digests(&self) -> &Digests {
        &self.digests
    }

    /// Returns the records of those parts in which a book with these fingerprints differs.
    pub fn differing(&self, theirs: &Digests) -> Vec<Record> {
        let differs = |uuid: &Uuid| !self.digests.agree(theirs, *uuid);
        self.records.iter().filter(|(uuid, _)| differs(uuid)).map(|(_, r)| r.clone()).collect()
    }

    /// Returns all records.
    pub fn records(&self) -> Vec<Record> {
        self.records.values().cloned().collect()
    }

    /// Returns the identity of the node with this Raft id.
    pub fn uuid_of(&self, node: u64) -> Option<Uuid> {
        self.records.values().find(|r| r.node == node).map(|r| r.uuid)
    }

    /// Returns the Raft id of the node with this identity.
    pub fn node_of(&self, uuid: Uuid) -> Option<u64> {
        self.records.get(&uuid).map(|r| r.node)
    }

    /// Returns where a node's API is reached.
    pub fn addresses(&self, uuid: Uuid) -> Vec<SocketAddr> {
        self.records.get(&uuid).map(|r| r.addresses.clone()).unwrap_or_default()
    }

    /// Returns the hosts at which each node is reached, without repetition.
    pub fn hosts(&self) -> BTreeMap<Uuid, Vec<IpAddr>> {
        self.records.iter().map(|(uuid, record)| (*uuid, record.hosts())).collect()
    }

    /// Forgets nodes that are no members any more.
    pub fn retain(&mut self, member: impl Fn(Uuid) -> bool) {
        let digests = &mut self.digests;
        self.records.retain(|uuid, record| {
            let stays = member(*uuid);
            if !stays {
                digests.toggle(record);
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::linux::LinuxFiles;

    fn record(uuid: Uuid, incarnation: u64, seq: u64, address: &str) -> Record {
        Record { uuid, node: 1, incarnation, seq, addresses: vec![address.parse().unwrap()] }
    }

    #[test]
    fn the_newest_record_wins_in_any_order() {
        let id = Uuid::from_u128(1);
        let mut book = Book::default();
        assert!(book.merge([record(id, 2, 1, "10.0.0.2:1")]));
        assert!(!book.merge([record(id, 1, 9, "10.0.0.1:1")]));
        assert!(!book.merge([record(id, 2, 1, "10.0.0.9:1")]));
        assert!(book.merge([record(id, 2, 2, "10.0.0.3:1")]));
        assert_eq!(book.hosts()[&id], ["10.0.0.3".parse::<IpAddr>().unwrap()]);
        let mine = |incarnation| record(id, incarnation, 0, "10.0.0.4:1");
        assert_eq!(book.newer_than(&mine(1)), Some(2), "peers remember a later life");
        assert_eq!(book.newer_than(&mine(3)), None);
    }

    #[test]
    fn books_that_know_the_same_have_the_same_digests() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (mut one, mut other) = (Book::default(), Book::default());
        one.merge([record(a, 1, 1, "10.0.0.1:1"), record(b, 1, 1, "10.0.0.2:1")]);
        other.merge([record(b, 1, 0, "10.0.0.9:1"), record(a, 1, 1, "10.0.0.1:1")]);
        assert_ne!(one.digests(), other.digests());
        assert_eq!(one.differing(other.digests()), [record(b, 1, 1, "10.0.0.2:1")]);
        assert_eq!(
            one.differing(&Digests(Vec::new())).len(),
            2,
            "a hostile one gets no more than all"
        );
        other.merge(one.differing(other.digests()));
        assert_eq!(one.digests(), other.digests());
        one.retain(|uuid| uuid == a);
        assert_ne!(one.digests(), other.digests());
        one.merge(other.records());
        assert_eq!(one.digests(), other.digests());
        one.retain(|_| false);
        assert_eq!(one.digests(), Book::default().digests());
    }

    #[test]
    fn news_is_written_at_once_and_a_storm_in_turns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("whereabouts.json");
        let mut book = Book::load(&LinuxFiles, &path);
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        let start = Instant::now();
        let mut told = |id: u128, after: u64| {
            book.merge([record(Uuid::from_u128(id), 1, 1, "10.0.0.1:1")]);
            book.save_news(&LinuxFiles, start + Duration::from_millis(after)).unwrap();
            Book::load(&LinuxFiles, &path).records().len()
        };
        assert_eq!([told(1, 0), told(2, 100), told(3, 200)], [1, 1, 3]);
        assert_eq!(told(4, 5_000), 4);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(told(4, 9_000), 0, "nothing is written where nothing is new");
    }

    #[test]
    fn survives_a_restart_and_a_damaged_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("whereabouts.json");
        let mut book = Book::load(&LinuxFiles, &path);
        book.merge([record(Uuid::from_u128(7), 1, 1, "[fd00::1]:7443")]);
        assert!(book.hint("10.1.1.1:7443".parse().unwrap()));
        book.save(&LinuxFiles).unwrap();
        let again = Book::load(&LinuxFiles, &path);
        assert_eq!(again.records(), book.records());
        assert_eq!((again.hints(), again.digests()), (book.hints(), book.digests()));
        std::fs::write(&path, b"{ not json").unwrap();
        assert!(Book::load(&LinuxFiles, &path).records().is_empty());
    }
}
