//! What several tests share: proposals, and a fleet of stores on an in-process wire that can be cut.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raft_store::apply::{Command, FoundFleet, NewNode, Outcome, Proposal};
use raft_store::disk::OpenError;
use raft_store::model::{PublicKey, RequestId, Sealed, Severity, State, UnixMillis};
use raft_store::raft::{
    Frame, Profile, ProposeError, Store, StoreConfig, StoreError, Transport, TransportError,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

pub(crate) const FLEET: Uuid = Uuid::from_u128(0xf1ee7);
/// Long enough for an election on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn uuid_of(id: u64) -> Uuid {
    Uuid::from_u128(0xa000 + u128::from(id))
}

fn proposal(request: Uuid, command: Command) -> Proposal {
    Proposal { request: RequestId(request), at: UnixMillis(1_000), by: "test".into(), command }
}

pub(crate) fn founding() -> Proposal {
    let key = PublicKey([1; 32]);
    let node =
        NewNode { uuid: uuid_of(1), name: "n1".parse().unwrap(), wireguard: key, sealing: key };
    proposal(
        FLEET,
        Command::FoundFleet(FoundFleet {
            id: FLEET,
            ca_cert: "certificate".into(),
            ca_key: Sealed(vec![1]),
            ipv4_pool: "10.90.0.0/16".parse().unwrap(),
            ula: "fd5e:1:2::/48".parse().unwrap(),
            voters: 3,
            network: "default".parse().unwrap(),
            node,
            key_box: Sealed(vec![2]),
        }),
    )
}

/// A write that can be told from all others: `number` is its request and its event's kind.
pub(crate) fn note(number: u64, padding: usize) -> Proposal {
    let command = Command::Note {
        kind: format!("test.{number}"),
        severity: Severity::Low,
        node: None,
        cluster: None,
        payload: json!({ "padding": "x".repeat(padding) }),
    };
    proposal(Uuid::from_u128(u128::from(number) + 1), command)
}

/// How often the note was applied.
pub(crate) fn times_applied(state: &State, number: u64) -> usize {
    let kind = format!("test.{number}");
    state.events.after(0).filter(|e| e.kind == kind).count()
}

#[derive(Default)]
struct Lan {
    stores: BTreeMap<u64, Store<Wire>>,
    cut: BTreeSet<(u64, u64)>,
    /// Answers to this many more frames of a kind get lost.
    lost_answers: BTreeMap<u32, u32>,
    carried: BTreeMap<u32, u64>,
    largest: usize,
    /// How long frames of more than 500 bytes are under way.
    slow: Duration,
}

/// One node's end of the wire.
#[derive(Clone)]
pub(crate) struct Wire {
    from: u64,
    lan: Arc<Mutex<Lan>>,
}

impl Transport for Wire {
    async fn call(
        &self,
        to: u64,
        frame: Frame,
        deadline: Duration,
    ) -> Result<Frame, TransportError> {
        let kind = frame.kind;
        let (target, slow) = {
            let mut lan = self.lan.lock().unwrap();
            *lan.carried.entry(kind).or_default() += 1;
            lan.largest = lan.largest.max(frame.body.len());
            let cut = lan.cut.contains(&(self.from, to));
            let slow = if frame.body.len() > 500 { lan.slow } else { Duration::ZERO };
            (lan.stores.get(&to).filter(|_| !cut).cloned(), slow)
        };
        let Some(target) = target else {
            return Err(TransportError::Unreachable("the wire is cut".into()));
        };
        let carried = async {
            sleep(slow).await;
            target.handle(self.from, frame).await
        };
        let answer = match timeout(deadline, carried).await {
            Err(_) => return Err(TransportError::Timeout(deadline)),
            Ok(Err(e)) => return Err(TransportError::Refused(e.to_string())),
            Ok(Ok(answer)) => answer,
        };
        let mut lan = self.lan.lock().unwrap();
        if lan.cut.contains(&(to, self.from)) {
            return Err(TransportError::Timeout(deadline));
        }
        if let Some(left) = lan.lost_answers.get_mut(&kind).filter(|left| **left > 0) {
            *left -= 1;
            return Err(TransportError::Timeout(deadline));
        }
        Ok(answer)
    }
}

/// Stores of one fleet, each with its own folder.
pub(crate) struct Fleet {
    dir: PathBuf,
    _temp: Option<TempDir>,
    lan: Arc<Mutex<Lan>>,
}

impl Fleet {
    /// An empty fleet.
    pub(crate) fn empty() -> Self {
        let temp = tempfile::tempdir().unwrap();
        Self { dir: temp.path().to_owned(), _temp: Some(temp), lan: Arc::default() }
    }

