//! Founding, tickets, admission and removal of nodes' identities and operators. Pure.

use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::clusters::free_ranges;
use super::command::{Change, FoundFleet, NewNode, list};
use super::reject::{RejectCode, Rejection};
use super::{Applied, Context};
use crate::model::{
    Assignment, Digest, FOUNDER, Fleet, Name, NetworkId, Node, NodeId, Operator, OverlayAddress,
    Sealed, Severity, State, Ticket, TicketId, TicketRole, UnixMillis,
};

/// The most nodes that one ticket may admit.
const USES_MAX: u32 = 1_000;

impl Context<'_> {
    pub(super) fn found_fleet(&mut self, c: &FoundFleet) -> Applied {
        if self.state.fleet.is_some() {
            return Err(Rejection::new(
                RejectCode::Fleet,
                "the fleet was not founded",
                "it exists already",
                "use `skein ticket create` and `skein join` to add machines",
            ));
        }
        self.check_founding(c)?;
        self.state.fleet = Some(Fleet {
            id: c.id,
            ca_cert: c.ca_cert.clone(),
            ca_key: c.ca_key.clone(),
            ipv4_pool: c.ipv4_pool.trunc(),
            ula: c.ula.trunc(),
            voters: c.voters,
            at: self.at,
        });
        self.create_network(&c.network, None, None)?;
        let network = NetworkId(self.index);
        let address = self.take_address(network)?;
        self.insert_node(FOUNDER, &c.node, TicketRole::Voter, vec![(network, address)]);
        self.hand_key(FOUNDER, &c.key_box)?;
        self.emit(
            "system.fleet.founded",
            Severity::Low,
            Some(FOUNDER),
            None,
            json!({
                "fleet": c.id, "ipv4_pool": c.ipv4_pool, "ula": c.ula,
            }),
        );
        Ok(Change::Node { id: FOUNDER })
    }

    /// Checks all that could fail half-way, so that a refused founding leaves nothing behind.
    fn check_founding(&self, c: &FoundFleet) -> Result<(), Rejection> {
        let refuse = |why: String, next: &str| {
            let what = "the fleet was not founded";
            Err(Rejection::new(RejectCode::Invalid, what, why, next))
        };
        if !matches!(c.voters, 1 | 3 | 5) {
            let why = format!("{} voters are not 1, 3 or 5", c.voters);
            return refuse(why, "leave the number of voters out for 3");
        }
        if c.ula.prefix_len() != 48 || c.ula.network().segments()[0] >> 8 != 0xfd {
            let why = format!("{} is no unique local /48 (RFC 4193)", c.ula);
            return refuse(why, "leave the prefix out to have a random one made");
        }
        let next = "choose a private range from /8 to /26, such as --ipv4-pool 10.90.0.0/16";
        if !(8..=26).contains(&c.ipv4_pool.prefix_len()) {
            let why = format!("the IPv4 pool {} is not from /8 to /26", c.ipv4_pool);
            return refuse(why, next);
        }
        if free_ranges([].into_iter(), c.ipv4_pool, c.ula).is_none() {
            let why =
                format!("the IPv4 pool {} leaves no range for pods and services", c.ipv4_pool);
            return refuse(why, next);
        }
        Ok(())
    }

    pub(super) fn create_ticket(
        &mut self,
        digest: &Digest,
        role: TicketRole,
        network: Option<&Name>,
        expires: UnixMillis,
        uses: u32,
    ) -> Applied {
        if uses == 0 || uses > USES_MAX {
            return Err(Rejection::new(
                RejectCode::Invalid,
                "the ticket was not made",
                format!("--uses is {uses}, but must be 1 to {USES_MAX}"),
                "skein ticket create --uses 1",
            ));
        }
        if expires <= self.at {
            return Err(Rejection::new(
                RejectCode::Invalid,
                "the ticket was not made",
                "it would have expired already",
                "skein ticket create --expires 1h",
            ));
        }
        let network = self.network_or_default(network)?;
        let id = TicketId(self.index);
        let (at, by, digest) = (self.at, self.by.to_owned(), digest.clone());
        self.state.tickets.insert(
            id,
            Ticket {
                id,
                digest,
                role,
                network,
                expires,
                uses_left: uses,
                uses,
                revoked: false,
                at,
                by,
            },
        );
        self.emit(
            "system.ticket.created",
            Severity::Low,
            None,
            None,
            json!({
                "ticket": id, "uses": uses, "expires": expires, "by": self.by,
            }),
        );
        Ok(Change::Ticket { id })
    }

    pub(super) fn revoke_ticket(&mut self, id: TicketId) -> Applied {
        let Some(ticket) = self.state.tickets.get_mut(&id) else {
            return Err(Rejection::new(
                RejectCode::NotFound,
                format!("ticket {id} was not revoked"),
                "no ticket has this id",
                "skein ticket ls",
            ));
        };
        ticket.revoked = true;
        self.emit("system.ticket.revoked", Severity::Low, None, None, json!({"ticket": id}));
        Ok(Change::Nothing)
    }

    pub(super) fn admit_node(
        &mut self,
        ticket: TicketId,
        digest: &Digest,
        new: &NewNode,
        replaces: Option<&Name>,
    ) -> Applied {
        if let Some(known) = self.state.node_by_uuid(new.uuid) {
            // The same machine asks again under a new request id: its first admission stands, though
            // that one may have used the ticket up. The secret is still asked for: keys are public.
            let same = known.wireguard == new.wireguard
                && known.sealing == new.sealing
                && known.name == new.name;
            if same && ticket_with(self.state, ticket, digest).is_some_and(|t| !t.revoked) {
                return Ok(Change::Node { id: known.id });
            }
        }
        let (role, network) = check_ticket(self.state, ticket, digest, self.at)?;
        self.check_newcomer(new, replaces)?;
        let further = self.networks_of(replaces, network);
        let mut addresses = vec![(network, self.take_address(network)?)];
        let inherited = match replaces {
            Some(name) => self.retire(name, "replaced")?,
            None => None,
        };
        // The retired node made room in each of its networks.
        let rest = further.into_iter().filter_map(|n| Some((n, self.take_address(n).ok()?)));
        addresses.extend(rest);
        let id = NodeId(self.index);
        self.insert_node(id, new, role, addresses);
        if let Some(t) = self.state.tickets.get_mut(&ticket) {
            t.uses_left = t.uses_left.saturating_sub(1);
        }
        self.emit(
            "system.node.joined",
            Severity::Low,
            Some(id),
            None,
            json!({
                "node": new.name, "ticket": ticket, "replaces": replaces,
            }),
        );
        if let Some(old) = inherited {
            let cluster = old.cluster;
            self.inherit(id, old)?;
            cluster.into_iter().for_each(|c| self.settle_cluster(c));
        }
        Ok(Change::Node { id })
    }

    /// The networks beside the ticket's that a replacement takes over from the node whose place it takes.
    fn networks_of(&self, replaced: Option<&Name>, ticket: NetworkId) -> Vec<NetworkId> {
        let old = replaced.and_then(|name| self.state.node_named(name));
        let all = old.into_iter().flat_map(|n| n.networks.keys().copied());
        all.filter(|n| *n != ticket).collect()
    }

    fn check_newcomer(&self, new: &NewNode, replaces: Option<&Name>) -> Result<(), Rejection> {
        let what = format!("node {} was not admitted", new.name);
        let old = match replaces {
            Some(name) => Some(self.state.node_named(name).ok_or_else(|| {
                Rejection::new(
                    RejectCode::NotFound,
                    what.clone(),
                    format!("--replaces names {name}, but there is no such node"),
                    format!("nodes are: {}", list(self.state.nodes.values().map(|n| &n.name))),
                )
            })?),
            None => None,
        };
        let old_id = old.map(|n| n.id);
        let others = || self.state.nodes.values().filter(|n| Some(n.id) != old_id);
        if others().any(|n| n.name == new.name) {
            return Err(Rejection::new(
                RejectCode::Exists,
                what,
                format!("a node named {} is a member already", new.name),
                format!(
                    "choose another name with --name, or, if this machine takes its place, add --replaces {}",
                    new.name
                ),
            ));
        }
        let taken = |n: &Node| n.uuid == new.uuid || n.wireguard == new.wireguard;
        // The replaced node's identity is refused from then on: its successor cannot bear it.
        let reborn = old.is_some_and(|o| o.uuid == new.uuid);
        let device = self.device_key_taken(&new.wireguard);
        if others().any(|n| taken(n)) || reborn || device || self.state.is_retired(new.uuid) {
            return Err(Rejection::new(
                RejectCode::Exists,
                what,
                "its keys belong, or belonged, to another node: was the state folder copied?",
                "empty the state folder (/var/lib/skein) on the new machine and join again",
            ));
        }
        Ok(())
    }

    /// Gives a replacement the role of the node whose place it takes, to be started afresh.
    fn inherit(&mut self, id: NodeId, old: Assignment) -> Result<(), Rejection> {
        if old.leaving {
            return Ok(());
        }
        let name = self.state.nodes[&id].name.clone();
        self.put_assignment(&name, old.role, old.cluster, 0)
    }

    fn insert_node(
        &mut self,
        id: NodeId,
        new: &NewNode,
        ticket_role: TicketRole,
        addresses: Vec<(NetworkId, OverlayAddress)>,
    ) {
        let at = self.at;
        self.state.nodes.insert(
            id,
            Arc::new(Node {
                id,
                uuid: new.uuid,
                name: new.name.clone(),
                wireguard: new.wireguard,
                sealing: new.sealing,
                key_box: None,
                ticket_role,
                networks: addresses.into_iter().collect(),
                assignment: None,
                drain: None,
                terminating: false,
                at,
            }),
        );
    }

    pub(super) fn hand_key(&mut self, node: NodeId, key_box: &Sealed) -> Applied {
        if let Some(node) = self.state.node_mut(node) {
            node.key_box.get_or_insert_with(|| key_box.clone());
        }
        Ok(Change::Nothing)
    }

    pub(super) fn admit_operator(&mut self, name: &Name, serial: Uuid) -> Applied {
        let operator = Operator { name: name.clone(), serial, at: self.at };
        self.state.operators.insert(name.clone(), operator);
        self.emit(
            "system.operator.admitted",
            Severity::Medium,
            None,
            None,
            json!({
                "operator": name, "by": self.by,
            }),
        );
        Ok(Change::Nothing)
    }

    pub(super) fn remove_operator(&mut self, name: &Name) -> Applied {
        if self.state.operators.remove(name).is_none() {
            return Err(Rejection::new(
                RejectCode::NotFound,
                format!("operator {name} was not removed"),
                "there is no such operator",
                format!("operators are: {}", list(self.state.operators.keys())),
            ));
        }
        self.emit(
            "system.operator.removed",
            Severity::Medium,
            None,
            None,
            json!({"operator": name}),
        );
        Ok(Change::Nothing)
    }
}

