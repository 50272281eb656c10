//! Drains: emptying a node step by step, with the guards that replicated facts allow. Pure.

use serde_json::json;

use super::command::Change;
use super::reject::{RejectCode, Rejection};
use super::{Applied, Context};
use crate::model::{
    Assignment, ClusterId, Drain, DrainStep, MoveReason, Name, NextHolder, Node, NodeId, Phase,
    Severity, State,
};

impl Context<'_> {
    pub(super) fn drain(
        &mut self,
        name: &Name,
        stop: bool,
        timeout_ms: u64,
        force: bool,
    ) -> Applied {
        let id = self.node_id(name)?;
        if let Some(running) = self.state.node_mut(id).and_then(|n| n.drain.as_mut())
            && (running.stop || !stop)
        {
            // Asked again, it is the same drain; whoever asks may hurry it.
            running.force |= force;
            running.timeout_ms = timeout_ms;
            return Ok(Change::Drain { epoch: running.epoch });
        }
        if !force {
            drain_guard(self.state, id, stop, &|_| true)?;
        }
        let first = DrainStep::Cordon;
        let drain = Drain {
            epoch: self.index,
            stop,
            force,
            timeout_ms,
            step: first,
            message: None,
            since: self.at,
        };
        if let Some(node) = self.state.node_mut(id) {
            node.drain = Some(drain);
        }
        let cluster = self.state.nodes[&id].assignment.as_ref().and_then(|a| a.cluster);
        self.emit("system.instance.drain_initiated", Severity::Medium, Some(id), cluster, json!({
            "instance": name, "timeout_s": timeout_ms / 1000, "stop": stop, "initiator": self.by, "force": force,
        }));
        Ok(Change::Drain { epoch: self.index })
    }

    pub(super) fn report_drain(
        &mut self,
        id: NodeId,
        epoch: u64,
        step: DrainStep,
        done: bool,
        message: Option<&str>,
    ) -> Applied {
        let must_move = self.must_move_vip(id);
        let Some(node) = self.state.node_mut(id) else {
            return Ok(Change::Nothing);
        };
        let (name, cluster) = (node.name.clone(), node.assignment.as_ref().and_then(|a| a.cluster));
        let Some(drain) = node.drain.as_mut().filter(|d| d.epoch == epoch && d.step == step) else {
            return Ok(Change::Nothing);
        };
        drain.message = message.map(str::to_owned);
        if !done || (step == DrainStep::MoveVip && must_move) {
            return Ok(Change::Nothing);
        }
        drain.step = step.next(drain.stop);
        if drain.step == DrainStep::Done && step != DrainStep::Done {
            let (stop, ms) = (drain.stop, self.at.0.saturating_sub(drain.since.0));
            self.emit(
                "system.instance.drained",
                Severity::Medium,
                Some(id),
                cluster,
                json!({
                    "instance": name, "stopped": stop, "ms": ms, "message": message,
                }),
            );
        }
        Ok(Change::Nothing)
    }

    /// Tells whether a drained node holds a VIP that it must still get rid of.
    ///
    /// A drain that was forced gives up on it when nobody can take it, or when its time is over.
    fn must_move_vip(&self, id: NodeId) -> bool {
        let Some(drain) = self.state.nodes.get(&id).and_then(|n| n.drain.as_ref()) else {
            return false;
        };
        let overdue = self.at >= drain.since.plus(drain.timeout_ms);
        let mut held = self.state.vips.values().filter(|v| v.holder == Some(id));
        held.any(|v| {
            let mut nodes = self.state.nodes.values();
            let taker = nodes.any(|n| n.id != id && self.state.candidacy(v, n).is_ok());
            !drain.force || (taker && !overdue)
        })
    }

    pub(super) fn undrain(&mut self, name: &Name) -> Applied {
        let id = self.node_id(name)?;
        let Some(node) = self.state.node_mut(id) else {
            return Ok(Change::Nothing);
        };
        if node.drain.take().is_none() {
            return Ok(Change::Nothing);
        }
        let cluster = node.assignment.as_ref().and_then(|a| a.cluster);
        // What it holds still, it keeps; what it has given away does not come back.
        for vip in self.state.vips.values_mut() {
            let keep = |n: &NextHolder| n.reason != MoveReason::Drain;
            if vip.holder == Some(id) {
                vip.next = vip.next.filter(keep);
            }
        }
        self.emit(
            "system.instance.undrained",
            Severity::Low,
            Some(id),
            cluster,
            json!({
                "instance": name, "initiator": self.by,
            }),
        );
        Ok(Change::Nothing)
    }
}

