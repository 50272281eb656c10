//! What is to happen to a lab, from a seed: what a kernel allows of the simulator's schedules. Pure.
//!
//! The simulator's schedules are drawn for a world in which everything can be hurt. Several of them are laid over each
//! other, what real hosts cannot suffer or a fleet would not come back from is left out, and what is left is thinned.

use crate::chaos::draw::Draw;
use crate::chaos::schedule::{Act, Event, Profile, Schedule, VERSION};
use crate::chaos::world::net::Effect;

/// The cluster of a lab.
pub(super) const CLUSTER: &str = "lab";
/// A part of a plan, after which clients write to other registers, so that what they saw can be judged.
pub(super) const ROUND_MS: u64 = 40_000;
/// Pause between two faults, on average.
const FAULT_EVERY_MS: u64 = 4_500;
/// How many schedules are looked through for a round's faults.
const SCHEDULES_MAX: u64 = 40;
/// A host is left in peace for so long after a fault of its own.
const PEACE_MS: u64 = 3_000;
/// How long a host that lost everything may need to be a voter again; until then no other one loses everything.
const WIPED_MS: u64 = 60_000;
/// How many acts of people a round has at most, and of clients beside those that always write.
const PEOPLE_MAX: usize = 5;
const CLIENTS_MAX: usize = 2;

/// Draws what happens to so many hosts in so much time.
pub(super) fn plan(seed: u64, hosts: usize, until_ms: u64) -> Schedule {
    let mut events = Vec::new();
    let rounds = until_ms.div_ceil(ROUND_MS).max(1);
    for round in 0..rounds {
        let from = round * ROUND_MS;
        let ms = ROUND_MS.min(until_ms.saturating_sub(from));
        let drawn = one_round(seed, round, hosts, ms);
        events.extend(drawn.into_iter().map(|e| Event { at_ms: from + e.at_ms, ..e }));
    }
    let mut events = apart(events);
    for event in &mut events {
        let left = until_ms.saturating_sub(event.at_ms);
        if let Some(ms) = event.act.for_ms_mut() {
            *ms = (*ms).min(left);
        }
    }
    Schedule {
        version: VERSION,
        seed,
        profile: Profile::Default,
        sites: vec![0; hosts],
        between_us: 0,
        flaw: None,
        voters: 5,
        founders: hosts,
        until_ms,
        events,
    }
}

/// Gathers a round's events from schedules, until there are enough faults.
fn one_round(seed: u64, round: u64, hosts: usize, ms: u64) -> Vec<Event> {
    let mut draw = Draw::new(seed, "lab", &[round]);
    let wanted = usize::try_from(ms.div_ceil(FAULT_EVERY_MS)).unwrap_or(1);
    let (mut faults, mut people, mut clients) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SCHEDULES_MAX {
        let schedule = Schedule::sized(draw.number(), Profile::Default, hosts);
        for event in schedule.events {
            let Some(act) = fitting(event.act, round).filter(|_| event.at_ms < ms) else {
                continue;
            };
            let of = match &act {
                act if act.is_fault() => &mut faults,
                Act::Clients { .. } => &mut clients,
                _ => &mut people,
            };
            of.push(Event { at_ms: event.at_ms, act });
        }
        if faults.len() >= wanted {
            break;
        }
    }
    for (of, most) in
        [(&mut faults, wanted), (&mut people, PEOPLE_MAX), (&mut clients, CLIENTS_MAX)]
    {
        while of.len() > most {
            of.swap_remove(draw.index(of.len()));
        }
    }
    let mut all = [faults, people, clients].concat();
    all.sort_by_key(|e| e.at_ms);
    all
}

/// Returns an act as a lab can suffer it.
fn fitting(act: Act, round: u64) -> Option<Act> {
    let network = |name: &str| format!("r{round}-{name}");
    let lab = || CLUSTER.to_owned();
    Some(match act {
        // To a daemon, one is like the other: what it writes is refused.
        Act::FullDrive { machine, for_ms } | Act::FailingDrive { machine, for_ms } => {
            Act::FullDrive { machine, for_ms }
        }
        Act::Net { effect: Effect::Cut | Effect::Loss(_), .. }
        | Act::Kill { .. }
        | Act::Stop { .. }
        | Act::PowerCut { .. }
        | Act::Pause { .. }
        | Act::Wipe { .. }
        | Act::K3sCrash { .. }
        | Act::Drain { .. }
        | Act::Undrain { .. }
        | Act::Clients { .. } => act,
        Act::KillHolder { power, for_ms, .. } => Act::KillHolder { cluster: lab(), power, for_ms },
        Act::DrainHolder { via, .. } => Act::DrainHolder { cluster: lab(), via },
        Act::MoveVip { to, via, .. } => Act::MoveVip { cluster: lab(), to, via },
        Act::CreateNetwork { name, via } => Act::CreateNetwork { name: network(&name), via },
        Act::Attach { machine, network: name, via } => {
            Act::Attach { machine, network: network(&name), via }
        }
        _ => return None,
    })
}

