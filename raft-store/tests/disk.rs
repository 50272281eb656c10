//! The durable log as its users see it: kept over restarts, refused or put aside when it is not what was written.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use raft_store::disk::{
    Disk, DiskError, Durability, Fdatasync, Loaded, MetaKey, OpenError, Roll, SledDisk,
    SledOptions, Write,
};

const OWNER: &str = "fleet=a node=1";

fn open(dir: &Path) -> Result<(SledDisk, Loaded), OpenError> {
    SledDisk::open(&SledOptions::new(dir, OWNER))
}

fn commit(disk: &SledDisk, batch: Vec<Write>) -> Result<(), DiskError> {
    let (tx, rx) = mpsc::channel();
    disk.commit(batch, Box::new(move |result| tx.send(result).unwrap()));
    rx.recv_timeout(Duration::from_secs(20)).expect("every batch is answered")
}

fn append(range: std::ops::Range<u64>, len: usize) -> Vec<Write> {
    let entry = |index: u64| Write::Append { index, bytes: vec![index as u8; len] };
    range.map(entry).collect()
}

fn vote() -> Write {
    Write::Meta(MetaKey::Vote, b"vote".to_vec())
}

/// A store with entries 0 to 99 and a vote.
fn filled() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let (disk, loaded) = open(&dir).unwrap();
    assert_eq!(loaded, Loaded::default());
    commit(&disk, vec![vote()]).unwrap();
    for n in 0..10 {
        commit(&disk, append(n * 10..n * 10 + 10, 100)).unwrap();
    }
    (temp, dir)
}

