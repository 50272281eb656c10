//! What must hold of all that daemons say from outside, while it goes on. Pure.
//!
//! | name | what |
//! |---|---|
//! | `one_holder` | one holder of a VIP in a generation, and generations only grow |
//! | `agreement` | at an index all daemons tell the same of nodes, networks, VIPs and tickets |
//! | `votes_grow` | a node's term never goes back, unless it lost its disk |
//! | `applied` | what a daemon has applied never becomes less while it lives |
//! | `addresses` | an overlay address belongs to one member |

use std::collections::BTreeMap;
use std::fmt::Write as _;

use api::proto;

use super::view::Answer;
use crate::chaos::invariant::one_holder::Holders;

/// How many indexes are remembered of each kind of fact.
const KEPT: usize = 2_048;

/// What was violated, and how.
pub(super) type Found = (&'static str, String);

/// Whose answer it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speaker<'a> {
    /// The host.
    pub(super) host: &'a str,
    /// Its daemon's process.
    pub(super) daemon: i32,
    /// How often it lost everything.
    pub(super) wiped: u64,
}

/// All that was seen so far.
#[derive(Default)]
pub(super) struct Checks {
    holders: Holders<String, String>,
    facts: BTreeMap<(&'static str, u64), (String, String)>,
    terms: BTreeMap<(String, u64), u64>,
    applied: BTreeMap<(String, i32), u64>,
}

impl Checks {
    /// Takes in what a daemon says.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub(super) fn seen(&mut self, by: Speaker<'_>, answer: &Answer) -> Result<(), Found> {
        let status = &answer.status;
        for vip in &status.vips {
            self.holders
                .seen(status.applied, (&vip.name, &vip.name), vip.generation, &vip.holder)
                .map_err(|why| ("one_holder", format!("{why}, says {}", by.host)))?;
        }
        self.grows(by, status)?;
        for (kind, index, fact) in facts(answer) {
            self.agrees(by.host, (kind, index), fact)?;
        }
        unique(answer).map_err(|why| ("addresses", format!("{why}, says {}", by.host)))
    }

    fn grows(&mut self, by: Speaker<'_>, status: &proto::Status) -> Result<(), Found> {
        let (host, now) = (by.host, status.term);
        let term = self.terms.entry((host.to_owned(), by.wiped)).or_default();
        if now < *term {
            return Err(("votes_grow", format!("{host} was in term {term}, and is in {now}")));
        }
        *term = now;
        let applied = self.applied.entry((host.to_owned(), by.daemon)).or_default();
        if status.applied < *applied {
            let now = status.applied;
            return Err(("applied", format!("{host} had applied {applied}, and has {now}")));
        }
        *applied = status.applied;
        Ok(())
    }

    fn agrees(&mut self, host: &str, at: (&'static str, u64), fact: String) -> Result<(), Found> {
        let (by, known) = self.facts.entry(at).or_insert_with(|| (host.to_owned(), fact.clone()));
        if *known != fact {
            let (kind, index) = at;
            let why = format!("{by} and {host} differ at index {index} in their {kind}: ");
            return Err(("agreement", why + &difference(known, &fact)));
        }
        let count = self.facts.keys().filter(|(kind, _)| *kind == at.0).count();
        if count > KEPT {
            let oldest = self.facts.keys().find(|(kind, _)| *kind == at.0).copied();
            oldest.and_then(|oldest| self.facts.remove(&oldest));
        }
        Ok(())
    }
}

/// What is replicated of an answer; how nodes fare is observed, and differs.
fn facts(answer: &Answer) -> [(&'static str, u64, String); 3] {
    let mut fleet = String::new();
    for n in &answer.status.nodes {
        let _ = writeln!(fleet, "node {} {} {} {:?}", n.name, n.role, n.cluster, n.overlay);
    }
    for v in &answer.status.vips {
        let _ = writeln!(fleet, "vip {} {} {} {:?}", v.name, v.generation, v.holder, v.addresses);
    }
    let mut network = String::new();
    for m in &answer.network.members {
        let _ = writeln!(network, "{} {} {:?} {}", m.kind, m.name, m.addresses, m.public_key);
    }
    let mut tickets = String::new();
    for t in &answer.tickets.tickets {
        let _ = writeln!(tickets, "{} {} {}/{} {}", t.id, t.role, t.uses_left, t.uses, t.by);
    }
    [
        ("nodes and VIPs", answer.status.applied, fleet),
        ("network", answer.network.applied, network),
        ("tickets", answer.tickets.applied, tickets),
    ]
}

/// The first lines in which two texts differ.
fn difference(a: &str, b: &str) -> String {
    let (mut a, mut b) = (a.lines(), b.lines());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return String::new(),
            (a, b) if a == b => {}
            (a, b) => return format!("{:?} and {:?}", a.unwrap_or("-"), b.unwrap_or("-")),
        }
    }
}