/// Which host an act strikes by itself, so that nothing else may strike it meanwhile; the network is another matter.
pub(super) fn struck(act: &Act) -> Option<usize> {
    match act {
        Act::Kill { machine, .. }
        | Act::Stop { machine, .. }
        | Act::PowerCut { machine, .. }
        | Act::Pause { machine, .. }
        | Act::FullDrive { machine, .. }
        | Act::Wipe { machine } => Some(*machine),
        _ => None,
    }
}

/// Leaves out what would strike a host that is struck already, and what a majority of the voters would not survive.
fn apart(events: Vec<Event>) -> Vec<Event> {
    let mut busy: Vec<u64> = Vec::new();
    let mut wiped = 0;
    let mut kept = Vec::new();
    for event in events {
        if let Some(machine) = struck(&event.act) {
            busy.resize(busy.len().max(machine + 1), 0);
            let is_wipe = matches!(event.act, Act::Wipe { .. });
            if event.at_ms < busy[machine] || (is_wipe && event.at_ms < wiped) {
                continue;
            }
            let lasts = event.act.for_ms().unwrap_or(0);
            busy[machine] = event.at_ms + lasts + PEACE_MS;
            if is_wipe {
                wiped = event.at_ms + WIPED_MS;
                busy[machine] = wiped;
            }
        }
        kept.push(event);
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_plan_and_every_kind_of_fault_is_drawn() {
        assert_eq!(plan(3, 5, 120_000), plan(3, 5, 120_000));
        assert_ne!(plan(3, 5, 120_000), plan(4, 5, 120_000));
        let all: Vec<Event> = (0..40).flat_map(|seed| plan(seed, 5, 120_000).events).collect();
        let kinds: BTreeSet<&str> = all.iter().map(|e| e.act.kind()).collect();
        for kind in [
            "kill",
            "stop",
            "pause",
            "power-cut",
            "wipe",
            "cut",
            "loss",
            "full-drive",
            "k3s-crash",
            "kill-holder",
            "drain",
            "undrain",
            "move-vip",
            "clients",
        ] {
            assert!(kinds.contains(kind), "{kind} is never drawn: {kinds:?}");
        }
    }

    #[test]
    fn faults_are_frequent_and_end_in_time() {
        let mut faults = 0;
        for seed in 0..40 {
            let plan = plan(seed, 5, 120_000);
            assert!(plan.events.is_sorted_by_key(|e| e.at_ms));
            faults += plan.events.iter().filter(|e| e.act.is_fault()).count();
            for event in &plan.events {
                assert!(event.at_ms + event.act.for_ms().unwrap_or(0) <= 120_000, "{event:?}");
            }
        }
        let mean_ms = 40 * 120_000 / faults;
        assert!((4_000..=6_000).contains(&mean_ms), "one fault in {mean_ms} ms");
    }

    #[test]
    fn no_host_is_struck_twice_at_a_time_and_one_at_most_loses_everything() {
        for seed in 0..100 {
            let plan = plan(seed, 5, 240_000);
            let strikes = plan.events.iter().filter_map(|e| Some((struck(&e.act)?, e)));
            let strikes: Vec<(usize, &Event)> = strikes.collect();
            for (n, (machine, first)) in strikes.iter().enumerate() {
                let until = first.at_ms + first.act.for_ms().unwrap_or(0);
                let mut later = strikes[n + 1..].iter();
                assert!(later.all(|(m, e)| m != machine || e.at_ms >= until), "{first:?}");
            }
            let wipes = strikes.iter().filter(|(_, e)| e.act.kind() == "wipe");
            let wipes: Vec<u64> = wipes.map(|(_, e)| e.at_ms).collect();
            assert!(wipes.windows(2).all(|w| w[1] - w[0] >= WIPED_MS), "{wipes:?}");
        }
    }
}
