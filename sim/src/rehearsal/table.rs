//! The rehearsal's nodes: one table, copied between servers, newest version of each row wins. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One node; a deleted one stays as a mark, so that an older copy does not bring it back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) version: u64,
    pub(super) deleted: bool,
    pub(super) node: Value,
}

/// What a machine says of itself when it registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Registration {
    pub(super) name: String,
    pub(super) server: bool,
    pub(super) addresses: Vec<String>,
}

/// All nodes by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Table {
    pub(super) rows: BTreeMap<String, Row>,
    /// The cluster's pod ranges, as the founding server was told.
    pub(super) cidrs: Vec<String>,
}

impl Table {
    /// Takes in another server's copy; returns whether anything was news.
    pub(super) fn merge(&mut self, other: Self) -> bool {
        let mut news = false;
        if self.cidrs.is_empty() && !other.cidrs.is_empty() {
            self.cidrs = other.cidrs;
            news = true;
        }
        for (name, row) in other.rows {
            if self.rows.get(&name).is_none_or(|r| r.version < row.version) {
                self.rows.insert(name, row);
                news = true;
            }
        }
        news
    }

    /// Adds a node, or brings it back.
    pub(super) fn register(&mut self, r: &Registration, version: &str) {
        let known = self.rows.get(&r.name).filter(|row| !row.deleted).map(|row| row.node.clone());
        let cidrs = known.as_ref().and_then(|n| n["spec"]["podCIDRs"].as_array().cloned());
        let cidrs = cidrs
            .unwrap_or_else(|| self.deal_cidrs(&r.name).into_iter().map(Value::from).collect());
        let role = "node-role.kubernetes.io/control-plane";
        let labels = if r.server { json!({role: "true"}) } else { json!({}) };
        let addresses: Vec<Value> =
            r.addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
        let mut node = json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": {"name": r.name, "labels": labels, "annotations": {}},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "reason": "Rehearsal", "message": "a stand-in is ready"}],
                "addresses": addresses,
                "nodeInfo": {"kubeletVersion": version},
            },
        });
        if let Some(old) = known {
            node["spec"]["unschedulable"] = old["spec"]["unschedulable"].clone();
            node["metadata"]["annotations"] = old["metadata"]["annotations"].clone();
        }
        self.put(&r.name, node, false);
    }

    /// Deals pod ranges from a place that belongs to the name: two servers that do not know of each other's newcomers yet
    /// must not deal the same ones, which one controller-manager never does either.
    fn deal_cidrs(&self, name: &str) -> Vec<String> {
        let taken = |cidr: &str| {
            self.rows.values().any(|r| {
                r.node["spec"]["podCIDRs"].as_array().is_some_and(|c| c.iter().any(|x| x == cidr))
            })
        };
        let deal = |range: &String, n: usize| -> Option<String> {
            let net: ipnet::IpNet = range.parse().ok()?;
            let len = if net.addr().is_ipv4() { 24 } else { 64 };
            net.subnets(len).ok()?.nth(n).map(|s| s.to_string())
        };
        let begin = own_place(name);
        let free = (0..PLACES)
            .map(|n| (begin + n) % PLACES)
            .find(|n| self.cidrs.first().and_then(|r| deal(r, *n)).is_some_and(|c| !taken(&c)));
        let n = free.unwrap_or(PLACES);
        self.cidrs.iter().filter_map(|r| deal(r, n)).collect()
    }

    fn put(&mut self, name: &str, node: Value, deleted: bool) {
        let version = self.rows.get(name).map_or(1, |r| r.version + 1);
        self.rows.insert(name.to_owned(), Row { version, deleted, node });
    }

    /// Returns a node.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.rows.get(name).filter(|r| !r.deleted).map(|r| &r.node)
    }

    /// Returns all nodes.
    pub(super) fn list(&self) -> Vec<Value> {
        self.rows.values().filter(|r| !r.deleted).map(|r| r.node.clone()).collect()
    }

    /// Lays a merge patch (RFC 7396) over a node.
    pub(super) fn patch(&mut self, name: &str, patch: &Value) -> Option<Value> {
        let mut node = self.get(name)?.clone();
        merge_patch(&mut node, patch);
        self.put(name, node.clone(), false);
        Some(node)
    }

    /// Deletes a node.
    pub(super) fn delete(&mut self, name: &str) -> bool {
        let Some(node) = self.get(name).cloned() else {
            return false;
        };
        self.put(name, node, true);
        true
    }

    /// Returns where other servers are.
    pub(super) fn servers(&self, me: &str) -> Vec<String> {
        let servers = self.rows.iter().filter(|(name, r)| {
            !r.deleted
                && name.as_str() != me
                && r.node["metadata"]["labels"]["node-role.kubernetes.io/control-plane"].is_string()
        });
        servers
            .filter_map(|(_, r)| {
                Some(r.node["status"]["addresses"][0]["address"].as_str()?.to_owned())
            })
            .collect()
    }
}

/// How many nodes a cluster's pod ranges are enough for.
const PLACES: usize = 250;

/// Where the search for a free range begins: a sum of the name's bytes in which their order counts.
fn own_place(name: &str) -> usize {
    name.bytes().fold(0, |sum, byte| (sum * 31 + usize::from(byte)) % PLACES)
}

fn merge_patch(target: &mut Value, patch: &Value) {
    let Some(changes) = patch.as_object() else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, change) in changes {
        if change.is_null() {
            if let Some(object) = target.as_object_mut() {
                object.remove(key);
            }
        } else {
            merge_patch(&mut target[key.as_str()], change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_know_nothing_of_each_other_deal_different_ranges() {
        let of = |name: &str| Registration { name: name.into(), server: false, addresses: vec![] };
        let table = Table { cidrs: vec!["10.42.0.0/16".into()], ..Table::default() };
        let dealt = (1..=9).map(|i| {
            let mut copy = table.clone();
            copy.register(&of(&format!("n{i}")), "v");
            copy.list()[0]["spec"]["podCIDR"].to_string()
        });
        assert_eq!(dealt.collect::<std::collections::BTreeSet<_>>().len(), 9);
        let mut full = table.clone();
        full.register(&of("n1"), "v");
        full.register(&of("1n"), "v");
        assert_ne!(full.list()[0]["spec"]["podCIDR"], full.list()[1]["spec"]["podCIDR"]);
    }

    #[test]
    fn copies_agree_and_the_dead_stay_dead() {
        let of = |name: &str| Registration {
            name: name.into(),
            server: true,
            addresses: vec!["10.90.0.1".into()],
        };
        let mut a = Table { cidrs: vec!["10.42.0.0/16".into()], ..Table::default() };
        a.register(&of("n1"), "v");
        a.register(&of("n2"), "v");
        let mut b = Table::default();
        assert!(b.merge(a.clone()));
        assert_eq!(a, b);
        assert!(a.delete("n2"));
        assert!(a.merge(b.clone()) || a.get("n2").is_none());
        b.merge(a.clone());
        assert!(b.get("n2").is_none());
        assert_ne!(a.list()[0]["spec"]["podCIDR"], Value::Null);
        a.patch("n1", &json!({"spec": {"unschedulable": true}}));
        assert_eq!(a.get("n1").unwrap()["spec"]["unschedulable"], true);
    }
}
