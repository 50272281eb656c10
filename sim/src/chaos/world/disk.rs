//! A machine's drive, in memory: what was synced survives a power cut, what was not may. Shell.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raft_store::disk::{
    Disk, DiskError, Disks, Done, Loaded, MetaKey, OpenError, Record, SledOptions, SnapshotError,
    SnapshotFiles, Snapshots, Write,
};
use raft_store::rt::Scope;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::chaos::draw::Draw;
use crate::chaos::flaw::Flaw;
use crate::chaos::trace::Recorder;

/// How long a note waits for a batch to go with.
const NOTE_MAX: Duration = Duration::from_millis(100);
/// A drive that lies makes what it acknowledged durable this much later.
const LIE: Duration = Duration::from_secs(2);

/// How a drive behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// A sync takes from so many microseconds.
    pub sync_us_min: u64,
    /// To so many.
    pub sync_us_max: u64,
    /// Whether there is no room for anything new.
    pub full: bool,
    /// Whether every write fails.
    pub failing: bool,
    /// What is wrong with it on purpose.
    pub flaw: Option<Flaw>,
}

impl Mode {
    /// Returns how a drive behaves that is well but for a flaw.
    pub fn flawed(flaw: Option<Flaw>) -> Self {
        Self { flaw, ..Self::default() }
    }

    fn lies(self) -> bool {
        self.flaw == Some(Flaw::LyingDrive)
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self { sync_us_min: 200, sync_us_max: 2_000, full: false, failing: false, flaw: None }
    }
}

/// A machine's drive.
#[derive(Debug)]
pub struct Drive {
    machine: usize,
    recorder: Recorder,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    draw: Draw,
    stores: BTreeMap<PathBuf, Stored>,
}

/// One store's folder.
#[derive(Debug, Default)]
struct Stored {
    owner: Option<String>,
    retired: BTreeSet<String>,
    open: bool,
    durable: Loaded,
    /// Handed over, in order, and not acknowledged.
    in_flight: VecDeque<Vec<Write>>,
    /// Acknowledged, and yet lost by a power cut.
    lied: VecDeque<Vec<Write>>,
    notes: BTreeMap<MetaKey, Vec<u8>>,
    snapshots: BTreeMap<String, Vec<u8>>,
}

impl Stored {
    fn write(&mut self, batch: &[Write]) {
        let Loaded { log, meta } = &mut self.durable;
        for write in batch {
            match write {
                Write::Append { index, bytes } => drop(log.insert(*index, bytes.clone())),
                Write::TruncateFrom(from) => drop(log.split_off(from)),
                Write::PurgeTo(to) => *log = log.split_off(&(to + 1)),
                Write::Meta(key, value) => drop(meta.insert(*key, value.clone())),
            }
        }
    }

    /// Takes the command out of the newest entry that has one.
    fn alter(&mut self) {
        for bytes in self.durable.log.values_mut().rev() {
            let Ok(mut record) = Record::from_bytes(bytes) else { continue };
            if record.kind == 1 {
                (record.kind, record.payload) = (0, Vec::new());
                *bytes = record.to_bytes();
                return;
            }
        }
    }

    /// What lies there when it is opened next: of what was under way, as much as `survives` says of its number.
    fn settle(&mut self, power_cut: bool, mut survives: impl FnMut(u64) -> u64) {
        let lied = std::mem::take(&mut self.lied);
        let in_flight = std::mem::take(&mut self.in_flight);
        self.notes.clear();
        self.open = false;
        let left: Vec<Vec<Write>> = if power_cut {
            // What it acknowledged and had not written is gone, and with it everything after it.
            if lied.is_empty() { in_flight.into() } else { Vec::new() }
        } else {
            lied.iter().for_each(|batch| self.write(batch));
            in_flight.into()
        };
        let whole = usize::try_from(survives(left.len() as u64)).unwrap_or(0);
        left.iter().take(whole).for_each(|batch| self.write(batch));
    }
}

fn bytes_of(batch: &[Write]) -> Vec<u8> {
    let mut all = Vec::new();
    for write in batch {
        match write {
            Write::Append { index, bytes } => {
                all.extend_from_slice(&index.to_be_bytes());
                all.extend_from_slice(bytes);
            }
            Write::TruncateFrom(at) | Write::PurgeTo(at) => {
                all.extend_from_slice(&at.to_be_bytes())
            }
            Write::Meta(_, value) => all.extend_from_slice(value),
        }
    }
    all
}

