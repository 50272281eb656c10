//! Whatever is seen, plans come to an end, and never make things worse. Pure.

use proptest::prelude::*;

use super::fixture::{Leader, ms, report};
use crate::apply::Command;
use crate::apply::tests::fixture::World;
use crate::apply::tests::generator::{aim, command};
use crate::model::NodeId;
use crate::plan::{Health, PreparedVip, WINDOW};

/// How a node presents itself to the leader.
#[derive(Clone, Copy, Debug)]
enum Heard {
    Never,
    Lost,
    Live(Option<bool>),
    UnreadyForLong,
}

fn heard() -> impl Strategy<Value = Heard> {
    prop_oneof![
        1 => Just(Heard::Never),
        1 => Just(Heard::Lost),
        3 => Just(Heard::Live(Some(true))),
        1 => Just(Heard::Live(Some(false))),
        1 => Just(Heard::Live(None)),
        1 => Just(Heard::UnreadyForLong),
    ]
}

/// Brings the leader to now, `listened` after it began.
fn listen(l: &mut Leader, how: &[Heard], listened: u64) {
    let nodes: Vec<NodeId> = l.world.state.nodes.keys().copied().collect();
    let start = l.now;
    l.now = start + ms(listened);
    for (i, node) in nodes.into_iter().enumerate() {
        match how[i % how.len()] {
            Heard::Never => {}
            Heard::Lost => l.seen.report(report(node, Some(true)), start),
            Heard::Live(ready) => l.seen.report(report(node, ready), l.now),
            Heard::UnreadyForLong => {
                let mut t = start;
                while t < l.now {
                    l.seen.report(report(node, Some(false)), t);
                    t += ms(100);
                }
                l.seen.report(report(node, Some(false)), l.now);
            }
        }
    }
}

/// Live nodes that were asked to prepare a VIP say that they have.
fn prepare(l: &mut Leader) {
    let vips: Vec<_> = l.world.state.vips.values().cloned().collect();
    for vip in vips {
        let Some(next) = vip.next.map(|n| n.node) else {
            continue;
        };
        if l.seen.health(next, l.now) != Health::Live {
            continue;
        }
        let mut r = l.seen.seen(next).unwrap().report.clone();
        r.vips.push(PreparedVip { vip: vip.id, generation: vip.generation });
        l.seen.report(r, l.now);
    }
}

/// A VIP goes only to a server that is a candidate, heard and ready; or a plan is cancelled.
fn never_worse(l: &Leader, c: &Command) -> Result<(), TestCaseError> {
    let (vip, to, moved) = match c {
        Command::MoveVip { vip, to, .. } => (vip, to, true),
        Command::PrepareVip { vip, to, .. } => (vip, to, false),
        _ => return Ok(()),
    };
    let vip = &l.world.state.vips[vip];
    if vip.holder == Some(*to) {
        prop_assert!(!moved && vip.next.is_some());
        return Ok(());
    }
    let node = &l.world.state.nodes[to];
    prop_assert_eq!(l.world.state.candidacy(vip, node), Ok(()));
    prop_assert_eq!(l.seen.health(*to, l.now), Health::Live);
    prop_assert_eq!(l.seen.seen(*to).unwrap().report.api_ready, Some(true));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn plans_come_to_an_end(
        commands in prop::collection::vec(command(), 0..60),
        how in prop::collection::vec(heard(), 1..8),
        listened in prop::sample::select(vec![0u64, 400, 600, 4_000, 200_000]),
    ) {
        let mut w = World::lab(3, 1);
        for c in commands {
            let c = aim(&w.state, c);
            w.run(c);
        }
        let mut l = Leader::new(w);
        listen(&mut l, &how, listened);
        for _ in 0..6 {
            for c in l.plan() {
                never_worse(&l, &c)?;
            }
            if l.turn().is_empty() {
                return Ok(());
            }
            prepare(&mut l);
        }
        prop_assert_eq!(l.plan(), vec![]);
    }

    #[test]
    fn nothing_is_planned_before_the_window_unless_it_was_heard(
        commands in prop::collection::vec(command(), 0..60),
        after in 0u64..500,
    ) {
        let mut w = World::lab(3, 1);
        for c in commands {
            let c = aim(&w.state, c);
            w.run(c);
        }
        let mut l = Leader::new(w);
        l.now += ms(after);
        prop_assert!(ms(after) < WINDOW);
        let vips = l.plan();
        prop_assert!(vips.iter().all(|c| matches!(c, Command::Note { .. })), "{:?}", vips);
    }
}
