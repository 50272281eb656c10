//! Exchanges whereabouts with other nodes: directly, outside Raft. Shell.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use raft_store::model::NodeId;
use raft_store::plan::quorum_needs;
use raft_store::raft::{Store, TransportError};
use raft_store::rt::{self, sleep};
use tokio::time::Instant;
use uuid::Uuid;

use crate::agent::Shared;
use crate::config::Config;
use crate::env::{Env, Wire};
use crate::frames::{self, Gossip};
use crate::own::OwnHandle;
use crate::transport::{NodeTransport, SharedBook};
use crate::trips::{Trips, undecided_fellows};
use crate::whereabouts::Record;

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

/// What asking a node came to, and how long it took.
type Asked<'r> = (Result<(u32, Bytes), TransportError>, &'r Record, Duration);

/// Says whose whereabouts are kept: not those of removed nodes, or else fellows that still have them would bring them back, and
/// books would differ for ever. A newcomer may be known before it is in the state that this node has.
pub(crate) fn keeps<W: Wire>(store: &Store<NodeTransport<W>>) -> impl Fn(Uuid) -> bool {
    let state = store.state();
    let voters = store.status().voters.iter().copied().map(NodeId).collect();
    move |uuid| {
        let removed = state.fleet.is_some() && state.is_retired(uuid);
        !removed || quorum_needs(&state, &voters, uuid)
    }
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
        let mut told: Option<(Instant, Vec<Record>)> = None;
        let mut quick = 0;
        loop {
            let mut news = self.look_at_self();
            let records = self.book.lock().records();
            let fellows = undecided_fellows(&self.store.state(), NodeId(self.me.node));
            let restless = told.as_ref().is_none_or(|(_, before)| *before != records)
                || self.store.leader().is_none()
                || fellows.is_some();
            if restless || told.as_ref().is_none_or(|(at, _)| rt::elapsed(*at) >= QUIET) {
                // What comes back with the answers differs from this, and is told on in the next round.
                told = Some((rt::now(), records));
                news |= self.exchange(round, fellows.as_ref(), restless).await;
                round = round.wrapping_add(1);
            }
            if news && let Err(e) = self.book.lock().save(self.env.files()) {
                tracing::warn!(error = %e, "whereabouts could not be saved");
            }
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

    /// Asks some nodes what they know. Everybody is told `all` that is known here where that is wanted; else only what
    /// differs in the end, since in a fleet at rest all know the same.
    async fn exchange(
        &mut self,
        round: usize,
        fellows: Option<&BTreeSet<NodeId>>,
        all: bool,
    ) -> bool {
        let (records, digest, hints) = {
            let keeps = keeps(&self.store);
            let mut book = self.book.lock();
            book.retain(keeps);
            (book.records(), book.digest(), book.hints().to_vec())
        };
        let told = if all { records.clone() } else { vec![self.me.clone()] };
        let body = frames::encode(&Gossip { records: told, digest });
        let chosen = self.choose(&records, round, fellows);
        // Without a leader a record may be of yesterday, and its address another node's by now.
        let lost = self.store.leader().is_none();
        let worth = |h: &&SocketAddr| lost || !records.iter().any(|r| r.addresses.contains(h));
        let wire = self.env.wire();
        let hinted = hints.iter().filter(worth).map(|h| {
            let (wire, body) = (wire.clone(), body.clone());
            async move { wire.call_at(*h, (frames::kind::GOSSIP, body), DEADLINE).await }
        });
        let (asked, hinted) = futures::join!(self.ask(&chosen, &body), join_all(hinted));
        for (answer, fellow, took) in &asked {
            if answer.is_ok() {
                self.trips.note(NodeId(fellow.node), *took);
            }
        }
        let mut news = self.hear_refusals(&asked);
        let mut differing = Vec::new();
        for (answer, fellow, _) in asked {
            let Ok((_, body)) = answer else { continue };
            news |= self.hear(&body).is_some_and(|(news, digest)| {
                differing.push((fellow, digest));
                news
            });
        }
        for (_, body) in hinted.into_iter().flatten() {
            news |= self.hear(&body).is_some_and(|(news, _)| news);
        }
        if !all {
            news |= self.tell_rest(&differing).await;
        }
        news
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

    async fn ask<'r>(&self, whom: &[&'r Record], body: &Bytes) -> Vec<Asked<'r>> {
        let wire = self.env.wire();
        let asked = whom.iter().map(|r| {
            let (wire, body, began) = (wire.clone(), body.clone(), rt::now());
            async move {
                let message = (frames::kind::GOSSIP, body);
                let answer = wire.call(r.uuid, &r.addresses, message, DEADLINE).await;
                (answer, *r, rt::elapsed(began))
            }
        });
        join_all(asked).await
    }

    /// Notes whether others say that this node was removed; returns whether that is news.
    fn hear_refusals(&self, asked: &[Asked<'_>]) -> bool {
        let refused = |(answer, ..): &Asked<'_>| matches!(answer, Err(TransportError::Refused(why)) if why.contains("was removed from the fleet"));
        let news = asked.iter().any(refused) && self.book.lock().mark_removed();
        if news {
            tracing::warn!("others refuse this node: it was removed from the fleet");
        }
        let removed = self.book.lock().removed();
        self.own.update(|own| own.removed = removed);
        news
    }

    /// Takes in an answer; returns whether it was news, and the fingerprint of all that the other one knows.
    fn hear(&self, body: &[u8]) -> Option<(bool, u64)> {
        match frames::decode::<Gossip>(body) {
            Ok(g) => {
                let keeps = keeps(&self.store);
                let records = g.records.into_iter().filter(|r| keeps(r.uuid));
                Some((self.book.lock().merge(records), g.digest))
            }
            Err(e) => {
                tracing::warn!(error = %e, "whereabouts of a peer were not understood");
                None
            }
        }
    }

    /// Tells all to those who know something else, now that their answers are known here.
    async fn tell_rest(&self, answered: &[(&Record, u64)]) -> bool {
        let (records, digest) = {
            let book = self.book.lock();
            (book.records(), book.digest())
        };
        let behind = answered.iter().filter(|(_, theirs)| *theirs != digest);
        let behind: Vec<&Record> = behind.map(|(record, _)| *record).collect();
        if behind.is_empty() {
            return false;
        }
        let body = frames::encode(&Gossip { records, digest });
        let mut news = false;
        for (answer, ..) in self.ask(&behind, &body).await {
            news |= answer.is_ok_and(|(_, body)| self.hear(&body).is_some_and(|(news, _)| news));
        }
        news
    }
}