impl Drive {
    /// Makes an empty drive.
    pub fn new(machine: usize, seed: u64, recorder: Recorder) -> Self {
        let draw = Draw::new(seed, "drive", &[machine as u64]);
        let state = Mutex::new(State { mode: Mode::default(), draw, stores: BTreeMap::new() });
        Self { machine, recorder, state }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how it behaves.
    pub fn set(&self, change: impl FnOnce(&mut Mode)) {
        change(&mut self.lock().mode);
    }

    /// Writes something small at once, durably.
    ///
    /// # Errors
    /// When it is full or fails.
    pub fn write(&self, what: &'static str, name: &[u8], bytes: &[u8]) -> io::Result<()> {
        let mode = self.lock().mode;
        self.recorder.note(what, &[self.machine as u64], &[name, bytes].concat());
        if mode.full && !bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if mode.failing { Err(io::Error::other("the drive fails (EIO)")) } else { Ok(()) }
    }

    /// Forgets the stores under a folder.
    pub fn forget(&self, path: &Path) {
        self.lock().stores.retain(|dir, _| !dir.starts_with(path));
    }

    /// Settles what was under way when the daemon, or with a power cut the machine, ended.
    pub fn crash(&self, power_cut: bool) {
        let mut state = self.lock();
        let State { stores, draw, mode } = &mut *state;
        for stored in stores.values_mut() {
            stored.settle(power_cut, |n| draw.within(0..=n));
            match mode.flaw {
                Some(Flaw::ForgetfulVote) => drop(stored.durable.meta.remove(&MetaKey::Vote)),
                Some(Flaw::AlteredEntry) => stored.alter(),
                _ => {}
            }
        }
    }

    fn sync_takes(&self) -> Duration {
        let mut state = self.lock();
        let range = state.mode.sync_us_min..=state.mode.sync_us_max;
        Duration::from_micros(state.draw.within(range))
    }

    /// Makes a batch durable, unless it cannot be.
    fn finish(&self, dir: &Path, batch: &[Write]) -> Result<(), DiskError> {
        let mut state = self.lock();
        let mode = state.mode;
        let Some(stored) = state.stores.get_mut(dir) else {
            return Err(DiskError("the store's folder was removed".into()));
        };
        stored.in_flight.pop_front();
        let grows = batch.iter().any(|w| matches!(w, Write::Append { .. }));
        if mode.failing || (mode.full && grows) {
            // Nothing after it is written either.
            stored.in_flight.clear();
            let why = if mode.failing { "EIO" } else { "no space left on device" };
            return Err(DiskError(why.into()));
        }
        let notes = std::mem::take(&mut stored.notes);
        let notes: Vec<Write> = notes.into_iter().map(|(k, v)| Write::Meta(k, v)).collect();
        if mode.lies() {
            stored.lied.push_back([batch, &notes].concat());
        } else {
            stored.write(batch);
            stored.write(&notes);
        }
        drop(state);
        self.recorder.note("disk", &[self.machine as u64], &bytes_of(batch));
        Ok(())
    }

    fn catch_up(&self, dir: &Path) {
        if let Some(stored) = self.lock().stores.get_mut(dir) {
            let lied = std::mem::take(&mut stored.lied);
            lied.iter().for_each(|batch| stored.write(batch));
            let notes = std::mem::take(&mut stored.notes);
            stored.durable.meta.extend(notes);
        }
    }
}

/// The drive as one life of a daemon has it.
#[derive(Debug)]
pub struct SimDisks {
    drive: Arc<Drive>,
    scope: Scope,
}

impl SimDisks {
    /// Opens stores of a drive in tasks of a scope.
    pub fn new(drive: Arc<Drive>, scope: Scope) -> Self {
        Self { drive, scope }
    }
}

struct Job(Vec<Write>, Done);

/// An open log.
struct SimDisk {
    drive: Arc<Drive>,
    dir: PathBuf,
    jobs: mpsc::UnboundedSender<Job>,
}

impl Disk for SimDisk {
    fn commit(&self, batch: Vec<Write>, done: Done) {
        if let Some(stored) = self.drive.lock().stores.get_mut(&self.dir) {
            stored.in_flight.push_back(batch.clone());
        }
        if let Err(mpsc::error::SendError(Job(_, done))) = self.jobs.send(Job(batch, done)) {
            if let Some(stored) = self.drive.lock().stores.get_mut(&self.dir) {
                stored.in_flight.pop_back();
            }
            done(Err(DiskError("an earlier write failed".into())));
        }
    }