    /// A fleet whose folders lie in `dir`.
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), _temp: None, lan: Arc::default() }
    }

    /// A founded fleet in which nodes 1 to `voters` vote.
    pub(crate) async fn of(voters: u64) -> Self {
        let fleet = Self::empty();
        let first = fleet.start(1).await;
        first.found(uuid_of(1)).await.unwrap();
        first.propose(&founding(), PATIENCE).await.unwrap();
        for id in 2..=voters {
            fleet.start(id).await;
            first.add_learners([(id, uuid_of(id))].into()).await.unwrap();
        }
        first.set_voters((1..=voters).collect()).await.unwrap();
        fleet
    }

    pub(crate) fn dir(&self, id: u64) -> PathBuf {
        self.dir.join(format!("n{id}"))
    }

    pub(crate) fn wire(&self, id: u64) -> Wire {
        Wire { from: id, lan: self.lan.clone() }
    }

    /// Starts a node on whatever its disk holds.
    pub(crate) async fn start(&self, id: u64) -> Store<Wire> {
        match self.try_start(id).await {
            Ok(store) => store,
            Err(e) => panic!("node {id} does not start: {e}"),
        }
    }

    pub(crate) async fn try_start(&self, id: u64) -> Result<Store<Wire>, StoreError> {
        let config = StoreConfig { id, fleet: FLEET, profile: Profile::Lan };
        let dir = self.dir(id);
        let until = Instant::now() + PATIENCE;
        let store = loop {
            match Store::open(&dir, &config, self.wire(id)).await {
                // Its tasks of before may need a moment to let go of the lock.
                Err(StoreError::Open(OpenError::InUse(_))) if Instant::now() < until => {
                    sleep(Duration::from_millis(20)).await;
                }
                opened => break opened?,
            }
        };
        self.lan.lock().unwrap().stores.insert(id, store.clone());
        Ok(store)
    }

    /// Takes a node off the wire at once, and stops it.
    pub(crate) async fn kill(&self, id: u64) {
        let store = self.lan.lock().unwrap().stores.remove(&id);
        store.expect("it runs").stop().await;
    }

    pub(crate) fn store(&self, id: u64) -> Store<Wire> {
        self.lan.lock().unwrap().stores[&id].clone()
    }

    pub(crate) fn stores(&self) -> Vec<Store<Wire>> {
        self.lan.lock().unwrap().stores.values().cloned().collect()
    }

    /// Lets nothing pass from one node to another.
    pub(crate) fn cut(&self, from: u64, to: u64) {
        self.lan.lock().unwrap().cut.insert((from, to));
    }

    pub(crate) fn heal(&self) {
        self.lan.lock().unwrap().cut.clear();
    }

    pub(crate) fn lose_answers(&self, kind: u32, count: u32) {
        self.lan.lock().unwrap().lost_answers.insert(kind, count);
    }

    pub(crate) fn carried(&self, kind: u32) -> u64 {
        self.lan.lock().unwrap().carried.get(&kind).copied().unwrap_or_default()
    }

    /// Makes the wire slow for all but the smallest frames.
    pub(crate) fn slow_down(&self, by: Duration) {
        self.lan.lock().unwrap().slow = by;
    }

    /// The largest frame so far, in bytes.
    pub(crate) fn largest(&self) -> usize {
        self.lan.lock().unwrap().largest
    }

    /// Waits for a leader that a majority of the voters follows.
    pub(crate) async fn leader(&self) -> Store<Wire> {
        let found = eventually("a leader", || {
            self.stores().into_iter().find(|s| {
                let status = s.status();
                let acked = status.quorum_acked.is_some_and(|ago| ago < Duration::from_millis(500));
                status.leader == Some(status.id) && acked
            })
        });
        found.await
    }

    /// Waits until all running nodes have applied the same, at least `index`, and returns that state.
    pub(crate) async fn settled(&self, index: u64) -> Arc<State> {
        eventually("all nodes to have applied the same", || {
            let published: Vec<_> = self.stores().iter().map(Store::published).collect();
            let first = published.first()?;
            let same = published.iter().all(|p| p.index == first.index && p.state == first.state);
            (same && first.index >= index).then(|| first.state.clone())
        })
        .await
    }

    /// Writes through any running node, trying on over elections.
    pub(crate) async fn write(&self, via: &Store<Wire>, p: &Proposal) -> (u64, Outcome) {
        let until = Instant::now() + PATIENCE;
        loop {
            match via.propose(p, PATIENCE).await {
                Ok(done) => return done,
                Err(ProposeError::Stopped(e)) => panic!("{e}"),
                Err(e) => assert!(Instant::now() < until, "{e}"),
            }
        }
    }
}

/// Asks until there is an answer.
pub(crate) async fn eventually<R>(what: &str, ask: impl Fn() -> Option<R>) -> R {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "waited too long for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
