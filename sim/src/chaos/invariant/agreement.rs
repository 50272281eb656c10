//! Two nodes that have applied the same log have the same state: `apply` is deterministic, and no node skipped,
//! repeated or reordered an entry. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft_store::model::State;
use serde_json::Value;

use super::{Applied, Invariant, is_compared};

/// How many indexes are remembered. What differed further back still differs in these.
const KEPT: usize = 1_024;

/// See the module.
#[derive(Default)]
pub struct Agreement {
    /// What the first machine had that applied an index, and which one that was.
    seen: BTreeMap<u64, (Arc<State>, usize)>,
}

impl Invariant for Agreement {
    fn name(&self) -> &'static str {
        "agreement"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        if !is_compared(a.index, a.state) {
            return Ok(());
        }
        let Some((known, by)) = self.seen.get(&a.index) else {
            self.seen.insert(a.index, (a.state.clone(), a.machine));
            if self.seen.len() > KEPT {
                self.seen.pop_first();
            }
            return Ok(());
        };
        if known == a.state {
            return Ok(());
        }
        let (machine, index) = (a.machine, a.index);
        let where_ = differing(known, a.state);
        Err(format!("machines {by} and {machine} differ at index {index}: {where_}"))
    }
}

/// Says where two states differ first.
fn differing(a: &State, b: &State) -> String {
    match (serde_json::to_value(a), serde_json::to_value(b)) {
        (Ok(a), Ok(b)) => difference(&a, &b, "").unwrap_or_default(),
        _ => String::new(),
    }
}

fn difference(a: &Value, b: &Value, path: &str) -> Option<String> {
    if a == b {
        return None;
    }
    let nothing = Value::Null;
    if let (Value::Object(x), Value::Object(y)) = (a, b) {
        let mut keys = x.keys().chain(y.keys());
        return keys.find_map(|k| {
            let (x, y) = (x.get(k).unwrap_or(&nothing), y.get(k).unwrap_or(&nothing));
            difference(x, y, &format!("{path}/{k}"))
        });
    }
    Some(format!("{path} is {a} and {b}"))
}
