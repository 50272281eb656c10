//! Where VIPs should go: away from lost, draining and unready holders, never to a worse one. Pure.

use std::time::{Duration, Instant};

use serde_json::json;

use super::liveness::{Health, Liveness, Report};
use crate::apply::Command;
use crate::model::{
    ClusterStatus, DrainStep, MoveReason, NextHolder, Node, NodeId, Severity, State, Vip,
};

/// A holder whose API has not been ready for this long loses the VIP to one that is.
pub(super) const UNREADY: Duration = Duration::from_secs(3);

const FAILED_KIND: &str = "system.sdwan.virtual_ip.failover_failed";

/// A server and whether it could hold a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The server.
    pub node: NodeId,
    /// Why not; absent if it could.
    pub reason: Option<String>,
}

/// Lists a VIP's possible holders in join order, each with the reason that excludes it.
pub fn candidates(state: &State, vip: &Vip, seen: &Liveness, now: Instant) -> Vec<Candidate> {
    let servers = state.servers(vip.cluster).into_iter();
    servers
        .map(|(node, _)| Candidate { node: node.id, reason: refusal(state, vip, node, seen, now) })
        .collect()
}

fn refusal(state: &State, vip: &Vip, node: &Node, seen: &Liveness, now: Instant) -> Option<String> {
    let report = seen.seen(node.id).map(|s| &s.report);
    unfit(state, vip, node, seen.health(node.id, now), report)
}

/// Says why a server could not hold a VIP, as a phrase; nothing if it could.
pub fn unfit(
    state: &State,
    vip: &Vip,
    node: &Node,
    health: Health,
    report: Option<&Report>,
) -> Option<String> {
    if let Err(reason) = state.candidacy(vip, node) {
        return Some(reason);
    }
    let report = match (health, report) {
        (Health::Unknown, _) | (Health::Live, None) => {
            return Some("has not been heard of yet".into());
        }
        (Health::Lost, _) => return Some("is not heard of".into()),
        (Health::Live, Some(report)) => report,
    };
    if let Some(why) = &report.overlay {
        return Some(format!("its overlay is not in place: {why}"));
    }
    match report.api_ready {
        Some(true) => None,
        Some(false) => {
            let detail = report.api_detail.as_deref().unwrap_or("no detail");
            Some(format!("its API server is not ready: {detail}"))
        }
        None => Some("has not said yet whether its API server is ready".into()),
    }
}

/// Returns the best server for a VIP apart from its holder: the first in join order that could hold it.
pub fn best_candidate(state: &State, vip: &Vip, seen: &Liveness, now: Instant) -> Option<NodeId> {
    candidates(state, vip, seen, now)
        .into_iter()
        .find(|c| c.reason.is_none() && vip.holder != Some(c.node))
        .map(|c| c.node)
}

/// How a holder stands.
enum Standing {
    Fine,
    Unknown,
    Must(MoveReason),
    Should(MoveReason),
}

fn standing(state: &State, vip: &Vip, holder: NodeId, seen: &Liveness, now: Instant) -> Standing {
    let Some(node) = state.nodes.get(&holder) else {
        return Standing::Must(MoveReason::Loss);
    };
    match seen.health(holder, now) {
        Health::Unknown => return Standing::Unknown,
        Health::Lost => return Standing::Must(MoveReason::Loss),
        Health::Live => {}
    }
    if node.server_in(vip.cluster).is_none() {
        return Standing::Should(MoveReason::Drain);
    }
    let drain = node.drain.as_ref();
    if drain.is_some_and(|d| d.step >= DrainStep::MoveVip) {
        return Standing::Should(MoveReason::Drain);
    }
    let unready = seen.seen(holder).and_then(|s| s.unready_since);
    if unready.is_some_and(|since| now.saturating_duration_since(since) >= UNREADY) {
        return Standing::Should(MoveReason::Unready);
    }
    Standing::Fine
}

/// Decides one VIP's next command.
///
/// A loss moves it at once. A planned move is made before broken: the next holder prepares, and gets
/// the VIP when it has said that the address is on its device.
pub(super) fn plan_vip(state: &State, vip: &Vip, seen: &Liveness, now: Instant) -> Option<Command> {
    let holder = vip.holder?;
    // The VIP of a cluster that ends goes with it.
    let ends = |c: &crate::model::Cluster| c.status == ClusterStatus::Decommissioning;
    if state.clusters.get(&vip.cluster).is_some_and(ends) {
        return None;
    }
    let (expect, id) = (vip.generation, vip.id);
    let eligible = |node: NodeId| {
        state.nodes.get(&node).is_some_and(|n| refusal(state, vip, n, seen, now).is_none())
    };
    let next = vip.next.filter(|n| eligible(n.node));
    let best = || best_candidate(state, vip, seen, now);
    let lost = matches!(standing(state, vip, holder, seen, now), Standing::Must(_));
    let unheard = |n: NextHolder| seen.health(n.node, now) == Health::Unknown;
    if !lost && vip.next.is_some_and(unheard) {
        return None;
    }
    match standing(state, vip, holder, seen, now) {
        Standing::Unknown => None,
        Standing::Must(reason) => match next.map(|n| n.node).or_else(best) {
            Some(to) => Some(Command::MoveVip { vip: id, expect, to, reason }),
            None => no_candidate(state, vip, reason, seen, now),
        },
        Standing::Should(reason) => match (next, best()) {
            (Some(next), _) => prepared(vip, next.node, seen).then_some(Command::MoveVip {
                vip: id,
                expect,
                to: next.node,
                reason: next.reason,
            }),
            (None, Some(to)) => Some(Command::PrepareVip { vip: id, expect, to, reason }),
            // An unready holder without a better one keeps the VIP silently: it may recover.
            (None, None) if reason == MoveReason::Unready => None,
            (None, None) => no_candidate(state, vip, reason, seen, now),
        },
        Standing::Fine => match (vip.next, next) {
            (_, Some(next)) => prepared(vip, next.node, seen).then_some(Command::MoveVip {
                vip: id,
                expect,
                to: next.node,
                reason: next.reason,
            }),
            // The planned holder is no longer eligible: preparing the present one cancels the plan.
            (Some(planned), None) => {
                Some(Command::PrepareVip { vip: id, expect, to: holder, reason: planned.reason })
            }
            (None, None) => None,
        },
    }
}

fn prepared(vip: &Vip, node: NodeId, seen: &Liveness) -> bool {
    let vips = seen.seen(node).map(|s| s.report.vips.as_slice()).unwrap_or_default();
    vips.iter().any(|p| p.vip == vip.id && p.generation == vip.generation)
}

/// Says once per generation that nobody can take the VIP.
fn no_candidate(
    state: &State,
    vip: &Vip,
    reason: MoveReason,
    seen: &Liveness,
    now: Instant,
) -> Option<Command> {
    let may_yet_speak = |n: &Node| seen.health(n.id, now) == Health::Unknown;
    if state.servers(vip.cluster).iter().any(|(n, _)| may_yet_speak(n)) {
        return None;
    }
    let told = state.events.after(0).rev().any(|e| {
        e.kind == FAILED_KIND
            && e.payload["vip"] == vip.name.as_str()
            && e.payload["generation"] == vip.generation.0
    });
    (!told).then(|| Command::Note {
        kind: FAILED_KIND.into(),
        severity: Severity::Critical,
        node: vip.holder,
        cluster: Some(vip.cluster),
        payload: json!({
            "vip": vip.name, "generation": vip.generation, "reason": reason,
            "why": "no other server can hold it",
        }),
    })
}
