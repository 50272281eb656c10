//! Watches a run: shows every state and every moment to the invariants, and keeps the first violation. Shell.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use raft_store::model::State;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::distort::{distort, rewound};
use super::invariant::no_secret::NoSecret;
use super::invariant::tickets::Tickets;
use super::invariant::votes_grow::VotesGrow;
use super::invariant::{Applied, Invariant, Moment, Standing, acknowledged, all, is_compared};
use super::story::{Now, Reached, Story};
use super::world::life::{Life, Served};
use super::world::stack::Asked;
use super::world::{World, lock};

/// How often the whole fleet is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name, which stays.
    pub name: String,
    /// What was seen.
    pub why: String,
    /// When, in microseconds of virtual time.
    pub at_us: u64,
    /// One line for each node.
    pub nodes: Vec<String>,
}

/// The judge of a run. Clones share it.
#[derive(Clone)]
pub struct Judge(Arc<Bench>);

struct Bench {
    state: Mutex<Docket>,
    found: Notify,
}

struct Docket {
    invariants: Vec<Box<dyn Invariant>>,
    acknowledged: acknowledged::Acknowledged,
    no_secret: NoSecret,
    votes: VotesGrow,
    tickets: Tickets,
    told: Option<String>,
    newest: Option<(u64, Arc<State>)>,
    violation: Option<Violation>,
    faults: usize,
    /// Those of the ways between daemons, and of drives.
    path_faults: usize,
    /// Whether any machine's address has changed.
    moved: bool,
    story: Story,
    /// When the fleet was looked at last, in milliseconds.
    looked_ms: u64,
}

impl Default for Judge {
    fn default() -> Self {
        let docket = Docket {
            invariants: all(),
            acknowledged: acknowledged::Acknowledged::default(),
            no_secret: NoSecret::default(),
            votes: VotesGrow::default(),
            tickets: Tickets::default(),
            told: None,
            newest: None,
            violation: None,
            faults: 0,
            path_faults: 0,
            moved: false,
            story: Story::default(),
            looked_ms: 0,
        };
        Self(Arc::new(Bench { state: Mutex::new(docket), found: Notify::new() }))
    }
}

impl Judge {
    /// Watches a daemon for as long as it lives.
    pub fn watch(&self, world: &World, machine: usize, life: &Arc<Life>, served: Arc<dyn Served>) {
        let (judge, world) = (self.clone(), world.clone());
        life.scope.spawn("judge", async move {
            let mut seen = 0;
            loop {
                let (index, state) = served.applied();
                if index > seen {
                    let state = distort(world.flaw(), &state);
                    seen = index;
                    judge.applied(&world, machine, index, &state);
                }
                drop(state);
                served.changed(seen).await;
            }
        });
    }

