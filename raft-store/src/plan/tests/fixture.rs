//! A fleet as a leader hears it. Pure.

use std::time::{Duration, Instant};

use crate::apply::tests::fixture::World;
use crate::apply::{Command, Outcome};
use crate::model::NodeId;
use crate::plan::{Liveness, PreparedVip, Report, plan};

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[expect(
    clippy::disallowed_methods,
    reason = "an instant can only be had from the clock; all others count from it"
)]
pub(super) fn some_instant() -> Instant {
    Instant::now()
}

pub(super) fn report(node: NodeId, api_ready: Option<bool>) -> Report {
    Report {
        node,
        applied: 0,
        api_ready,
        api_detail: None,
        vips: vec![],
        overlay: None,
        waiting_for: vec![],
        last_words: None,
        wall: None,
        pace: None,
        version: "0.1.0".into(),
    }
}

/// A world, and a leader that listens to it.
pub(super) struct Leader {
    pub(super) world: World,
    pub(super) seen: Liveness,
    pub(super) now: Instant,
}

impl Leader {
    pub(super) fn new(world: World) -> Self {
        let now = some_instant();
        Self { world, seen: Liveness::new(now), now }
    }

    /// Hears each named node, its API as given.
    pub(super) fn hear(&mut self, nodes: &[&str], api_ready: Option<bool>) {
        for node in nodes {
            let node = self.world.id(node);
            self.seen.report(report(node, api_ready), self.now);
        }
    }

    /// Hears the named nodes, all ready, each 100 ms for a while.
    pub(super) fn hear_for(&mut self, nodes: &[&str], span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now += ms(100);
            self.hear(nodes, Some(true));
        }
    }

    /// Hears that a node has the VIP's address on its device, at this generation.
    pub(super) fn hear_prepared(&mut self, node: &str, generation: u64) {
        let id = self.world.id(node);
        let mut r = report(id, Some(true));
        r.vips = vec![PreparedVip {
            vip: self.world.vip("lab").id,
            generation: crate::model::Generation(generation),
        }];
        self.seen.report(r, self.now);
    }

    pub(super) fn plan(&self) -> Vec<Command> {
        plan(&self.world.state, &self.seen, self.now)
    }

    /// Applies what is planned now and returns it.
    pub(super) fn turn(&mut self) -> Vec<Command> {
        let commands = self.plan();
        for c in &commands {
            let outcome = self.world.run(c.clone());
            assert!(matches!(outcome, Outcome::Done { .. }), "{c:?}: {outcome:?}");
        }
        commands
    }
}
