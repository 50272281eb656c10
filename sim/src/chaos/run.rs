//! One run: a fleet is made, a schedule happens to it, and it must heal. Shell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use node::enter::Init;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::flaw::Flaw;
use super::heal::heal;
use super::judge::{Judge, Violation};
use super::kernel;
use super::log::Listener;
use super::people::node_name;
use super::play::Stage;
use super::schedule::{Act, Schedule};
use super::story::Story;
use super::trace::Trace;
use super::watchdog::Watchdog;
use super::world::life::Start;
use super::world::{Shape, World};

/// How long the fleet may take to be made, without any fault.
const MADE_MAX: Duration = Duration::from_secs(120);

/// What is kept of a run's trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Its hash.
    Hash,
    /// Its steps in words, too.
    Text,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The trace, as one number in hexadecimal.
    pub hash: String,
    /// How many steps the trace has.
    pub steps: u64,
    /// The first violation.
    pub violation: Option<Violation>,
    /// How much virtual time passed, in microseconds.
    pub virtual_us: u64,
    /// How many faults of each kind there were.
    pub faults: BTreeMap<&'static str, u64>,
    /// How many calls of clients were judged.
    pub calls: usize,
    /// What it looked like over time.
    pub story: Story,
    /// The steps in words, if they were wanted.
    pub text: Vec<String>,
}

/// Runs a schedule.
///
/// # Errors
/// When the kernel gives no runtime.
pub fn run(schedule: &Schedule, keep: Keep) -> Result<Outcome, String> {
    let trace = Arc::new(if keep == Keep::Text { Trace::with_text() } else { Trace::default() });
    let kept = trace.clone();
    let (judge, virtual_us, faults) = kernel::run(async move { whole(schedule, trace).await })?;
    Ok(Outcome {
        hash: kept.hash(),
        steps: kept.steps(),
        violation: judge.violation(),
        virtual_us,
        faults,
        calls: judge.clients(|c| c.count()),
        story: judge.story(),
        text: kept.text(),
    })
}

/// Tells whether a run of a schedule violates the invariant of this name.
pub fn violates(schedule: &Schedule, name: &str) -> bool {
    run(schedule, Keep::Hash).is_ok_and(|o| o.violation.is_some_and(|v| v.name == name))
}

type Whole = (Judge, u64, BTreeMap<&'static str, u64>);

async fn whole(schedule: &Schedule, trace: Arc<Trace>) -> Whole {
    let shape =
        Shape { sites: schedule.sites.clone(), between_us: schedule.between_us, packets: true };
    let judge = Judge::default();
    let _heard = tracing::subscriber::set_default(Listener::new(judge.clone()));
    let world = World::new(schedule.seed, &shape, schedule.flaw, trace, judge.clone());
    if schedule.flaw == Some(Flaw::SecondFounder) {
        world.kubernetes().found_again();
    }
    let stage = Stage { world: world.clone(), judge: judge.clone() };
    world.scope().spawn("looking", judge.clone().look(world.clone()));
    if schedule.flaw == Some(Flaw::BlindPlanner) {
        world.scope().spawn("forger", world.clone().speak_for_the_dead());
    }
    let mut faults = BTreeMap::new();
    let _watched = Watchdog::watch(&world);
    tokio::select! {
        biased;
        () = judge.found() => {}
        () = happen(&stage, schedule, &mut faults) => {}
    }
    let virtual_us = world.now_us();
    world.end();
    (judge, virtual_us, faults)
}

async fn happen(stage: &Stage, schedule: &Schedule, faults: &mut BTreeMap<&'static str, u64>) {
    if let Err(why) = make(stage, schedule).await {
        stage.judge.convict(&stage.world, "made", why);
        return;
    }
    stage.judge.made(stage.world.now_us());
    let began = Instant::now();
    for (number, event) in schedule.events.iter().enumerate() {
        sleep_until(began + Duration::from_millis(event.at_ms)).await;
        if event.act.is_fault() {
            *faults.entry(event.act.kind()).or_default() += 1;
        }
        stage.play(number, event);
    }
    sleep_until(began + Duration::from_millis(schedule.until_ms)).await;
    let moved = schedule.events.iter().any(|e| matches!(e.act, Act::Readdress { .. }));
    if let Err(why) = heal(stage, moved).await {
        stage.judge.convict(&stage.world, "heals", why);
    }
    let judged = stage.judge.clients(|c| c.judge());
    if let Err(why) = judged {
        stage.judge.convict(&stage.world, "acknowledged", why);
    }
}

/// Makes the fleet: one machine founds it, the others that are there from the beginning join.
async fn make(stage: &Stage, schedule: &Schedule) -> Result<(), String> {
    let world = &stage.world;
    let name = node_name(0).parse().map_err(|_| "a machine's name is no name".to_owned())?;
    world.start(0, Start::Init(Init { name, ipv4_pool: None, voters: schedule.voters }));
    let made = async {
        while world.machine(0).and_then(|m| m.life()).and_then(|l| l.served()).is_none() {
            sleep(Duration::from_millis(50)).await;
        }
        for machine in 1..schedule.founders {
            stage.join(machine, 0, false).await;
        }
        let whole = |n: usize| world.serving().len() >= n;
        while !whole(schedule.founders) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let late = |_| format!("the fleet was not made within {} s", MADE_MAX.as_secs());
    timeout(MADE_MAX * u32::try_from(schedule.founders).unwrap_or(1), made).await.map_err(late)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::schedule::Profile;

    #[test]
    fn nothing_of_a_run_is_left_when_it_is_over() {
        let schedule = Schedule::from_seed(7, Profile::Small);
        let trace = Arc::new(Trace::default());
        let given = trace.clone();
        let judge = kernel::run(async { whole(&schedule, given).await.0 }).unwrap();
        assert!(judge.violation().is_none() && trace.steps() > 1_000);
        assert_eq!(Arc::strong_count(&trace), 1, "somebody still holds the world, hence its trace");
    }
}
