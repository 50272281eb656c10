//! Power cuts on a disk that remembers only what was synced: acknowledged entries outlive them, and without the
//! sync they do not.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raft_store::disk::{Disk, Durability, MetaKey, OpenError, SledDisk, SledOptions, Write};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const PAGE: usize = 4096;

/// What lies on the platter: each file as it was when it was last synced.
#[derive(Default)]
struct Platter {
    files: Mutex<BTreeMap<PathBuf, Vec<u8>>>,
    broken: bool,
}

impl Durability for Platter {
    fn sync(&self, _file: &fs::File, path: &Path) -> io::Result<()> {
        if path.is_file() && !self.broken {
            self.files.lock().unwrap().insert(path.to_owned(), fs::read(path)?);
        }
        Ok(())
    }
}

impl Platter {
    /// Puts every file back to what was synced; of what was written since, `survivors` decides page by page.
    fn cut_power(&self, generation: &Path, mut survivors: impl FnMut() -> bool) {
        let files = self.files.lock().unwrap();
        for path in files_below(generation) {
            let Some(synced) = files.get(&path) else {
                fs::remove_file(&path).unwrap();
                continue;
            };
            let written = fs::read(&path).unwrap();
            let mut after = synced.clone();
            for (page, new) in written.chunks(PAGE).enumerate() {
                if survivors() {
                    let at = page * PAGE;
                    if after.len() < at + new.len() {
                        after.resize(at + new.len(), 0);
                    }
                    after[at..at + new.len()].copy_from_slice(new);
                }
            }
            fs::write(&path, after).unwrap();
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

fn open(dir: &Path, platter: &Arc<Platter>) -> Result<(SledDisk, Vec<u64>), OpenError> {
    let mut options = SledOptions::new(dir, "fleet=a node=1");
    options.durability = platter.clone();
    let (disk, loaded) = SledDisk::open(&options)?;
    for (index, bytes) in &loaded.log {
        assert!(bytes.iter().all(|b| *b == *index as u8), "entry {index} is not what was written");
    }
    Ok((disk, loaded.log.into_keys().collect()))
}

fn commit(disk: &SledDisk, batch: Vec<Write>) {
    let (tx, rx) = mpsc::channel();
    disk.commit(batch, Box::new(move |result| tx.send(result).unwrap()));
    rx.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
}

fn append(index: u64, len: usize) -> Vec<Write> {
    vec![
        Write::Meta(MetaKey::Vote, b"vote".to_vec()),
        Write::Append { index, bytes: vec![index as u8; len] },
    ]
}

/// Writes, copies the folder while the store is open, cuts the copy's power, and opens it again.
fn acknowledged_survive(platter: Platter, len: impl Fn(u64) -> usize, seed: Option<u64>) -> bool {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let platter = Arc::new(platter);
    let (disk, _) = open(&dir, &platter).unwrap();
    let mut rng = StdRng::seed_from_u64(seed.unwrap_or(0));
    let count = 60;
    let mut first = 0;
    for index in 0..count {
        commit(&disk, append(index, len(index)));
        if index % 20 == 19 {
            first = index - 9;
            commit(&disk, vec![Write::PurgeTo(first - 1)]);
        }
    }
    // Written, perhaps flushed, never acknowledged: closing writes it out, as the kernel would some day.
    let late = Arc::new(Platter { broken: true, ..Platter::default() });
    drop(disk);
    let mut options = SledOptions::new(&dir, "fleet=a node=1");
    options.durability = late;
    let (disk, _) = SledDisk::open(&options).unwrap();
    for index in count..count + 10 {
        commit(&disk, append(index, len(index)));
    }
    drop(disk);
    // The number of acknowledged batches would say that something is missing, so it goes back in time as well.
    fs::remove_file(dir.join("TAIL")).unwrap();
    platter.cut_power(&dir.join("gen-1"), || seed.is_some() && rng.random_bool(0.5));
    match open(&dir, &platter) {
        Ok((_disk, there)) => (first..count).all(|index| there.contains(&index)),
        Err(OpenError::Damaged { .. }) => false,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn acknowledged_entries_outlive_a_power_cut() {
    assert!(acknowledged_survive(Platter::default(), |_| 300, None));
}

#[test]
fn without_the_sync_acknowledged_entries_are_lost() {
    let broken = Platter { broken: true, ..Platter::default() };
    assert!(!acknowledged_survive(broken, |_| 300, None));
}

#[test]
fn large_entries_outlive_a_power_cut_too() {
    assert!(acknowledged_survive(Platter::default(), |i| 9_000 + 40_000 * (i as usize % 5), None));
}

#[test]
fn any_part_of_what_was_not_acknowledged_may_be_on_the_disk() {
    let lost: Vec<u64> = (0..30)
        .filter(|seed| {
            !acknowledged_survive(Platter::default(), |i| 100 + i as usize * 37, Some(*seed))
        })
        .collect();
    assert!(lost.is_empty(), "acknowledged entries were lost with seeds {lost:?}");
}