fn unique(answer: &Answer) -> Result<(), String> {
    let members = answer.network.members.iter();
    let members = members.map(|m| (format!("{} {}", m.kind, m.name), &m.addresses));
    let mut owners: BTreeMap<&str, String> = BTreeMap::new();
    for (owner, addresses) in members {
        for address in addresses {
            if let Some(other) = owners.insert(address, owner.clone()) {
                return Err(format!("{other} and {owner} both have {address}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::whole;
    use super::*;

    fn answer() -> Answer {
        whole(&["n1", "n2"]).answer.unwrap()
    }

    const N1: Speaker<'_> = Speaker { host: "n1", daemon: 1, wiped: 0 };
    const N2: Speaker<'_> = Speaker { host: "n2", daemon: 2, wiped: 0 };

    fn violated(first: &Answer, by: Speaker<'_>, then: &Answer) -> Option<&'static str> {
        let mut checks = Checks::default();
        checks.seen(N1, first).unwrap();
        checks.seen(by, then).err().map(|(name, _)| name)
    }

    #[test]
    fn what_is_the_same_everywhere_is_fine_also_if_nodes_fare_differently() {
        let mut other = answer();
        other.status.nodes[1].state = "lost".into();
        other.status.leader = "n2".into();
        assert_eq!(violated(&answer(), N2, &other), None);
    }

    #[test]
    fn a_second_holder_of_a_generation_is_found_and_a_generation_that_comes_back() {
        let mut other = answer();
        other.status.applied += 1;
        other.status.vips[0].holder = "n2".into();
        assert_eq!(violated(&answer(), N2, &other), Some("one_holder"));
        other.status.vips[0].generation = 2;
        assert_eq!(violated(&answer(), N2, &other), Some("one_holder"));
        other.status.vips[0].generation = 4;
        assert_eq!(violated(&answer(), N2, &other), None);
    }

    #[test]
    fn two_states_at_one_index_are_found() {
        let mut other = answer();
        other.status.nodes[1].role = "k3s-server".into();
        assert_eq!(violated(&answer(), N2, &other), Some("agreement"));
        other.status.applied += 1;
        assert_eq!(violated(&answer(), N2, &other), None);
    }

    #[test]
    fn a_term_that_goes_back_is_found_unless_the_disk_was_lost() {
        let mut other = answer();
        other.status.term -= 1;
        assert_eq!(violated(&answer(), N1, &other), Some("votes_grow"));
        assert_eq!(violated(&answer(), Speaker { wiped: 1, ..N1 }, &other), None);
    }

    #[test]
    fn a_daemon_that_forgets_what_it_applied_is_found_and_one_that_was_started_anew_is_not() {
        let mut other = answer();
        other.status.applied -= 1;
        assert_eq!(violated(&answer(), N1, &other), Some("applied"));
        assert_eq!(violated(&answer(), Speaker { daemon: 8, ..N1 }, &other), None);
    }

    #[test]
    fn an_address_of_two_members_is_found() {
        let member = |name: &str| proto::NetworkMember {
            name: name.into(),
            addresses: vec!["10.0.0.1".into()],
            ..Default::default()
        };
        let mut twice = answer();
        twice.network.members = vec![member("a"), member("b")];
        assert_eq!(violated(&answer(), N2, &Answer { ..twice.clone() }), Some("agreement"));
        let mut checks = Checks::default();
        assert_eq!(checks.seen(N1, &twice).map_err(|(name, _)| name), Err("addresses"));
    }
}
