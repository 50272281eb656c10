//! What holds after every command, whatever came before. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::apply::{Command, Outcome};
use crate::model::{ClusterStatus, EventRing, OverlayAddress, Requests, State, overlap};

/// Checks every invariant of the step from `before` to `after`.
pub(crate) fn check(before: &State, after: &State, command: &Command, outcome: &Outcome) {
    addresses_are_unique(after);
    networks_are_apart(after);
    identities_are_unique(after);
    assignments_point_somewhere(after);
    clusters_and_vips_are_paired(after);
    founders_are_servers(after);
    pod_ranges_are_apart(after);
    active_clusters_have_all_they_need(after);
    vips_never_go_back(before, after);
    active_never_goes_back(before, after, command);
    retired_stay_out(before, after);
    events_have_no_gaps(&before.events, &after.events);
    if matches!(outcome, Outcome::Rejected { .. }) {
        refusals_change_nothing(before, after, command);
    }
}

/// No two of nodes, devices and VIPs share an address.
fn addresses_are_unique(s: &State) {
    let nodes = s.nodes.values().flat_map(|n| n.networks.values());
    let devices = s.networks.values().flat_map(|n| n.devices.values());
    let all = nodes.chain(devices.map(|d| &d.address));
    let all = all.chain(s.vips.values().map(|v| &v.address));
    let mut seen: BTreeSet<IpAddr> = BTreeSet::new();
    for OverlayAddress { v6, v4 } in all {
        assert!(seen.insert((*v6).into()), "{v6} is given twice");
        assert!(seen.insert((*v4).into()), "{v4} is given twice");
    }
}

fn networks_are_apart(s: &State) {
    let all: Vec<_> = s.networks.values().collect();
    for (i, a) in all.iter().enumerate() {
        let pool = s.fleet.as_ref().unwrap().ipv4_pool;
        assert!(pool.contains(&a.v4), "{} is outside {pool}", a.v4);
        for b in &all[i + 1..] {
            assert!(!overlap(&a.v4.into(), &b.v4.into()), "{a:?} {b:?}");
            assert!(!overlap(&a.v6.into(), &b.v6.into()), "{a:?} {b:?}");
            assert!(a.port != b.port && a.name != b.name, "{a:?} {b:?}");
        }
    }
    for n in s.nodes.values() {
        for (id, a) in &n.networks {
            let net = &s.networks[id];
            assert!(net.v4.contains(&a.v4) && net.v6.contains(&a.v6), "{a:?}");
        }
    }
}

fn identities_are_unique(s: &State) {
    let (mut names, mut uuids, mut keys) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for n in s.nodes.values() {
        assert!(names.insert(&n.name), "two nodes are called {}", n.name);
        assert!(uuids.insert(n.uuid), "two nodes have identity {}", n.uuid);
        assert!(keys.insert(n.wireguard), "two members have one key");
        assert!(!s.is_retired(n.uuid), "{} is a member and retired", n.name);
    }
    let devices = s.networks.values().flat_map(|n| n.devices.values());
    for d in devices {
        assert!(keys.insert(d.key), "two members have one key");
    }
    let mut clusters = BTreeSet::new();
    for c in s.clusters.values() {
        assert!(clusters.insert(&c.name), "two clusters are called {}", c.name);
    }
}

fn assignments_point_somewhere(s: &State) {
    for n in s.nodes.values() {
        let Some(cluster) = n.assignment.as_ref().and_then(|a| a.cluster) else {
            continue;
        };
        let c = s.clusters.get(&cluster);
        let c = c.unwrap_or_else(|| panic!("{} is in a cluster that is gone", n.name));
        assert!(n.networks.contains_key(&c.network), "{} is apart", n.name);
    }
}

fn clusters_and_vips_are_paired(s: &State) {
    for c in s.clusters.values() {
        if let Some(id) = c.vip {
            let vip = s.vips.get(&id).expect("the VIP is reserved at creation");
            assert_eq!((vip.cluster, vip.network), (c.id, c.network));
        }
        let members = s.nodes.values().filter_map(|n| n.assignment.as_ref());
        let mut members = members.filter(|a| a.cluster == Some(c.id));
        assert!(members.next().is_some(), "cluster {} is empty", c.name);
    }
    let reserved = s.clusters.values().filter(|c| c.vip.is_some()).count();
    assert_eq!(s.vips.len(), reserved, "a VIP outlived its cluster");
}

