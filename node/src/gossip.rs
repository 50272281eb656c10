//! Exchanges whereabouts with other nodes: directly, outside Raft. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use raft_store::model::NodeId;
use raft_store::plan::quorum_needs;
use raft_store::raft::{Store, TransportError};
use raft_store::rt::{self, sleep};
use uuid::Uuid;

use crate::agent::Shared;
use crate::config::Config;
use crate::env::{Env, Wire};
use crate::frames::{self, Gossip};
use crate::own::OwnHandle;
use crate::transport::{NodeTransport, SharedBook};
use crate::trips::{Trips, undecided_fellows};
use crate::whereabouts::{Book, Digests, Record};

/// Pause between two looks, and between two rounds while there is something to tell, to learn or to measure.
const PERIOD: Duration = Duration::from_secs(1);
/// Pause between two rounds while nothing is new: an idle fleet should cost next to nothing.
const QUIET: Duration = Duration::from_secs(5);
/// Pause before news is told on.
const SOON: Duration = Duration::from_millis(100);
/// How many rounds may follow each other that soon.
const QUICK: u32 = 2;
/// How long one exchange may take.
const DEADLINE: Duration = Duration::from_millis(2_500);
/// How many nodes are asked in one round.
const FAN_OUT: usize = 5;

/// Who is asked.
#[derive(Clone, Copy)]
enum Place<'r> {
    /// The node of a record, wherever that says it is.
    Node(&'r Record),
    /// Whoever is at an address.
    Address(SocketAddr),
}

/// What asking came to, and how long it took.
type Asked<'r> = (Result<(u32, Bytes), TransportError>, Place<'r>, Duration);

/// Says whose whereabouts are kept: not those of removed nodes, or else fellows that still have them would bring them back, and
/// books would differ for ever. A newcomer may be known before it is in the state that this node has.
pub(crate) fn keeps<W: Wire>(store: &Store<NodeTransport<W>>) -> impl Fn(Uuid) -> bool {
    let state = store.state();
    let voters = store.voters().into_iter().map(NodeId).collect();
    move |uuid| {
        let removed = state.fleet.is_some() && state.is_retired(uuid);
        !removed || quorum_needs(&state, &voters, uuid)
    }
}

/// Returns the records that were not, or not as new, among those `before`.
fn unknown(before: &[Record], records: &[Record]) -> Vec<Record> {
    let before: BTreeMap<Uuid, _> = before.iter().map(|r| (r.uuid, r.version())).collect();
    let known = |r: &&Record| before.get(&r.uuid) == Some(&r.version());
    records.iter().filter(|r| !known(r)).cloned().collect()
}

/// What the book said when it was told on last.
#[derive(Default)]
struct Told {
    digests: Digests,
    records: Vec<Record>,
}

impl Told {
    /// Returns what a book says now, and what of it is new; nothing where it says the same, which is seldom otherwise and costs no copy.
    fn news(&self, book: &Book) -> Option<(Self, Vec<Record>)> {
        if self.digests == *book.digests() {
            return None;
        }
        let now = Self { digests: book.digests().clone(), records: book.records() };
        let fresh = unknown(&self.records, &now.records);
        Some((now, fresh))
    }
}

/// Writes down what is new, whoever told it; what comes too soon after that is written by a later turn of the gossiper.
pub(crate) fn save(book: &mut Book, env: &impl Env) {
    if let Err(e) = book.save_news(env.files(), rt::now().into_std()) {
        tracing::warn!(error = %e, "whereabouts could not be saved");
    }
}

/// Takes in what another daemon told, and returns what that one lacks.
pub(crate) fn answer(book: &mut Book, gossip: Gossip, keeps: impl Fn(Uuid) -> bool) -> Gossip {
    let told: BTreeMap<Uuid, _> = gossip.records.iter().map(|r| (r.uuid, r.version())).collect();
    book.merge(gossip.records.into_iter().filter(|r| keeps(r.uuid)));
    let mut records = book.differing(&gossip.digests);
    records.retain(|r| told.get(&r.uuid) != Some(&r.version()));
    Gossip { records, digests: book.digests().clone() }
}

/// Keeps the book of addresses.
pub struct Gossiper<E: Env> {
    env: Arc<E>,
    book: SharedBook,
    store: Store<NodeTransport<E::Wire>>,
    me: Record,
    listen: u16,
    advertise: Vec<SocketAddr>,
    own: OwnHandle,
    trips: Trips,
}

impl<E: Env> Gossiper<E> {
    /// Makes the gossiper of the node with this identity; its record is newer than any that it wrote before.
    pub fn new(shared: &Shared<E>, (uuid, node): (Uuid, u64), config: &Config) -> Self {
        let (env, book, store) = (shared.env.clone(), shared.book.clone(), shared.store.clone());
        let before = book.lock().records().into_iter().find(|r| r.uuid == uuid);
        let incarnation = before.map_or(1, |r| r.incarnation.saturating_add(1)).max(env.wall().0);
        let addresses = Vec::new();
        let me = Record { uuid, node, incarnation, seq: 0, addresses };
        let advertise = config.advertise.clone();
        let listen = config.listen.port();
        let mut gossiper = Self {
            env,
            book,
            store,
            me,
            listen,
            advertise,
            own: shared.own.clone(),
            trips: Trips::default(),
        };
        gossiper.look_at_self();
        gossiper
    }

