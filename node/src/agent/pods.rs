//! Which pod ranges this node reports, and when it looks for them again. Pure: the time is passed in.

use std::time::Duration;

use ipnet::IpNet;
use raft_store::apply::{Command, pods_guard};
use raft_store::model::{Node, State};
use tokio::time::Instant;

/// Known ranges are checked this often.
const KNOWN: Duration = Duration::from_secs(20);
/// Ranges that would be refused are looked at this often, not at each change of the state.
const REFUSED: Duration = Duration::from_secs(1);

/// What is known of this node's pod ranges.
#[derive(Debug, Default)]
pub(super) struct Pods {
    looked: Option<Instant>,
    refused: Option<String>,
}

impl Pods {
    /// Tells whether it is time to ask Kubernetes; forgets what was of a role that is over.
    pub(super) fn is_due(&mut self, node: &Node, now: Instant) -> bool {
        let Some(a) = node.assignment.as_ref().filter(|a| !a.leaving) else {
            *self = Self::default();
            return false;
        };
        let pause = match (&self.refused, a.pods.cidrs.is_empty()) {
            (Some(_), _) => REFUSED,
            (None, true) => Duration::ZERO,
            (None, false) => KNOWN,
        };
        self.looked.is_none_or(|at| now.duration_since(at) >= pause)
    }

    /// Takes in what Kubernetes says and returns what is to be said of it, if the fleet would take it: a refusal is an
    /// entry of the log too, and would wake everybody who waits for news, this node first.
    pub(super) fn report(
        &mut self,
        state: &State,
        node: &Node,
        cidrs: Vec<IpNet>,
        now: Instant,
    ) -> Option<Command> {
        self.looked = Some(now);
        let before = self.refused.take();
        let a = node.assignment.as_ref()?;
        if cidrs.is_empty() || cidrs == a.pods.cidrs {
            return None;
        }
        match pods_guard(state, node.id, &cidrs) {
            Ok(()) => Some(Command::ReportPods { node: node.id, expect: a.pods.generation, cidrs }),
            Err(rejection) => {
                let refused = format!("{rejection}; pods here are not reached from other nodes");
                if before.as_ref() != Some(&refused) {
                    tracing::warn!("{refused}");
                }
                self.refused = Some(refused);
                None
            }
        }
    }

    /// Says why the ranges are not taken.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.clone()
    }
}

#[cfg(test)]
mod tests {
    use raft_store::model::NodeId;

    use super::*;
    use crate::project::tests::lab;

    #[test]
    fn what_would_be_refused_is_not_proposed_and_not_asked_for_at_each_change() {
        let mut state = lab();
        let mut now = Instant::now();
        let free: IpNet = "10.42.77.0/24".parse().unwrap();
        let one = NodeId(3);
        let taken = state.nodes[&NodeId(1)].assignment.clone().unwrap().pods.cidrs;
        assert!(!taken.is_empty());
        let mut pods = Pods::default();
        assert!(pods.is_due(&state.nodes[&one], now));
        assert_eq!(pods.report(&state, &state.nodes[&one], taken.clone(), now), None);
        assert!(pods.refused().unwrap().contains("node n1 has them"), "{pods:?}");
        assert!(!pods.is_due(&state.nodes[&one], now), "not at once");
        now += REFUSED;
        assert!(pods.is_due(&state.nodes[&one], now), "but soon");
        let report = pods.report(&state, &state.nodes[&one], vec![free], now);
        assert!(matches!(report, Some(Command::ReportPods { cidrs, .. }) if cidrs == [free]));
        assert_eq!(pods.refused(), None);
        assert!(pods.is_due(&state.nodes[&one], now), "unknown ones are asked for");
        let a = state.node_mut(one).unwrap().assignment.as_mut().unwrap();
        a.pods.cidrs = vec![free];
        now += REFUSED;
        assert!(!pods.is_due(&state.nodes[&one], now), "known ones seldom change");
    }

    #[test]
    fn a_leaving_node_reports_nothing_and_waits_for_nothing() {
        let mut state = lab();
        let mut now = Instant::now();
        let mut pods = Pods::default();
        let outside = "192.0.2.0/24".parse().unwrap();
        assert_eq!(pods.report(&state, &state.nodes[&NodeId(1)], vec![outside], now), None);
        assert!(pods.refused().unwrap().contains("outside"), "{pods:?}");
        let node = state.node_mut(NodeId(1)).unwrap();
        node.assignment.as_mut().unwrap().leaving = true;
        now += KNOWN;
        assert!(!pods.is_due(node, now));
        assert_eq!(pods.refused(), None);
    }
}