fn indexes(loaded: &Loaded) -> Vec<u64> {
    loaded.log.keys().copied().collect()
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart() {
    let (_temp, dir) = filled();
    let (disk, loaded) = open(&dir).unwrap();
    assert_eq!(indexes(&loaded), (0..100).collect::<Vec<_>>());
    assert_eq!(loaded.meta[&MetaKey::Vote], b"vote");
    commit(&disk, vec![Write::TruncateFrom(90)]).unwrap();
    commit(&disk, vec![Write::Meta(MetaKey::Purged, b"p".to_vec()), Write::PurgeTo(49)]).unwrap();
    commit(&disk, append(90..95, 7)).unwrap();
    drop(disk);
    let (_disk, loaded) = open(&dir).unwrap();
    assert_eq!(indexes(&loaded), (50..95).collect::<Vec<_>>());
    assert_eq!(loaded.log[&94], vec![94; 7]);
    assert_eq!(loaded.meta[&MetaKey::Purged], b"p");
}

#[test]
fn a_log_that_was_replaced_by_a_snapshot_goes_on_behind_it() {
    let (_temp, dir) = filled();
    let (disk, _) = open(&dir).unwrap();
    commit(&disk, vec![Write::PurgeTo(5_000)]).unwrap();
    commit(&disk, append(5_001..5_003, 7)).unwrap();
    drop(disk);
    assert_eq!(indexes(&open(&dir).unwrap().1), vec![5_001, 5_002]);
}

#[test]
fn a_second_daemon_is_refused() {
    let (_temp, dir) = filled();
    let _first = open(&dir).unwrap();
    assert!(matches!(open(&dir), Err(OpenError::InUse(_))));
}

#[test]
fn a_newer_or_foreign_store_is_refused_and_left_alone() {
    let (_temp, dir) = filled();
    let options = SledOptions::new(&dir, "fleet=b node=1");
    assert!(matches!(SledDisk::open(&options), Err(OpenError::Foreign { .. })));
    fs::write(dir.join("FORMAT"), "2\n").unwrap();
    let before = tree(&dir);
    let refused = open(&dir).err().unwrap();
    assert!(matches!(&refused, OpenError::Newer { found, .. } if found == "2"), "{refused}");
    assert_eq!(tree(&dir), before);
    fs::write(dir.join("FORMAT"), "1\n").unwrap();
    assert_eq!(open(&dir).unwrap().1.log.len(), 100);
}

/// All files below a folder with their content.
fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// Opens a store that was tampered with; it must be put aside, and its owner must never start empty.
fn assert_put_aside(dir: &Path, what: &str) {
    let first = open(dir).err().unwrap_or_else(|| panic!("{what}: the store opened"));
    let OpenError::Damaged { quarantine, .. } = &first else { panic!("{what}: {first}") };
    assert!(quarantine.is_dir(), "{what}");
    let again = open(dir).err().unwrap_or_else(|| panic!("{what}: it came back empty"));
    assert!(matches!(again, OpenError::Retired { .. }), "{what}: {again}");
    let (_disk, loaded) = SledDisk::open(&SledOptions::new(dir, "fleet=a node=77")).unwrap();
    assert_eq!(loaded, Loaded::default(), "{what}: a new id starts empty");
}

#[test]
fn a_store_with_a_missing_file_is_put_aside() {
    for name in ["CURRENT", "FORMAT", "IDENTITY", "gen-1", "gen-1/db"] {
        let (_temp, dir) = filled();
        let path = dir.join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        assert_put_aside(&dir, name);
    }
}

#[test]
fn a_store_that_was_cut_short_is_put_aside() {
    for part in [0, 1, 2, 3] {
        let (_temp, dir) = filled();
        let db = dir.join("gen-1/db");
        let written = fs::read(&db).unwrap().iter().rposition(|b| *b != 0).unwrap() as u64;
        fs::OpenOptions::new().write(true).open(&db).unwrap().set_len(written * part / 4).unwrap();
        assert_put_aside(&dir, &format!("cut to {part}/4"));
    }
}

#[test]
fn a_flipped_bit_is_put_aside_or_harmless_but_never_loses_an_entry() {
    let mut noticed = 0;
    let (_temp, dir) = filled();
    let whole = fs::read(dir.join("gen-1/db")).unwrap();
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    for at in used.iter().step_by(used.len() / 40) {
        let temp = tempfile::tempdir().unwrap();
        let copy = temp.path().join("store");
        copy_tree(&dir, &copy);
        let mut bytes = whole.clone();
        bytes[*at] ^= 0x10;
        fs::write(copy.join("gen-1/db"), bytes).unwrap();
        match open(&copy) {
            Ok((_, loaded)) => {
                assert_eq!(indexes(&loaded), (0..100).collect::<Vec<_>>(), "byte {at}");
                assert!(loaded.log.iter().all(|(i, v)| *v == vec![*i as u8; 100]), "byte {at}");
            }
            Err(OpenError::Damaged { .. }) => noticed += 1,
            Err(e) => panic!("byte {at}: {e}"),
        }
    }
    assert!(noticed > 0, "no flipped bit was noticed");
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn a_store_whose_making_was_cut_short_is_made_again() {
    let (_temp, dir) = filled();
    let temp = tempfile::tempdir().unwrap();
    let half = temp.path().join("store");
    drop(SledDisk::open(&SledOptions::new(&half, OWNER)).unwrap());
    fs::remove_file(half.join("IDENTITY")).unwrap();
    assert_eq!(open(&half).unwrap().1, Loaded::default());
    // With entries in it, the making was not what was cut short.
    fs::remove_file(dir.join("IDENTITY")).unwrap();
    assert_put_aside(&dir, "IDENTITY");
}

#[test]
fn a_founder_that_was_killed_before_its_first_vote_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let (disk, _) = open(&dir).unwrap();
    commit(&disk, append(0..1, 40)).unwrap();
    drop(disk);
    let (disk, loaded) = open(&dir).unwrap();
    assert_eq!(indexes(&loaded), [0]);
    // Any other entry comes from a leader, for which there is a vote.
    commit(&disk, append(1..2, 40)).unwrap();
    drop(disk);
    assert_put_aside(&dir, "no vote");
}

#[test]
fn a_new_store_opens_at_once_however_busy_the_machine_is() {
    // In memory, where no sync gives sled's threads the time to let go of what was made.
    let memory = Path::new("/dev/shm");
    let temp = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let temp = temp.unwrap();
    let make_many = |part: usize| {
        let temp = temp.path().to_owned();
        move || {
            for i in 0..100 {
                open(&temp.join(format!("store-{part}-{i}"))).map(drop).unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        let busy: Vec<_> = (0..8).map(|part| scope.spawn(make_many(part))).collect();
        busy.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn generations_are_renewed_and_the_old_one_goes() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let mut options = SledOptions::new(&dir, OWNER);
    options.roll = Roll { bytes_max: 8 << 20, factor: 4, bytes_min: 1 << 20 };
    let (disk, _) = SledDisk::open(&options).unwrap();
    commit(&disk, vec![vote()]).unwrap();
    for n in 0..60u64 {
        commit(&disk, append(n * 50..n * 50 + 50, 1_000)).unwrap();
        commit(&disk, vec![Write::PurgeTo(n * 50 + 30)]).unwrap();
    }
    drop(disk);
    let current = fs::read_to_string(dir.join("CURRENT")).unwrap();
    assert_ne!(current.trim(), "gen=1");
    let there: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(there.iter().filter(|n| n.to_string_lossy().starts_with("gen-")).count(), 1);
    let (_disk, loaded) = SledDisk::open(&options).unwrap();
    assert_eq!(indexes(&loaded), (2_981..3_000).collect::<Vec<_>>());
    assert!(loaded.log.iter().all(|(i, v)| *v == vec![*i as u8; 1_000]));
    assert_eq!(loaded.meta[&MetaKey::Vote], b"vote");
}

/// Refuses to sync once told so, as a full or broken disk does.
struct Failing(AtomicBool);

impl Durability for Failing {
    fn sync(&self, file: &fs::File, path: &Path) -> io::Result<()> {
        if self.0.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Fdatasync.sync(file, path)
    }
}

#[test]
fn nothing_is_acknowledged_once_the_disk_has_failed() {
    let temp = tempfile::tempdir().unwrap();
    let failing = Arc::new(Failing(AtomicBool::new(false)));
    let mut options = SledOptions::new(&temp.path().join("store"), OWNER);
    options.durability = failing.clone();
    let (disk, _) = SledDisk::open(&options).unwrap();
    commit(&disk, vec![vote()]).unwrap();
    failing.0.store(true, Ordering::SeqCst);
    assert!(commit(&disk, append(0..1, 10)).is_err());
    failing.0.store(false, Ordering::SeqCst);
    assert!(
        commit(&disk, append(1..2, 10)).is_err(),
        "a disk that failed once is not trusted again"
    );
}

/// Counts the syncs of sled's file.
#[derive(Default)]
struct Counting(AtomicU64);

impl Durability for Counting {
    fn sync(&self, file: &fs::File, path: &Path) -> io::Result<()> {
        if path.ends_with("db") {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        Fdatasync.sync(file, path)
    }
}

#[test]
fn each_acknowledged_batch_is_preceded_by_exactly_one_sync() {
    let temp = tempfile::tempdir().unwrap();
    let counting = Arc::new(Counting::default());
    let mut options = SledOptions::new(&temp.path().join("store"), OWNER);
    options.durability = counting.clone();
    let (disk, _) = SledDisk::open(&options).unwrap();
    let before = counting.0.load(Ordering::SeqCst);
    commit(&disk, vec![vote()]).unwrap();
    for n in 0..20 {
        commit(&disk, append(n..n + 1, 10)).unwrap();
        assert_eq!(counting.0.load(Ordering::SeqCst), before + n + 2);
    }
}

#[test]
fn a_store_whose_file_is_still_held_is_in_use_not_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let options = SledOptions::new(dir.path(), "owner");
    drop(SledDisk::open(&options).unwrap());
    let held = sled::Config::new()
        .path(dir.path().join("gen-1"))
        .segment_size(512 * 1024)
        .mode(sled::Mode::LowSpace)
        .open()
        .unwrap();
    let refused = SledDisk::open(&options).map(drop);
    assert!(matches!(refused, Err(OpenError::InUse(_))), "{refused:?}");
    drop(held);
    // sled's own threads may need a moment to let go.
    for _ in 0..200 {
        match SledDisk::open(&options) {
            Err(OpenError::InUse(_)) => std::thread::sleep(Duration::from_millis(10)),
            opened => return drop(opened.unwrap()),
        }
    }
    panic!("the file is held for ever");
}
