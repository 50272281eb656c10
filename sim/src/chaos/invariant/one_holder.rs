//! A VIP has one holder in a generation, and its generation only grows: receivers take packets from the holder of the
//! newest generation that they know, so two holders of one generation would both be believed. Pure.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};

use raft_store::model::{NodeId, VipId};

use super::{Applied, Invariant};

/// Who held which VIP in which generation, by whatever names they go.
pub struct Holders<V, N> {
    holders: BTreeMap<(V, u64), N>,
    /// The newest index at which each VIP was seen, and its generation then.
    newest: BTreeMap<V, (u64, u64)>,
}

impl<V, N> Default for Holders<V, N> {
    fn default() -> Self {
        Self { holders: BTreeMap::new(), newest: BTreeMap::new() }
    }
}

impl<V: Clone + Ord, N: Clone + PartialEq + Debug> Holders<V, N> {
    /// Takes in who holds a VIP at an index of the log.
    ///
    /// # Errors
    /// In words, when another one held it in this generation, or its generation was greater before.
    pub fn seen(
        &mut self,
        index: u64,
        (vip, name): (&V, impl Display),
        generation: u64,
        holder: &N,
    ) -> Result<(), String> {
        let known = self.holders.entry((vip.clone(), generation)).or_insert_with(|| holder.clone());
        if known != holder {
            return Err(format!(
                "VIP {name} has two holders in generation {generation}: {known:?} and {holder:?}"
            ));
        }
        let (at, newest) = self.newest.entry(vip.clone()).or_insert((index, generation));
        if index >= *at && generation < *newest {
            return Err(format!("VIP {name} went back from generation {newest} to {generation}"));
        }
        if index >= *at {
            (*at, *newest) = (index, generation);
        }
        Ok(())
    }
}

/// See the module.
#[derive(Default)]
pub struct OneHolder(Holders<VipId, Option<NodeId>>);

impl Invariant for OneHolder {
    fn name(&self) -> &'static str {
        "one_holder"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        let mut vips = a.state.vips.values();
        vips.try_for_each(|v| self.0.seen(a.index, (&v.id, &v.name), v.generation.0, &v.holder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_holder_takes_another_generation_and_none_comes_back_later() {
        let mut holders = Holders::<u8, u8>::default();
        let mut seen =
            |index, generation, holder| holders.seen(index, (&1, "v"), generation, &holder);
        assert_eq!(seen(10, 1, 7), Ok(()));
        assert!(seen(11, 1, 8).is_err_and(|why| why.contains("two holders")));
        assert_eq!(seen(12, 2, 8), Ok(()));
        assert_eq!(seen(11, 1, 7), Ok(()), "a node that lags behind");
        assert!(seen(13, 1, 7).is_err_and(|why| why.contains("went back")));
    }
}
