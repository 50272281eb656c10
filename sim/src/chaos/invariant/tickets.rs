//! A ticket lets as many machines in as it was made for: whoever finds a used one, in a history of commands or a message,
//! must not become a member with it. Pure.

use std::collections::BTreeSet;

use raft_store::model::State;
use uuid::Uuid;

use super::{Applied, Invariant};

/// See the module.
#[derive(Default)]
pub struct Tickets;

impl Invariant for Tickets {
    fn name(&self) -> &'static str {
        "tickets"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        // The first node of all founds the fleet, without a ticket.
        let Some(before) = a.before.filter(|before| !before.nodes.is_empty()) else {
            return Ok(());
        };
        let (old, new) = (everybody(before), everybody(a.state));
        let admitted = new.difference(&old).count();
        let used: u32 = (a.state.tickets.values())
            .map(|t| {
                let left = before.tickets.get(&t.id).map_or(t.uses, |b| b.uses_left);
                left.saturating_sub(t.uses_left)
            })
            .sum();
        if admitted > used as usize {
            let index = a.index;
            return Err(format!(
                "up to index {index}, {admitted} machines were let in and {used} tickets were used"
            ));
        }
        Ok(())
    }
}

/// All machines that are members, or were.
fn everybody(state: &State) -> BTreeSet<Uuid> {
    let retired = state.retired.values().map(|r| r.uuid);
    state.nodes.values().map(|n| n.uuid).chain(retired).collect()
}