    /// Runs until the daemon ends.
    pub async fn run(mut self) {
        let mut round = 0usize;
        let (mut told, mut told_at) = (Told::default(), None);
        let mut quick = 0;
        loop {
            let mut news = self.look_at_self();
            let (now, fresh) = told.news(&self.book.lock()).unzip();
            let fresh = fresh.unwrap_or_default();
            let fellows = undecided_fellows(&self.store.state(), NodeId(self.me.node));
            let restless = !fresh.is_empty() || self.store.leader().is_none() || fellows.is_some();
            if restless || told_at.is_none_or(|at| rt::elapsed(at) >= QUIET) {
                // What comes back with the answers differs from this, and is told on in the next round.
                (told, told_at) = (now.unwrap_or(told), Some(rt::now()));
                news |= self.exchange(round, fellows.as_ref(), fresh).await;
                round = round.wrapping_add(1);
            }
            save(&mut self.book.lock(), &*self.env);
            let trips = self.trips.end_round(fellows.as_ref());
            self.own.update(|own| own.trips = trips);
            // News is told on at once, but a join storm is not answered by one of rounds.
            quick = if news && quick < QUICK { quick + 1 } else { 0 };
            sleep(if quick > 0 { SOON } else { PERIOD }).await;
        }
    }

    fn own_addresses(&self) -> Vec<SocketAddr> {
        if !self.advertise.is_empty() {
            return self.advertise.clone();
        }
        let state = self.store.state();
        let overlay = |ip: &std::net::IpAddr| {
            state.networks.values().any(|n| match ip {
                std::net::IpAddr::V4(v4) => n.v4.contains(v4),
                std::net::IpAddr::V6(v6) => n.v6.contains(v6),
            })
        };
        let hosts = self.env.addresses().into_iter().filter(|ip| !overlay(ip));
        hosts.map(|ip| SocketAddr::new(ip, self.listen)).collect()
    }

    fn look_at_self(&mut self) -> bool {
        let addresses = self.own_addresses();
        // Peers remember a later life of this node: its book was lost and its clock is behind.
        if let Some(newer) = self.book.lock().newer_than(&self.me) {
            self.me.incarnation = newer.saturating_add(1);
            self.me.seq = 0;
        }
        if addresses == self.me.addresses && self.me.seq > 0 {
            return false;
        }
        self.me.seq += 1;
        self.me.addresses = addresses;
        self.book.lock().merge([self.me.clone()])
    }

    /// Asks some nodes what they know. They are told what is `fresh` here, and what they lack besides once that is known.
    async fn exchange(
        &mut self,
        round: usize,
        fellows: Option<&BTreeSet<NodeId>>,
        fresh: Vec<Record>,
    ) -> bool {
        let (records, digests, hints) = {
            let keeps = keeps(&self.store);
            let mut book = self.book.lock();
            book.retain(keeps);
            (book.records(), book.digests().clone(), book.hints().to_vec())
        };
        let told = if fresh.is_empty() { vec![self.me.clone()] } else { fresh };
        let body = frames::encode(&Gossip { records: told, digests });
        let chosen = self.choose(&records, round, fellows);
        // Without a leader a record may be of yesterday, and its address another node's by now.
        let lost = self.store.leader().is_none();
        let worth = |h: &&SocketAddr| lost || !records.iter().any(|r| r.addresses.contains(h));
        let hinted = hints.iter().filter(worth).map(|at| Place::Address(*at));
        let chosen = chosen.into_iter().map(Place::Node).chain(hinted);
        let asked = self.ask(chosen.map(|place| (place, body.clone()))).await;
        for (answer, place, took) in &asked {
            if let (Ok(_), Place::Node(fellow)) = (answer, place) {
                self.trips.note(NodeId(fellow.node), *took);
            }
        }
        let mut news = self.hear_refusals(&asked);
        let mut differing = Vec::new();
        for (answer, place, _) in asked {
            if let Some((told, digests)) = answer.ok().and_then(|(_, body)| self.hear(&body)) {
                news |= told;
                differing.push((place, digests));
            }
        }
        news | self.tell_rest(differing).await
    }

