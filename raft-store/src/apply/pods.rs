//! Pod ranges: what Kubernetes dealt a node, taken only if it is nobody else's. Pure.

use ipnet::IpNet;

use super::command::Change;
use super::reject::{RejectCode, Rejection};
use super::{Applied, Context};
use crate::model::{Generation, NodeId, State, overlap};

fn refused(state: &State, node: NodeId, code: RejectCode, why: String) -> Rejection {
    let name = state.name_of(node);
    let what = format!("the pod ranges of {name} were not taken");
    Rejection::new(code, what, why, format!("skein node show {name}"))
}

/// Tells whether a member of a cluster may have these pod ranges, so that nothing is proposed that would be refused.
///
/// # Errors
///
/// Ranges outside those of its cluster, and such as another node has.
pub fn pods_guard(state: &State, node: NodeId, cidrs: &[IpNet]) -> Result<(), Rejection> {
    let assignment = state.nodes.get(&node).and_then(|n| n.assignment.as_ref());
    let cluster = assignment.and_then(|a| state.clusters.get(&a.cluster?));
    let outside =
        cluster.and_then(|c| cidrs.iter().find(|r| !c.pods.iter().any(|p| p.contains(&r.trunc()))));
    if let Some(bad) = outside {
        let why = format!("{bad} is outside the cluster's pod ranges");
        return Err(refused(state, node, RejectCode::Invalid, why));
    }
    let clash = state.nodes.values().filter(|n| n.id != node).find(|n| {
        let theirs = n.assignment.iter().flat_map(|a| &a.pods.cidrs);
        theirs.into_iter().any(|t| cidrs.iter().any(|r| overlap(t, r)))
    });
    match clash {
        Some(other) => {
            let why = format!("node {} has them", other.name);
            Err(refused(state, node, RejectCode::Conflict, why))
        }
        None => Ok(()),
    }
}

impl Context<'_> {
    pub(super) fn report_pods(
        &mut self,
        node: NodeId,
        expect: Generation,
        cidrs: &[IpNet],
    ) -> Applied {
        let cidrs: Vec<IpNet> = cidrs.iter().map(IpNet::trunc).collect();
        let Some(a) = self.state.nodes.get(&node).and_then(|n| n.assignment.as_ref()) else {
            return Ok(Change::Nothing);
        };
        if a.cluster.is_none_or(|c| !self.state.clusters.contains_key(&c)) {
            return Ok(Change::Nothing);
        }
        if a.pods.generation != expect {
            let why = format!("generation is {}, not {expect}", a.pods.generation);
            return Err(refused(self.state, node, RejectCode::Stale, why));
        }
        pods_guard(self.state, node, &cidrs)?;
        if let Some(a) = self.state.node_mut(node).and_then(|n| n.assignment.as_mut())
            && a.pods.cidrs != cidrs
        {
            a.pods.cidrs = cidrs;
            a.pods.generation = a.pods.generation.next();
        }
        Ok(Change::Nothing)
    }
}
