//! What a daemon says of the fleet, and what a fleet lacks to be whole. Pure.

use std::collections::BTreeSet;

use api::proto;

/// What a daemon answered at one look.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// As it sees the fleet by itself.
    pub(super) status: proto::Status,
    /// The first network, as it has it.
    pub(super) network: proto::Network,
    /// The tickets, as it has them.
    pub(super) tickets: proto::ListTicketsResponse,
}

/// How a host is at a look.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Its daemon's process, if there is one.
    pub(super) daemon: Option<i32>,
    /// Whether it stands still.
    pub(super) paused: bool,
    /// What it answered.
    pub(super) answer: Option<Answer>,
}

impl Seen {
    fn status(&self) -> Option<&proto::Status> {
        self.answer.as_ref().map(|a| &a.status)
    }

    /// Says in one line how a host stands.
    pub(super) fn line(&self, host: &str, fault: &str) -> String {
        let daemon = match self.daemon {
            None => "no daemon".to_owned(),
            Some(pid) if self.paused => format!("daemon {pid} stands still"),
            Some(pid) => format!("daemon {pid}"),
        };
        let said = self.status().map_or("does not answer".to_owned(), |s| {
            let held = s.vips.iter().filter(|v| v.holder == host).map(|v| v.name.as_str());
            let held: Vec<&str> = held.collect();
            format!(
                "term {}, leader {:?}, quorum {}, applied {}, voters {:?}, holds {held:?}",
                s.term, s.leader, s.quorum, s.applied, s.voters
            )
        });
        let fault = if fault.is_empty() { String::new() } else { format!("; now: {fault}") };
        format!("{host}: {daemon}, {said}{fault}")
    }
}

/// Returns the status of whoever has applied most.
pub(super) fn newest(seen: &[Seen]) -> Option<&proto::Status> {
    seen.iter().filter_map(Seen::status).max_by_key(|s| s.applied)
}

/// Says what a fleet of these hosts lacks to be whole, as far as its daemons tell.
pub(super) fn lacking(hosts: &[String], seen: &[Seen]) -> Option<String> {
    let mut statuses = Vec::new();
    for (host, seen) in hosts.iter().zip(seen) {
        match seen.status() {
            Some(status) => statuses.push((host, status)),
            None => return Some(format!("the daemon of {host} does not answer")),
        }
    }
    let leaders: BTreeSet<&str> = statuses.iter().map(|(_, s)| s.leader.as_str()).collect();
    if leaders.len() != 1 || leaders.contains("") {
        return Some(format!("no common leader: {leaders:?}"));
    }
    let wanted: BTreeSet<&str> = hosts.iter().map(String::as_str).collect();
    for (host, status) in &statuses {
        let members: BTreeSet<&str> = status.nodes.iter().map(|n| n.name.as_str()).collect();
        if members != wanted {
            return Some(format!("{host} knows the nodes {members:?}"));
        }
        if !status.quorum {
            return Some(format!("{host} knows of no quorum"));
        }
    }
    let applied: BTreeSet<u64> = statuses.iter().map(|(_, s)| s.applied).collect();
    if applied.len() != 1 {
        return Some(format!("applied are {applied:?}"));
    }
    let status = newest(seen)?;
    if let Some(cluster) = status.clusters.iter().find(|c| c.status != "active") {
        return Some(format!("cluster {} is {}", cluster.name, cluster.status));
    }
    let headless = status.vips.iter().find(|v| !wanted.contains(v.holder.as_str()));
    headless.map(|v| format!("VIP {} is held by {:?}", v.name, v.holder))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A host of a whole fleet of these.
    pub(in super::super) fn whole(hosts: &[&str]) -> Seen {
        let node = |name: &&str| proto::NodeStatus { name: (*name).into(), ..Default::default() };
        let vip = proto::VipStatus {
            name: "v".into(),
            holder: hosts[0].into(),
            generation: 3,
            addresses: vec!["10.0.0.9".into()],
        };
        let status = proto::Status {
            quorum: true,
            leader: hosts[0].into(),
            term: 4,
            applied: 70,
            nodes: hosts.iter().map(node).collect(),
            vips: vec![vip],
            ..Default::default()
        };
        let answer = Answer { status, ..Default::default() };
        Seen { daemon: Some(9), paused: false, answer: Some(answer) }
    }

    fn change(seen: &mut Seen, change: impl FnOnce(&mut proto::Status)) {
        change(&mut seen.answer.as_mut().unwrap().status);
    }

    #[test]
    fn a_whole_fleet_lacks_nothing_and_each_lack_is_named() {
        let hosts = ["n1".to_owned(), "n2".to_owned()];
        let fine = vec![whole(&["n1", "n2"]), whole(&["n1", "n2"])];
        assert_eq!(lacking(&hosts, &fine), None);
        let lacks = |spoil: &dyn Fn(&mut Seen)| {
            let mut seen = fine.clone();
            spoil(&mut seen[1]);
            lacking(&hosts, &seen).unwrap()
        };
        assert!(lacks(&|s| s.answer = None).contains("n2 does not answer"));
        assert!(lacks(&|s| change(s, |s| s.leader = "n2".into())).contains("leader"));
        assert!(lacks(&|s| change(s, |s| s.applied = 69)).contains("applied"));
        assert!(lacks(&|s| change(s, |s| s.quorum = false)).contains("quorum"));
        assert!(lacks(&|s| change(s, |s| drop(s.nodes.pop()))).contains("nodes"));
        let mut headless = fine.clone();
        headless.iter_mut().for_each(|s| change(s, |s| s.vips[0].holder.clear()));
        assert!(lacking(&hosts, &headless).unwrap().contains("VIP v"));
    }
}