    /// Whose turn it is, and besides those to whom the way is being measured.
    fn choose<'r>(
        &self,
        records: &'r [Record],
        round: usize,
        fellows: Option<&BTreeSet<NodeId>>,
    ) -> Vec<&'r Record> {
        let others: Vec<&Record> = records.iter().filter(|r| r.uuid != self.me.uuid).collect();
        let first = round.wrapping_mul(FAN_OUT) % others.len().max(1);
        let turn = others.iter().copied().cycle().skip(first).take(FAN_OUT.min(others.len()));
        let mut chosen: Vec<&Record> = turn.collect();
        let measured = |r: &&&Record| fellows.into_iter().flatten().any(|id| id.0 == r.node);
        for fellow in others.iter().filter(measured) {
            if !chosen.iter().any(|c| c.uuid == fellow.uuid) {
                chosen.push(fellow);
            }
        }
        chosen
    }

    async fn ask<'r>(&self, whom: impl Iterator<Item = (Place<'r>, Bytes)>) -> Vec<Asked<'r>> {
        let wire = self.env.wire();
        let asked = whom.map(|(place, body)| {
            let (wire, began) = (wire.clone(), rt::now());
            async move {
                let message = (frames::kind::GOSSIP, body);
                let answer = match place {
                    Place::Node(r) => wire.call(r.uuid, &r.addresses, message, DEADLINE).await,
                    Place::Address(at) => wire.call_at(at, message, DEADLINE).await,
                };
                (answer, place, rt::elapsed(began))
            }
        });
        join_all(asked).await
    }

    /// Notes whether others say that this node was removed; returns whether that is news.
    fn hear_refusals(&self, asked: &[Asked<'_>]) -> bool {
        let refused = |asked: &Asked<'_>| match asked {
            (Err(TransportError::Refused(why)), Place::Node(_), _) => {
                why.contains("was removed from the fleet")
            }
            _ => false,
        };
        let news = asked.iter().any(refused) && self.book.lock().mark_removed();
        if news {
            tracing::warn!("others refuse this node: it was removed from the fleet");
        }
        let removed = self.book.lock().removed();
        self.own.update(|own| own.removed = removed);
        news
    }

    /// Takes in an answer; returns whether it was news, and the fingerprints of all that the other one knows.
    fn hear(&self, body: &[u8]) -> Option<(bool, Digests)> {
        match frames::decode::<Gossip>(body) {
            Ok(g) => {
                let keeps = keeps(&self.store);
                let records = g.records.into_iter().filter(|r| keeps(r.uuid));
                Some((self.book.lock().merge(records), g.digests))
            }
            Err(e) => {
                tracing::warn!(error = %e, "whereabouts of a peer were not understood");
                None
            }
        }
    }

    /// Tells those who know something else what they lack, now that their answers are known here.
    async fn tell_rest(&self, answered: Vec<(Place<'_>, Digests)>) -> bool {
        let answered = answered.into_iter();
        let behind = answered.filter_map(|(place, theirs)| Some((place, self.rest(&theirs)?)));
        let mut news = false;
        for (answer, ..) in self.ask(behind).await {
            let heard = answer.ok().and_then(|(_, body)| self.hear(&body));
            news |= heard.is_some_and(|(told, _)| told);
        }
        news
    }

    /// What somebody lacks whose fingerprints these are, if anything.
    fn rest(&self, theirs: &Digests) -> Option<Bytes> {
        let book = self.book.lock();
        let records = book.differing(theirs);
        let digests = || book.digests().clone();
        (!records.is_empty()).then(|| frames::encode(&Gossip { records, digests: digests() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(node: u64, seq: u64) -> Record {
        let addresses = vec!["10.0.0.1:7443".parse().unwrap()];
        Record { uuid: Uuid::from_u128(node.into()), node, incarnation: 1, seq, addresses }
    }

    fn book(records: &[Record]) -> Book {
        let mut book = Book::default();
        book.merge(records.to_vec());
        book
    }

    #[test]
    fn whoever_asks_is_told_what_it_lacks_and_no_more() {
        let (old, new, other) = (record(1, 1), record(1, 2), record(2, 1));
        let theirs = book(&[old.clone(), record(3, 1)]);
        let ask = |records: &[Record]| Gossip {
            records: records.to_vec(),
            digests: theirs.digests().clone(),
        };
        let mut ours = book(&[new.clone(), other.clone(), record(3, 1)]);
        let told = answer(&mut ours, ask(&[old]), |_| true);
        assert_eq!(told.records, [new.clone(), other.clone()]);
        // What was told is news here, and is not told back; who was removed is not taken in.
        let news = record(4, 1);
        let told = answer(&mut ours, ask(std::slice::from_ref(&news)), |_| true);
        assert!(!told.records.contains(&news) && ours.records().contains(&news));
        answer(&mut ours, ask(&[record(5, 1)]), |uuid| uuid != Uuid::from_u128(5));
        assert!(!ours.records().contains(&record(5, 1)));
        let same = Gossip { records: Vec::new(), digests: ours.digests().clone() };
        assert!(answer(&mut ours, same, |_| true).records.is_empty());
    }

    #[test]
    fn what_is_new_or_newer_is_unknown() {
        let before = [record(1, 1), record(2, 1)];
        let now = [record(1, 2), record(2, 1), record(3, 1)];
        assert_eq!(unknown(&before, &now), [record(1, 2), record(3, 1)]);
        assert!(unknown(&now, &now).is_empty());
    }
}