    fn note(&self, key: MetaKey, value: Vec<u8>) {
        if let Some(stored) = self.drive.lock().stores.get_mut(&self.dir) {
            stored.notes.insert(key, value);
        }
    }
}

/// Writes what is handed over, all that has gathered at a time, until a write fails or nobody is left to ask.
async fn write(drive: Arc<Drive>, dir: PathBuf, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut idle = LIE;
    loop {
        let first = match timeout(idle, jobs.recv()).await {
            Ok(Some(job)) => job,
            Ok(None) => break,
            Err(_) => {
                drive.catch_up(&dir);
                idle = Duration::from_secs(3_600);
                continue;
            }
        };
        let mut all = vec![first];
        all.extend(std::iter::from_fn(|| jobs.try_recv().ok()));
        let lies = drive.lock().mode.lies();
        if !lies {
            sleep(drive.sync_takes()).await;
        }
        idle = if lies { LIE } else { NOTE_MAX };
        let mut failed = false;
        for Job(batch, done) in all {
            let result = if failed {
                Err(DiskError("an earlier write failed".into()))
            } else {
                drive.finish(&dir, &batch)
            };
            failed |= result.is_err();
            done(result);
        }
        if failed {
            break;
        }
    }
    if let Some(stored) = drive.lock().stores.get_mut(&dir) {
        stored.open = false;
    }
}

impl Disks for SimDisks {
    fn open(&self, options: &SledOptions) -> Result<(Arc<dyn Disk>, Loaded), OpenError> {
        let (path, wanted) = (options.dir.clone(), options.owner.clone());
        let mut state = self.drive.lock();
        if state.mode.failing {
            return Err(OpenError::Io { path, source: io::Error::other("the drive fails (EIO)") });
        }
        let full = state.mode.full;
        let stored = state.stores.entry(path.clone()).or_default();
        if stored.open {
            return Err(OpenError::InUse(path));
        }
        if stored.retired.contains(&wanted) {
            return Err(OpenError::Retired { path, owner: wanted });
        }
        match &stored.owner {
            Some(found) if *found != wanted && !stored.retired.contains(found) => {
                return Err(OpenError::Foreign { path, found: found.clone(), wanted });
            }
            Some(found) if *found != wanted => stored.durable = Loaded::default(),
            None if full => {
                return Err(OpenError::Io { path, source: io::ErrorKind::StorageFull.into() });
            }
            _ => {}
        }
        stored.owner = Some(wanted);
        stored.open = true;
        let loaded = stored.durable.clone();
        drop(state);
        let (jobs, queue) = mpsc::unbounded_channel();
        self.scope.spawn("drive", write(self.drive.clone(), path.clone(), queue));
        Ok((Arc::new(SimDisk { drive: self.drive.clone(), dir: path, jobs }), loaded))
    }

    fn snapshots(&self, dir: &Path) -> Result<Snapshots, SnapshotError> {
        let store = dir.parent().unwrap_or(dir).to_owned();
        Ok(Snapshots::on(Arc::new(SimSnapshots { drive: self.drive.clone(), store })))
    }

    fn put_aside(&self, options: &SledOptions, why: String) -> OpenError {
        let mut state = self.drive.lock();
        let stored = state.stores.entry(options.dir.clone()).or_default();
        stored.retired.insert(options.owner.clone());
        (stored.durable, stored.snapshots) = (Loaded::default(), BTreeMap::new());
        OpenError::Damaged { why, quarantine: options.dir.join("quarantine-1") }
    }

    fn is_in_use(&self, dir: &Path) -> bool {
        self.drive.lock().stores.get(dir).is_some_and(|s| s.open)
    }

    fn is_put_aside(&self, dir: &Path, owner: &str) -> io::Result<bool> {
        Ok(self.drive.lock().stores.get(dir).is_some_and(|s| s.retired.contains(owner)))
    }
}

/// A store's snapshots.
#[derive(Debug)]
struct SimSnapshots {
    drive: Arc<Drive>,
    store: PathBuf,
}

impl SimSnapshots {
    fn error(&self, name: &str, source: io::Error) -> SnapshotError {
        SnapshotError::Io { path: self.store.join("snap").join(name), source }
    }
}

impl SnapshotFiles for SimSnapshots {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), SnapshotError> {
        let written = self.drive.write("snapshot", name.as_bytes(), bytes);
        written.map_err(|e| self.error(name, e))?;
        let mut state = self.drive.lock();
        let stored = state.stores.entry(self.store.clone()).or_default();
        stored.snapshots.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn get(&self, name: &str) -> Result<Vec<u8>, SnapshotError> {
        let state = self.drive.lock();
        let found = state.stores.get(&self.store).and_then(|s| s.snapshots.get(name)).cloned();
        found.ok_or_else(|| self.error(name, io::ErrorKind::NotFound.into()))
    }

    fn names(&self) -> Result<Vec<String>, SnapshotError> {
        let state = self.drive.lock();
        let stored = state.stores.get(&self.store);
        Ok(stored.map(|s| s.snapshots.keys().cloned().collect()).unwrap_or_default())
    }

    fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        if let Some(stored) = self.drive.lock().stores.get_mut(&self.store) {
            stored.snapshots.remove(name);
        }
        Ok(())
    }
}
