//! Outcomes of the newest requests, found by id for retries and forgotten by age. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use super::id::RequestId;
use crate::apply::Outcome;

/// How many outcomes are remembered for retries.
pub const REMEMBERED: usize = 4_096;

/// A request's outcome, and where it was applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    /// The log index.
    pub index: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// The newest requests' outcomes; written as a map by id.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "BTreeMap<RequestId, Arc<Remembered>>")]
pub struct Requests {
    /// Shared, since each change of the state copies them.
    by_id: BTreeMap<RequestId, Arc<Remembered>>,
    /// Follows from the map; without it the oldest would be looked for among all.
    by_age: BTreeSet<(u64, RequestId)>,
}

impl From<BTreeMap<RequestId, Arc<Remembered>>> for Requests {
    fn from(by_id: BTreeMap<RequestId, Arc<Remembered>>) -> Self {
        let by_age = by_id.iter().map(|(id, r)| (r.index, *id)).collect();
        Self { by_id, by_age }
    }
}

impl Serialize for Requests {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.by_id.serialize(serializer)
    }
}

impl Requests {
    /// Returns what came of a request, if that is still remembered.
    pub fn get(&self, id: &RequestId) -> Option<&Remembered> {
        self.by_id.get(id).map(|r| &**r)
    }

    /// Returns how many are remembered.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Tells whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Remembers one, and forgets the oldest when there are too many.
    pub fn remember(&mut self, id: RequestId, remembered: Remembered) {
        if self.by_id.len() >= REMEMBERED
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.by_id.remove(&oldest);
        }
        let index = remembered.index;
        if let Some(former) = self.by_id.insert(id, Arc::new(remembered)) {
            self.by_age.remove(&(former.index, id));
        }
        self.by_age.insert((index, id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Change;
    use uuid::Uuid;

    fn remember(requests: &mut Requests, id: u128, index: u64) {
        let outcome = Outcome::Done { change: Change::Nothing };
        requests.remember(RequestId(Uuid::from_u128(id)), Remembered { index, outcome });
    }

    #[test]
    fn the_oldest_is_forgotten_also_after_a_snapshot() {
        let mut requests = Requests::default();
        for i in 0..REMEMBERED as u64 {
            // Ids run against age.
            remember(&mut requests, u128::from(u64::MAX - i), i);
        }
        let bytes = serde_json::to_vec(&requests).unwrap();
        let mut read: Requests = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(read, requests);
        for requests in [&mut requests, &mut read] {
            remember(requests, 1, 1 << 20);
            assert_eq!(requests.len(), REMEMBERED);
            assert!(requests.get(&RequestId(Uuid::from_u128(u128::from(u64::MAX)))).is_none());
            assert!(requests.get(&RequestId(Uuid::from_u128(u128::from(u64::MAX - 1)))).is_some());
        }
        assert_eq!(read, requests);
    }
}