    fn applied(&self, world: &World, machine: usize, index: u64, state: &Arc<State>) {
        let mut docket = lock(&self.0.state);
        let Docket { invariants, newest, acknowledged, no_secret, tickets, .. } = &mut *docket;
        let before = newest.as_ref().filter(|(known, _)| *known < index).map(|(_, s)| s.clone());
        let is_newest = newest.as_ref().is_none_or(|(known, _)| *known < index);
        if !is_newest && !is_compared(index, state) {
            return;
        }
        let seen = Applied { index, before: before.as_deref(), state, machine };
        let checks = invariants.iter_mut().map(|i| &mut **i);
        let mut failed: Option<(&'static str, String)> = None;
        for check in checks.chain([acknowledged as &mut dyn Invariant, no_secret, tickets]) {
            if let Err(why) = check.applied(&seen)
                && failed.is_none()
            {
                failed = Some((check.name(), why));
            }
        }
        if is_newest {
            *newest = Some((index, state.clone()));
        }
        drop(docket);
        if let Some((name, why)) = failed {
            self.convict(world, name, why);
        }
    }

    /// Looks at the whole fleet again and again.
    pub async fn look(self, world: World) {
        loop {
            self.look_once(&world);
            sleep(LOOK).await;
        }
    }

    fn look_once(&self, world: &World) {
        let standing = |(number, life, served): (usize, Arc<Life>, Arc<dyn Served>)| {
            let (machine, (_, member)) = (world.machine(number)?, life.who()?);
            Some(Standing {
                machine: number,
                node: member.node.0,
                life: life.number,
                raft: served.raft(),
                applied: rewound(world.flaw(), life.number, served.applied()),
                meshes: machine.devices.specs(),
                paused: machine.is_paused(),
                api_ready: world.kubernetes().machine(number).is_ready(),
            })
        };
        let nodes: Vec<Standing> = world.serving().into_iter().filter_map(standing).collect();
        let founders = world.kubernetes().founders();
        let mut docket = lock(&self.0.state);
        let newest = docket.newest.as_ref().map(|(_, state)| state.clone());
        let moment = Moment {
            at_us: world.now_us(),
            nodes: &nodes,
            founders: &founders,
            settled: docket.faults == 0,
            net_settled: docket.path_faults == 0,
            moved: docket.moved,
            newest: newest.as_ref(),
        };
        let (before_ms, at_ms) = (docket.looked_ms, moment.at_us / 1_000);
        docket.story.moment(before_ms, at_ms, &standing_now(&nodes, newest.as_ref()));
        docket.looked_ms = at_ms;
        let mut failed: Option<(&'static str, String)> = None;
        for check in &mut docket.invariants {
            if let Err(why) = check.moment(&moment)
                && failed.is_none()
            {
                failed = Some((check.name(), why));
            }
        }
        if let Some(told) = docket.told.take() {
            failed = Some(("no_secret", format!("a line of the log has a secret:{told}")));
        }
        drop(docket);
        if let Some((machine, tasks)) = world.panics().into_iter().next() {
            failed = Some(("no_panic", format!("tasks of machine {machine} panicked: {tasks:?}")));
        }
        if let Some((name, why)) = failed {
            self.convict(world, name, why);
        }
    }

    /// Notes a violation, unless there was one before.
    pub fn convict(&self, world: &World, name: &str, why: String) {
        let nodes = lines(world);
        let mut docket = lock(&self.0.state);
        if docket.violation.is_none() {
            let at_us = world.now_us();
            world.recorder().note("violation", &[], name.as_bytes());
            docket.violation = Some(Violation { name: name.to_owned(), why, at_us, nodes });
        }
        drop(docket);
        self.0.found.notify_one();
    }

    /// Waits for a violation.
    pub async fn found(&self) {
        self.0.found.notified().await;
    }

    /// Returns when the fleet was looked at last, in milliseconds of virtual time.
    pub fn looked_ms(&self) -> u64 {
        lock(&self.0.state).looked_ms
    }

    /// Returns the violation, if there was one.
    pub fn violation(&self) -> Option<Violation> {
        lock(&self.0.state).violation.clone()
    }

    /// Returns the newest state that any node has applied, and its index.
    pub fn newest(&self) -> Option<(u64, Arc<State>)> {
        lock(&self.0.state).newest.clone()
    }

    /// Takes in a vote that a node granted.
    pub fn voted(&self, world: &World, voter: u64, term: u64, candidate: u64) {
        let granted = lock(&self.0.state).votes.granted(voter, term, candidate);
        if let Err(why) = granted {
            self.convict(world, "votes_grow", why);
        }
    }

    /// Takes in that it was acknowledged that a ticket is withdrawn, which nobody had shown until then.
    pub fn withdrawn(&self, ticket: u64) {
        lock(&self.0.state).tickets.withdrawn(ticket);
    }

    /// Learns a secret, which must not be told.
    pub fn learn(&self, secret: &str) {
        lock(&self.0.state).no_secret.learn(secret);
    }

    /// Hears a line of the log.
    pub fn line(&self, line: &str) {
        // A line that is logged while the judge judges is its own.
        let Ok(mut docket) = self.0.state.try_lock() else { return };
        if let Err(told) = docket.no_secret.look(line) {
            docket.told.get_or_insert(told);
        }
    }

    /// Notes that a fault begins.
    pub fn fault_begins(&self, of_paths: bool) {
        let mut docket = lock(&self.0.state);
        docket.faults += 1;
        docket.path_faults += usize::from(of_paths);
    }

    /// Notes that a machine's address changes.
    pub fn moves(&self) {
        lock(&self.0.state).moved = true;
    }

    /// Notes that a fault is over.
    pub fn fault_ends(&self, of_paths: bool) {
        let mut docket = lock(&self.0.state);
        docket.faults = docket.faults.saturating_sub(1);
        docket.path_faults = docket.path_faults.saturating_sub(usize::from(of_paths));
    }

    /// Notes what came of asking through a cluster's VIP.
    pub fn asked(&self, cluster: &str, at_us: u64, asked: Asked) {
        let how = match asked {
            Asked::By(_) => "yes",
            Asked::Refused => "refused",
            Asked::Silence => "silence",
        };
        let reached = Reached { at_ms: at_us / 1_000, cluster: cluster.to_owned(), how };
        lock(&self.0.state).story.reached.push(reached);
    }

    /// Notes that the fleet was made.
    pub fn made(&self, at_us: u64) {
        lock(&self.0.state).story.made_ms = at_us / 1_000;
    }

    /// Returns what the run looked like over time.
    pub fn story(&self) -> Story {
        lock(&self.0.state).story.clone()
    }

    /// Gives what clients did to the record of it.
    pub fn clients<T>(&self, note: impl FnOnce(&mut acknowledged::Acknowledged) -> T) -> T {
        note(&mut lock(&self.0.state).acknowledged)
    }
}

/// Says what is so now, for the story.
fn standing_now(nodes: &[Standing], newest: Option<&Arc<State>>) -> Vec<Now> {
    let mut now = Vec::new();
    let mut add = |machine: usize, kind: &str, detail: String| {
        now.push(Now { machine, kind: kind.to_owned(), detail });
    };
    for node in nodes {
        add(node.machine, if node.paused { "paused" } else { "up" }, String::new());
        if node.raft.leads() {
            add(node.machine, "leads", format!("term {}", node.raft.term));
        }
        let vips = newest.into_iter().flat_map(|s| s.vips.values());
        for vip in vips.filter(|v| v.holder.is_some_and(|h| h.0 == node.node)) {
            add(node.machine, "holds", vip.name.to_string());
        }
    }
    now
}

/// Says of each machine in one line how it stands.
pub fn lines(world: &World) -> Vec<String> {
    let line = |machine: &Arc<super::world::Machine>| {
        let number = machine.number;
        let Some(life) = machine.life() else {
            let why = if machine.is_on() { "no daemon" } else { "no power" };
            return format!("m{number}: {why}");
        };
        let Some(served) = life.served() else { return format!("m{number}: starting") };
        let raft = served.raft();
        let node = life.who().map(|(_, member)| member.node.0).unwrap_or_default();
        let held: Vec<String> = (machine.devices.specs().iter())
            .flat_map(|s| s.held.iter().map(ToString::to_string))
            .collect();
        let paused = if machine.is_paused() { ", paused" } else { "" };
        format!(
            "m{number}: node {node}, life {}, term {}, leader {:?}, applied {} of {}, voters {:?}, holds {held:?}{paused}",
            life.number, raft.term, raft.leader, raft.applied, raft.last_log, raft.voters
        )
    };
    world.machines().iter().map(line).collect()
}