/// Tells whether a drain would break its cluster: no holder left for the VIP, or etcd without quorum.
///
/// `live` adds what only the leader sees; replicated facts alone are judged with `|_| true`.
///
/// # Errors
/// When the drain must be refused unless it is forced.
pub fn drain_guard(
    state: &State,
    id: NodeId,
    stop: bool,
    live: &dyn Fn(NodeId) -> bool,
) -> Result<(), Rejection> {
    let Some(node) = state.nodes.get(&id) else {
        return Ok(());
    };
    let Some(cluster) = node.assignment.as_ref().and_then(|a| a.cluster) else {
        return Ok(());
    };
    if node.server_in(cluster).is_none() {
        return Ok(());
    }
    let what = format!("node {} was not drained", node.name);
    let force = format!("skein drain {} --force", node.name);
    let vip = state.vips.values().find(|v| v.cluster == cluster && v.holder == Some(id));
    if let Some(vip) = vip {
        let candidate = |n: &Node| n.id != id && live(n.id) && state.candidacy(vip, n).is_ok();
        if !state.nodes.values().any(|n| candidate(n)) {
            let why = format!(
                "it holds VIP {} and no other server can take it: the API would be gone",
                vip.name
            );
            return Err(Rejection::new(
                RejectCode::Guarded,
                what,
                why,
                format!("add a server, or accept the outage: {force}"),
            ));
        }
    }
    let own =
        |n: &Node, network| n.networks.get(&network).map(|a| [a.v6.to_string(), a.v4.to_string()]);
    let fixed = state.clusters.get(&cluster).filter(|c| c.vip.is_none() && stop);
    let endpoint = fixed.and_then(|c| Some((c.endpoint.as_deref()?, own(node, c.network)?)));
    if let Some((url, addresses)) = endpoint
        && addresses.iter().any(|a| endpoint_host(url) == a)
    {
        let why = format!("the cluster has no VIP and its endpoint is this server: {url}");
        let next = format!("drain without --stop, or accept the outage: {force} --stop");
        return Err(Rejection::new(RejectCode::Guarded, what, why, next));
    }
    if stop {
        let (running, needed) = quorum_after(state, cluster, id, live);
        if running < needed {
            let why = format!("etcd needs {needed} running server(s) and would have {running}");
            return Err(Rejection::new(
                RejectCode::Guarded,
                what,
                why,
                format!("drain without --stop, or accept the outage: {force} --stop"),
            ));
        }
    }
    Ok(())
}

/// Returns the host of an endpoint's URL, without the brackets of IPv6 (RFC 3986, section 3.2.2).
fn endpoint_host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((v6, _)) => v6,
        None => rest.split([':', '/']).next().unwrap_or_default(),
    }
}

/// Tells whether a server's unassignment would leave its cluster's etcd without a quorum.
///
/// A server that leaves is taken out of etcd's members first, which takes a quorum of those that stay.
///
/// # Errors
/// When the unassignment must be refused unless it is forced.
pub fn unassign_guard(
    state: &State,
    id: NodeId,
    live: &dyn Fn(NodeId) -> bool,
) -> Result<(), Rejection> {
    let Some(node) = state.nodes.get(&id) else { return Ok(()) };
    let Some(cluster) = state.cluster_of(node).filter(|c| node.server_in(c.id).is_some()) else {
        return Ok(());
    };
    let members = in_etcd(state, cluster.id);
    let staying = members.iter().filter(|(n, _)| n.id != id).count();
    let (running, _) = quorum_after(state, cluster.id, id, live);
    let needed = staying / 2 + 1;
    if staying == members.len() || staying == 0 || running >= needed {
        return Ok(());
    }
    let why = format!(
        "of the {staying} server(s) that would stay {running} answer(s), and etcd needs {needed}"
    );
    let next = format!("bring the others back first, or skein node unassign {} --force", node.name);
    Err(Rejection::new(RejectCode::Guarded, format!("{} keeps its role", node.name), why, next))
}

/// Returns a cluster's servers that are members of its etcd.
fn in_etcd(state: &State, cluster: ClusterId) -> Vec<(&Node, &Assignment)> {
    let servers = state.servers(cluster).into_iter();
    servers
        .filter(|(_, a)| a.phase >= Phase::Bootstrapped && a.phase != Phase::JoinRequested)
        .collect()
}

/// Counts etcd's running members without `gone`, and how many it needs.
fn quorum_after(
    state: &State,
    cluster: ClusterId,
    gone: NodeId,
    live: &dyn Fn(NodeId) -> bool,
) -> (usize, usize) {
    let in_etcd = in_etcd(state, cluster);
    let stops = |n: &Node| n.drain.as_ref().is_some_and(|d| d.stop);
    let running = in_etcd
        .iter()
        .filter(|(_, a)| matches!(a.phase, Phase::Bootstrapped | Phase::Ready))
        .filter(|(n, _)| n.id != gone && !stops(n) && live(n.id))
        .count();
    (running, in_etcd.len() / 2 + 1)
}
