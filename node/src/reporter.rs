//! Tells the leader each 100 ms how this node is, and at once when something changed. Shell.

use std::time::Duration;

use raft_store::model::NodeId;
use raft_store::raft::{Frame, Store, Transport as _};
use tokio::time::{Instant, sleep, timeout};

use crate::env::Wire;
use crate::frames::{self, Heard};
use crate::leader::LeaderHandle;
use crate::own::OwnHandle;
use crate::transport::NodeTransport;

/// Pause between two reports.
const PERIOD: Duration = Duration::from_millis(100);
/// A report that took longer is overtaken by the next one.
const DEADLINE: Duration = Duration::from_millis(400);

/// Reports until the daemon ends.
pub async fn run<W: Wire>(
    me: NodeId,
    store: Store<NodeTransport<W>>,
    transport: NodeTransport<W>,
    leader: LeaderHandle,
    own: OwnHandle,
) {
    let mut changes = own.subscribe();
    loop {
        let started = Instant::now();
        let status = store.status();
        let report = own.report(me, status.applied);
        match status.leader {
            Some(id) if id == me.0 => {
                leader.report(report).await;
            }
            Some(id) => {
                let frame = Frame { kind: frames::kind::REPORT, body: frames::encode(&report) };
                if let Ok(answer) = transport.call(id, frame, DEADLINE).await
                    && let Ok(heard) = frames::decode::<Heard>(&answer.body)
                    && !heard.leader
                {
                    tracing::debug!(leader = id, "the report reached a node that leads no more");
                }
            }
            None => {}
        }
        let left = PERIOD.saturating_sub(started.elapsed());
        // Woken early by a change; a lost sender means that the daemon ends.
        if let Ok(Ok(())) = timeout(left, changes.changed()).await {
            sleep(Duration::from_millis(5)).await;
        }
    }
}
