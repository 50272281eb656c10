//! Two nodes that have applied the same log have the same state: `apply` is deterministic, and no node skipped,
//! repeated or reordered an entry. Pure.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;

use raft_store::model::State;
use serde_json::Value;

use super::{Applied, Invariant};

/// Above this many members a state is compared at each so many indexes only: it costs as much as it is large.
const LARGE: usize = 50;
const STRIDE: u64 = 64;
/// How many indexes are remembered.
const KEPT: usize = 4_096;
const STATES_KEPT: usize = 64;

/// See the module.
#[derive(Default)]
pub struct Agreement {
    seen: BTreeMap<u64, (u64, usize)>,
    /// The newest states themselves, to say in what they differ.
    states: BTreeMap<u64, Arc<State>>,
}

impl Invariant for Agreement {
    fn name(&self) -> &'static str {
        "agreement"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        if a.state.nodes.len() > LARGE && !a.index.is_multiple_of(STRIDE) {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&**a.state).map_err(|e| e.to_string())?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        let hash = hasher.finish();
        self.states.entry(a.index).or_insert_with(|| a.state.clone());
        if self.states.len() > STATES_KEPT {
            self.states.pop_first();
        }
        let (known, by) = *self.seen.entry(a.index).or_insert((hash, a.machine));
        if self.seen.len() > KEPT {
            self.seen.pop_first();
        }
        if known == hash {
            return Ok(());
        }
        let where_ = self.states.get(&a.index).map(|other| differing(other, a.state));
        let (machine, index) = (a.machine, a.index);
        Err(format!(
            "machines {by} and {machine} differ at index {index}: {}",
            where_.unwrap_or_default()
        ))
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
