//! Tells the leader each 100 ms how this node is, and at once when something changed. Shell.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use raft_store::model::NodeId;
use raft_store::raft::{Frame, Store, Transport as _};
use raft_store::rt::{self, sleep, timeout};

use crate::env::{Env, Wire};
use crate::frames::{self, Heard};
use crate::leader::LeaderHandle;
use crate::own::OwnHandle;
use crate::transport::{NodeTransport, SharedBook};

/// Pause between two reports.
const PERIOD: Duration = Duration::from_millis(100);
/// A report that took longer is overtaken by the next one.
const DEADLINE: Duration = Duration::from_millis(400);

/// How long a daemon that ends looks for a leader to tell why.
const LAST_WORDS_MAX: Duration = Duration::from_secs(3);

/// How often it is checked, while a report is under way, whether its addressee still leads.
const LOOK: Duration = Duration::from_millis(20);

/// Reports until the daemon ends.
pub async fn run<E: Env>(
    env: Arc<E>,
    me: NodeId,
    store: Store<NodeTransport<E::Wire>>,
    transport: NodeTransport<E::Wire>,
    leader: LeaderHandle,
    own: OwnHandle,
) {
    let mut changes = own.subscribe();
    loop {
        let started = rt::now();
        let (leads, applied, asked) = (store.leader(), store.published().index, env.wall());
        let report = own.report(me, applied, asked);
        match leads {
            Some(id) if id == me.0 => {
                let heard = leader.report(report).await;
                own.hear(heard, (asked, env.wall()));
            }
            Some(id) => {
                let frame = Frame { kind: frames::kind::REPORT, body: frames::encode(&report) };
                let answer = tokio::select! {
                    biased;
                    answer = transport.call(id, frame, DEADLINE) => answer.ok(),
                    // A new leader counts this node's silence from its first moment on.
                    () = other_leader(&store, id) => None,
                };
                let heard = answer.and_then(|a| frames::decode::<Heard>(&a.body).ok());
                own.hear(heard.unwrap_or_default(), (asked, env.wall()));
            }
            None => {}
        }
        let left = PERIOD.saturating_sub(rt::elapsed(started));
        // Woken early by a change; a lost sender means that the daemon ends.
        if let Ok(Ok(())) = timeout(left, changes.changed()).await {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Tells whoever leads why this daemon is about to end: everybody known is asked, since Raft has stopped here, or never
/// started, and knows of no election.
pub async fn last_words<E: Env>(
    env: &E,
    (me, applied): (NodeId, u64),
    book: &SharedBook,
    own: &OwnHandle,
) {
    let until = rt::now() + LAST_WORDS_MAX;
    let (records, wire) = (book.lock().records(), env.wire());
    let body = frames::encode(&own.report(me, applied, env.wall()));
    while rt::now() < until {
        let calls = records.iter().filter(|r| r.node != me.0).map(|r| {
            wire.call(r.uuid, &r.addresses, (frames::kind::REPORT, body.clone()), DEADLINE)
        });
        let leads = |body: &Bytes| frames::decode::<Heard>(body).is_ok_and(|h| h.leader);
        if join_all(calls).await.into_iter().flatten().any(|(_, body)| leads(&body)) {
            return;
        }
        sleep(PERIOD).await;
    }
}

async fn other_leader<W: Wire>(store: &Store<NodeTransport<W>>, leader: u64) {
    while store.leader() == Some(leader) {
        sleep(LOOK).await;
    }
}
