//! Who may call what. Pure.

use raft_store::model::State;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::pki::Caller;
use crate::status::{detail, status};

/// The services that answer anybody.
const OPEN: [&str; 2] = ["/skein.v1.Join/", "/grpc.health.v1.Health/"];
/// The service between daemons.
const PEER: &str = "/skein.v1.Peer/";
/// Its method.
pub(crate) const PEER_CALL: &str = "/skein.v1.Peer/Call";

/// The refusal of a node that was removed; daemons know it by its words.
pub(crate) fn removed() -> Status {
    let next = "join again with a new ticket: skein join TICKET";
    let why = "this node was removed from the fleet";
    status(Code::PermissionDenied, detail("forbidden", "the call was refused", why, next))
}

/// Decides whether `caller` may call the method at `path`; returns the name for the record.
///
/// `quorum_needs` tells of a removed node whether Raft has to hear it until its vote is gone.
///
/// # Errors
/// A refusal that says why.
pub fn allow(
    path: &str,
    caller: &Caller,
    state: &State,
    quorum_needs: impl FnOnce(Uuid) -> bool,
) -> Result<String, Status> {
    let refuse = |why: String, next: &str| {
        Err(status(Code::PermissionDenied, detail("forbidden", "the call was refused", why, next)))
    };
    let peer = path.starts_with(PEER);
    match caller {
        Caller::Local if !peer => Ok("local".into()),
        Caller::Node(uuid) if state.is_retired(*uuid) => {
            if peer && quorum_needs(*uuid) {
                Ok(format!("node/{uuid}"))
            } else {
                Err(removed())
            }
        }
        Caller::Node(uuid) => match state.node_by_uuid(*uuid) {
            Some(node) => Ok(format!("node/{}", node.name)),
            // A node that this one has not heard of yet: Raft itself must be let through, so that it can learn.
            None if peer => Ok(format!("node/{uuid}")),
            None => refuse("this node is not a member".into(), "join with a ticket"),
        },
        Caller::Operator { name, serial } if !peer => {
            let known = state.operators.iter().find(|(n, _)| n.as_str() == name);
            match known {
                Some((_, o)) if o.serial == *serial => Ok(format!("operator/{name}")),
                Some(_) => refuse(
                    format!("operator {name} has a newer certificate than this one"),
                    "use the newer context file",
                ),
                None => refuse(format!("operator {name} was removed"), "skein operator add NAME"),
            }
        }
        _ if OPEN.iter().any(|p| path.starts_with(p)) => Ok("anonymous".into()),
        _ => refuse(
            "it needs a client certificate of this fleet".into(),
            "run skein on a member, or with an operator's context file",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::allow as decide;
    use super::*;
    use raft_store::model::{NodeId, Operator, Retired, UnixMillis};

    #[test]
    fn only_members_operators_and_this_machine_are_let_in() {
        let mut state = State::default();
        let gone = Uuid::from_u128(9);
        let name: raft_store::model::Name = "old".parse().unwrap();
        state.retired.insert(NodeId(3), Retired { uuid: gone, name, at: UnixMillis(0) });
        let ann: raft_store::model::Name = "ann".parse().unwrap();
        let serial = Uuid::from_u128(4);
        state.operators.insert(ann.clone(), Operator { name: ann, serial, at: UnixMillis(0) });
        let op = |serial| Caller::Operator { name: "ann".into(), serial };
        let allow =
            |path: &str, caller: &Caller, state: &State| decide(path, caller, state, |_| false);
        let status = "/skein.v1.Fleet/GetStatus";
        let peer = "/skein.v1.Peer/Call";
        assert!(allow(status, &Caller::Local, &state).is_ok());
        assert!(allow(peer, &Caller::Local, &state).is_err());
        assert!(allow(status, &op(serial), &state).is_ok());
        assert!(allow(status, &op(Uuid::from_u128(5)), &state).is_err());
        assert!(allow(peer, &op(serial), &state).is_err());
        assert!(allow(status, &Caller::Anonymous, &state).is_err());
        assert!(allow("/skein.v1.Join/Redeem", &Caller::Anonymous, &state).is_ok());
        assert!(allow(peer, &Caller::Node(gone), &state).is_err());
        assert!(allow(status, &Caller::Node(gone), &state).is_err());
        assert!(allow(status, &Caller::Node(Uuid::from_u128(8)), &state).is_err());
        let needed = |path: &str| decide(path, &Caller::Node(gone), &state, |id| id == gone);
        assert!(needed(peer).is_ok(), "Raft hears it until its vote is gone");
        assert!(needed(status).is_err(), "but the API does not");
    }
}
