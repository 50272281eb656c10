//! Founding, tickets, admission and removal of nodes' identities and operators. Pure.

use serde_json::json;
use uuid::Uuid;

use super::command::{Change, FoundFleet, NewNode, list};
use super::reject::{RejectCode, Rejection};
use super::{Applied, Context};
use crate::model::{
    Assignment, Digest, FOUNDER, Fleet, Name, NetworkId, Node, NodeId, Operator, OverlayAddress,
    Sealed, Severity, Ticket, TicketId, TicketRole, UnixMillis,
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
        self.state.fleet = Some(Fleet {
            id: c.id,
            ca_cert: c.ca_cert.clone(),
            ca_key: c.ca_key.clone(),
            ipv4_pool: c.ipv4_pool,
            ula: c.ula,
            voters: c.voters,
            at: self.at,
        });
        self.create_network(&c.network, None, None)?;
        let network = NetworkId(self.index);
        let address = self.take_address(network)?;
        self.insert_node(FOUNDER, &c.node, TicketRole::Voter, (network, address));
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
        self.emit(
            "system.ticket.revoked",
            Severity::Low,
            None,
            None,
            json!({"ticket": id}),
        );
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
            // The same machine asks again under a new request id: its first admission stands.
            if known.wireguard == new.wireguard && known.name == new.name {
                return Ok(Change::Node { id: known.id });
            }
        }
        let (role, network) = self.check_ticket(ticket, digest)?;
        self.check_newcomer(new, replaces)?;
        let address = self.take_address(network)?;
        let inherited = match replaces {
            Some(name) => self.retire(name, "replaced")?,
            None => None,
        };
        let id = NodeId(self.index);
        self.insert_node(id, new, role, (network, address));
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
        self.inherit(id, network, inherited)?;
        Ok(Change::Node { id })
    }

    fn check_ticket(
        &self,
        id: TicketId,
        digest: &Digest,
    ) -> Result<(TicketRole, NetworkId), Rejection> {
        let again = "make a new one on any member: skein ticket create";
        let refuse = |code, why: String| Rejection::new(code, "the ticket was refused", why, again);
        let ticket = self
            .state
            .tickets
            .get(&id)
            .filter(|t| t.digest == *digest)
            .ok_or_else(|| {
                refuse(
                    RejectCode::TicketUnknown,
                    "no ticket has this id and secret".into(),
                )
            })?;
        if ticket.revoked {
            return Err(refuse(
                RejectCode::TicketRevoked,
                "an operator revoked it".into(),
            ));
        }
        if ticket.uses_left == 0 {
            let why = format!("it was good for {} and all are used up", ticket.uses);
            return Err(refuse(RejectCode::TicketUsed, why));
        }
        if self.at >= ticket.expires {
            let late = humanize_ms(self.at.0.saturating_sub(ticket.expires.0));
            return Err(refuse(
                RejectCode::TicketExpired,
                format!("it expired {late} ago"),
            ));
        }
        Ok((ticket.role, ticket.network))
    }

    fn check_newcomer(&self, new: &NewNode, replaces: Option<&Name>) -> Result<(), Rejection> {
        let what = format!("node {} was not admitted", new.name);
        let old = match replaces {
            Some(name) => Some(self.state.node_named(name).ok_or_else(|| {
                Rejection::new(
                    RejectCode::NotFound,
                    what.clone(),
                    format!("--replaces names {name}, but there is no such node"),
                    format!(
                        "nodes are: {}",
                        list(self.state.nodes.values().map(|n| &n.name))
                    ),
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
        if others().any(taken) || self.state.is_retired(new.uuid) {
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
    fn inherit(
        &mut self,
        id: NodeId,
        network: NetworkId,
        old: Option<Assignment>,
    ) -> Result<(), Rejection> {
        let Some(old) = old.filter(|a| !a.leaving) else {
            return Ok(());
        };
        let cluster = old.cluster.filter(|c| {
            self.state
                .clusters
                .get(c)
                .is_some_and(|c| c.network == network)
        });
        if cluster.is_none() && old.cluster.is_some() {
            return Ok(());
        }
        let name = self.state.nodes[&id].name.clone();
        self.put_assignment(&name, old.role, cluster, 0)
    }

    fn insert_node(
        &mut self,
        id: NodeId,
        new: &NewNode,
        ticket_role: TicketRole,
        (network, address): (NetworkId, OverlayAddress),
    ) {
        let at = self.at;
        self.state.nodes.insert(
            id,
            Node {
                id,
                uuid: new.uuid,
                name: new.name.clone(),
                wireguard: new.wireguard,
                sealing: new.sealing,
                key_box: None,
                ticket_role,
                networks: [(network, address)].into(),
                assignment: None,
                drain: None,
                at,
            },
        );
    }

    pub(super) fn hand_key(&mut self, node: NodeId, key_box: &Sealed) -> Applied {
        if let Some(node) = self.state.nodes.get_mut(&node) {
            node.key_box.get_or_insert_with(|| key_box.clone());
        }
        Ok(Change::Nothing)
    }

    pub(super) fn admit_operator(&mut self, name: &Name, serial: Uuid) -> Applied {
        let operator = Operator {
            name: name.clone(),
            serial,
            at: self.at,
        };
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