fn ticket_with<'a>(state: &'a State, id: TicketId, digest: &Digest) -> Option<&'a Ticket> {
    state.tickets.get(&id).filter(|t| t.digest == *digest)
}

/// Tells whether a machine could be admitted with this ticket at `at`, or why not.
///
/// # Errors
/// A refusal with a code of its own for each reason.
pub fn redeemable(
    state: &State,
    id: TicketId,
    digest: &Digest,
    uuid: Uuid,
    at: UnixMillis,
) -> Result<(), Rejection> {
    let again = state.node_by_uuid(uuid).is_some()
        && ticket_with(state, id, digest).is_some_and(|t| !t.revoked);
    if again { Ok(()) } else { check_ticket(state, id, digest, at).map(drop) }
}

fn check_ticket(
    state: &State,
    id: TicketId,
    digest: &Digest,
    at: UnixMillis,
) -> Result<(TicketRole, NetworkId), Rejection> {
    let again = "make a new one on any member: skein ticket create";
    let refuse = |code, why: String| Rejection::new(code, "the ticket was refused", why, again);
    let ticket = ticket_with(state, id, digest).ok_or_else(|| {
        refuse(RejectCode::TicketUnknown, "no ticket has this id and secret".into())
    })?;
    if ticket.revoked {
        return Err(refuse(RejectCode::TicketRevoked, "an operator revoked it".into()));
    }
    if ticket.uses_left == 0 {
        let why = format!("it was good for {} and all are used up", ticket.uses);
        return Err(refuse(RejectCode::TicketUsed, why));
    }
    if at >= ticket.expires {
        let late = humanize_ms(at.0.saturating_sub(ticket.expires.0));
        return Err(refuse(RejectCode::TicketExpired, format!("it expired {late} ago")));
    }
    Ok((ticket.role, ticket.network))
}

/// Writes a span of milliseconds as people say it.
pub(super) fn humanize_ms(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..=119 => format!("{s} s"),
        120..=7199 => format!("{} min", s / 60),
        7200..=172_799 => format!("{} h", s / 3600),
        _ => format!("{} days", s / 86_400),
    }
}
