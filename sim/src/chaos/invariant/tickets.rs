//! A ticket lets as many machines in as it was made for, and none once it was withdrawn: whoever finds such a one, in a
//! history of commands or a message, must not become a member with it. Pure.

use std::collections::BTreeSet;

use raft_store::model::{State, TicketId};
use uuid::Uuid;

use super::{Applied, Invariant};

/// See the module.
#[derive(Default)]
pub struct Tickets {
    /// Those that were withdrawn before anybody showed them.
    withdrawn: BTreeSet<TicketId>,
}

impl Tickets {
    /// Takes in that it was acknowledged that a ticket is withdrawn, which nobody had shown until then.
    pub fn withdrawn(&mut self, id: u64) {
        self.withdrawn.insert(TicketId(id));
    }
}

impl Invariant for Tickets {
    fn name(&self) -> &'static str {
        "tickets"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        let index = a.index;
        let mut withdrawn = self.withdrawn.iter().filter_map(|id| a.state.tickets.get(id));
        if let Some(ticket) = withdrawn.find(|t| t.uses_left < t.uses) {
            let id = ticket.id.0;
            return Err(format!(
                "up to index {index}, ticket {id} let a machine in, though withdrawn"
            ));
        }
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