/// At most one server founds a cluster, by construction; it must be one of its servers.
fn founders_are_servers(s: &State) {
    for c in s.clusters.values() {
        if let Some(b) = c.bootstrap {
            let node = s.nodes.get(&b).expect("a founder is a member");
            assert!(node.server_in(c.id).is_some(), "{} is no server", node.name);
        }
    }
}

fn pod_ranges_are_apart(s: &State) {
    let pods = |n: &crate::model::Node| {
        let a = n.assignment.clone();
        a.map(|a| a.pods.cidrs).unwrap_or_default()
    };
    let all: Vec<_> = s.nodes.values().map(|n| (n.id, pods(n))).collect();
    for (i, (_, a)) in all.iter().enumerate() {
        for (_, b) in &all[i + 1..] {
            let clash = a.iter().any(|a| b.iter().any(|b| overlap(a, b)));
            assert!(!clash, "{a:?} meets {b:?}");
        }
    }
    let clusters: Vec<_> = s.clusters.values().collect();
    for (i, a) in clusters.iter().enumerate() {
        for b in &clusters[i + 1..] {
            let theirs = || b.pods.iter().chain(&b.services);
            let mut ours = a.pods.iter().chain(&a.services);
            let clash = ours.any(|a| theirs().any(|b| overlap(a, b)));
            assert!(!clash, "{} meets {}", a.name, b.name);
        }
    }
}

fn active_clusters_have_all_they_need(s: &State) {
    let active = |c: &&crate::model::Cluster| c.status == ClusterStatus::Active;
    for c in s.clusters.values().filter(active) {
        assert!(c.secrets.is_some() && c.endpoint.is_some(), "{c:?}");
        let Some(vip) = s.vip_of(c) else { continue };
        assert!(vip.holder.is_some(), "nobody holds {}", vip.name);
        let newest = vip.history.last().expect("a holder is recorded");
        assert_eq!(Some(newest.holder), vip.holder);
        assert_eq!(newest.generation, vip.generation);
    }
}

fn vips_never_go_back(before: &State, after: &State) {
    for v in after.vips.values() {
        let Some(old) = before.vips.get(&v.id) else {
            continue;
        };
        assert!(v.generation >= old.generation, "{} went back", v.name);
        assert_eq!(v.address, old.address, "{} changed its address", v.name);
        let moved = v.holder != old.holder;
        assert_eq!(moved, v.generation != old.generation, "{v:?} after {old:?}");
        assert!(v.history.len() >= old.history.len());
    }
}

/// Only the loss of a member takes a cluster out of `Active`, never a report of progress.
fn active_never_goes_back(before: &State, after: &State, command: &Command) {
    let loses_member = match command {
        Command::AdmitNode { .. }
        | Command::RemoveNode { .. }
        | Command::TerminateNode { .. }
        | Command::UnassignRole { .. } => true,
        Command::ReportPhase(r) => {
            let node = before.nodes.get(&r.node);
            node.and_then(|n| n.assignment.as_ref()).is_some_and(|a| a.leaving)
        }
        _ => false,
    };
    for c in after.clusters.values() {
        let was = before.clusters.get(&c.id).map(|c| c.status);
        if was == Some(ClusterStatus::Active) {
            assert_ne!(c.status, ClusterStatus::Bootstrapping);
            let ends = matches!(command, Command::DecommissionCluster { .. })
                && c.status == ClusterStatus::Decommissioning;
            assert!(c.status == ClusterStatus::Active || loses_member || ends, "{c:?}");
        }
    }
}

fn retired_stay_out(before: &State, after: &State) {
    for id in before.retired.keys() {
        assert!(after.retired.contains_key(id) && !after.nodes.contains_key(id));
    }
    for id in before.nodes.keys() {
        assert!(after.nodes.contains_key(id) || after.retired.contains_key(id));
    }
}

fn events_have_no_gaps(before: &EventRing, after: &EventRing) {
    assert!(after.last() >= before.last());
    let kept: Vec<u64> = after.after(0).map(|e| e.index).collect();
    assert_eq!(kept.last().copied().unwrap_or(0), after.last());
    assert!(kept.windows(2).all(|w| w[1] == w[0] + 1), "{kept:?}");
}

/// Refusals leave at most an event, and the memory of the request.
fn refusals_change_nothing(before: &State, after: &State, command: &Command) {
    let bare = |s: &State| State {
        events: EventRing::default(),
        requests: Requests::default(),
        ..s.clone()
    };
    assert_eq!(bare(before), bare(after), "{command:?} half-applied");
}
