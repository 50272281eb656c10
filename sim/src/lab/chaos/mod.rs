//! Faults on real daemons: `./lab chaos`. Shell.
//!
//! | module | what |
//! |---|---|
//! | `plan` | what is to happen, from a seed; pure |
//! | `view`, `checks`, `tally`, `logs` | what must hold of what is seen; pure |
//! | `stage` | faults on hosts |
//! | `people` | who uses the API, and remembers |
//! | `watch`, `reach` | who looks, at daemons and through the VIP |
//! | `heal` | the end, by which the fleet must be whole |
//! | `docket`, `show` | what is known, and how it is told |

mod checks;
mod docket;
mod heal;
mod logs;
mod people;
mod plan;
mod reach;
mod show;
mod stage;
mod tally;
mod view;
mod watch;

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::{Args, ValueEnum};
use node::env::linux::told_to_end;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::say;
use super::store;
use crate::bench::lab::Lab;
use crate::chaos::cli::VIOLATED;
use crate::chaos::schedule::{Act, Schedule};
use docket::Docket;
use people::{Habit, History, People};
use stage::Stage;

/// The exit code of what was interrupted, as shells have it.
const INTERRUPTED: u8 = 130;
/// How many servers a lab has.
const SERVERS: u8 = 3;
/// How many clients always write, and at which pace.
const CLIENTS: u64 = 4;
const CLIENT_EVERY_MS: u64 = 250;
/// Pause between two lines that tell how it goes.
const PROGRESS_MS: u64 = 5_000;
/// How long a history may take to be judged, and how deep the judge's stack is.
const JUDGE_MAX: Duration = Duration::from_secs(60);
const JUDGE_STACK: usize = 1 << 29;
/// How long what is under way when all ends is waited for.
const LAST_MAX: Duration = Duration::from_secs(15);

/// `lab chaos`.
#[derive(Debug, Args)]
pub struct ChaosArgs {
    /// What is drawn from; the same seed draws the same plan.
    #[arg(long)]
    seed: u64,
    /// How long faults go on.
    #[arg(long, default_value = "2", value_parser = minutes)]
    minutes: f64,
    /// How many hosts, of which three are servers.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u8).range(3..=20))]
    hosts: u8,
    /// What runs as K3s: auto, rehearsal, build, or a path to a K3s binary.
    #[arg(long, default_value = "rehearsal")]
    k3s: String,
    /// Where the report and the daemons' logs go.
    #[arg(long, value_name = "DIR", default_value = "target/chaos/lab")]
    report: PathBuf,
    /// Bring something about that must be found.
    #[arg(long, value_enum, hide = true)]
    plant: Option<Plant>,
}

/// What is wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Plant {
    /// A write that was acknowledged is taken away.
    LostWrite,
    /// A daemon ends by itself.
    DeadDaemon,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|e| format!("{e}"))?;
    let range = 0.1..=600.0;
    if range.contains(&minutes) { Ok(minutes) } else { Err("from 0.1 to 600".into()) }
}

impl ChaosArgs {
    /// What is to run as K3s.
    pub(super) fn k3s(&self) -> &str {
        &self.k3s
    }

    fn replay(&self) -> String {
        let Self { seed, minutes, hosts, k3s, .. } = self;
        let usual = if k3s == "rehearsal" { String::new() } else { format!(" --k3s {k3s}") };
        format!("./lab chaos --seed {seed} --minutes {minutes} --hosts {hosts}{usual}")
    }
}

/// Runs a plan on a lab of its own, which is removed in the end.
///
/// # Errors
/// When the lab does not come up or breaks, or a file cannot be written.
pub(super) fn run(name: &str, args: &ChaosArgs) -> Result<u8, String> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| format!("the runtime: {e}"))?;
    let until_ms = Duration::from_secs_f64(args.minutes * 60.0).as_millis();
    let until_ms = u64::try_from(until_ms).map_err(|_| "--minutes is too long")?;
    let schedule = plan::plan(args.seed, args.hosts.into(), until_ms);
    show::planned(&schedule);
    let docket = Arc::new(Docket::new((1..=args.hosts).map(|i| format!("n{i}")).collect()));
    runtime.spawn({
        let docket = docket.clone();
        async move {
            told_to_end().await;
            say("interrupted: the lab is removed");
            docket.interrupt();
        }
    });
    std::fs::create_dir_all(&args.report).map_err(|e| format!("{}: {e}", args.report.display()))?;
    let (servers, workers) = (SERVERS.to_string(), (args.hosts - SERVERS).to_string());
    let options = ["--servers", &servers, "--workers", &workers, "--k3s", &args.k3s];
    // Removed when it is dropped, whatever happens.
    let own = Lab::up(name, &[&options[..], &["--small-disks"]].concat())?;
    let done = on(name, args, &runtime, &docket, &schedule);
    runtime.shutdown_timeout(Duration::from_secs(2));
    drop(own);
    done
}

/// Lets it all happen on a lab that is up.
fn on(
    name: &str,
    args: &ChaosArgs,
    runtime: &Runtime,
    docket: &Arc<Docket>,
    schedule: &Schedule,
) -> Result<u8, String> {
    let _lock = store::lock(name, &format!("lab {name}: chaos"))?;
    let lab = Arc::new(store::Lab::require(name)?);
    let people = People::new(&lab, docket, args.seed);
    let stage = Stage {
        lab,
        docket: docket.clone(),
        people,
        runtime: runtime.handle().clone(),
        exe: std::env::current_exe().map_err(|e| format!("this program: {e}"))?,
    };
    begin(&stage)?;
    let watching = runtime.spawn(watch::watch(stage.clone()));
    let mut record = show::Record { dir: &args.report, replay: args.replay(), healed_ms: None };
    play(&stage, schedule, args.plant);
    if !docket.is_over() {
        say(format!("all faults end; within {} s the fleet must be whole", heal::BOUND.as_secs()));
        stage.heal()?;
        match heal::heal(&stage) {
            Ok(ms) => record.healed_ms = Some(ms),
            Err(why) => docket.convict("heals", why),
        }
    }
    last_judgement(&stage);
    docket.finish();
    let _ = runtime.block_on(async { tokio::time::timeout(LAST_MAX, watching).await });
    if docket.is_interrupted() {
        return Ok(INTERRUPTED);
    }
    show::finish(&stage, schedule, &record)?;
    let state = docket.lock();
    match (&state.violation, &state.broken) {
        (Some(_), _) => Ok(VIOLATED),
        (None, Some(why)) => Err(format!("the lab itself failed, which tells nothing: {why}")),
        (None, None) => Ok(0),
    }
}

/// Notes how it all is before the first fault.
fn begin(stage: &Stage) -> Result<(), String> {
    for machine in 0..stage.docket.hosts.len() {
        stage.respond(machine)?;
        stage.docket.expect(machine, true);
        stage.learn_keys(machine);
    }
    let there = stage.runtime.block_on(stage.people.tickets());
    let there = there.ok_or("no daemon lists its tickets, although the lab came up")?;
    stage.docket.lock().tally.begin(&there);
    stage.docket.begin();
    Ok(())
}

/// Lets the plan happen, with clients all the while; returns when every fault has ended.
fn play(stage: &Stage, schedule: &Schedule, plant: Option<Plant>) {
    let (docket, until_ms) = (&stage.docket, schedule.until_ms);
    let probe = std::thread::spawn({
        let stage = stage.clone();
        move || reach::probe(&stage, until_ms)
    });
    let tickets = stage.runtime.spawn(stage.people.clone().tickets_until(until_ms));
    if plant == Some(Plant::DeadDaemon) {
        let _ = super::host::exec(&stage.lab, stage.host(1), &["pkill", "-9", "-x", "skein"]);
    }
    let (mut events, mut faults, mut rounds) = (Vec::new(), Vec::new(), Vec::new());
    events.extend(schedule.events.iter().enumerate().rev());
    let mut told_ms = 0;
    for round in 0..until_ms.div_ceil(plan::ROUND_MS) {
        let end_ms = ((round + 1) * plan::ROUND_MS).min(until_ms);
        let mut clients = Clients::begin(stage, round, end_ms, plant);
        while docket.now_ms() < end_ms && !docket.is_over() {
            let due = events.last().is_some_and(|(_, e)| e.at_ms <= docket.now_ms());
            if let Some((number, event)) = events.pop_if(|_| due) {
                match &event.act {
                    Act::Clients { clients: via, calls, every_ms } => {
                        clients.more(stage, via, *calls, *every_ms);
                    }
                    _ => {
                        let (stage, event) = (stage.clone(), event.clone());
                        faults.push(std::thread::spawn(move || stage.play(number, &event)));
                    }
                }
            } else {
                docket.rest(20);
            }
            if docket.now_ms() >= told_ms {
                show::progress(docket, until_ms);
                told_ms += PROGRESS_MS;
            }
        }
        rounds.push(clients.judged(stage));
    }
    let tickets =
        stage.runtime.block_on(async { tokio::time::timeout(LAST_MAX * 3, tickets).await });
    let others = faults.into_iter().chain(rounds).chain([probe]);
    let ended = others.map(JoinHandle::join).filter(Result::is_err).count();
    if ended > 0 || tickets.is_err() {
        docket.breaks("a task of the lab itself ended early; its words are above".into());
    }
}

/// A round's clients.
struct Clients {
    round: u64,
    until_ms: u64,
    count: u64,
    history: History,
    tasks: JoinSet<()>,
}

impl Clients {
    fn begin(stage: &Stage, round: u64, until_ms: u64, plant: Option<Plant>) -> Self {
        let (history, tasks) = (History::default(), JoinSet::new());
        let mut clients = Self { round, until_ms, count: 0, history, tasks };
        for _ in 0..CLIENTS {
            clients.add(stage, None, usize::MAX, CLIENT_EVERY_MS);
        }
        if plant == Some(Plant::LostWrite) && round == 0 {
            let losing = stage.people.clone();
            let losing = losing.lose_a_write(round, until_ms, clients.history.clone());
            clients.tasks.spawn_on(losing, &stage.runtime);
        }
        clients
    }

    fn add(&mut self, stage: &Stage, via: Option<usize>, calls: usize, every_ms: u64) {
        self.count += 1;
        let (round, number, until_ms) = (self.round, self.count, self.until_ms);
        let habit = Habit { round, number, via, calls, every_ms, until_ms };
        let client = stage.people.clone().client(habit, self.history.clone());
        self.tasks.spawn_on(client, &stage.runtime);
    }

    fn more(&mut self, stage: &Stage, via: &[usize], calls: usize, every_ms: u64) {
        via.iter().for_each(|via| self.add(stage, Some(*via), calls, every_ms));
    }

    /// Lets the clients finish, and judges what they saw; nothing of it is under way any more.
    fn judged(self, stage: &Stage) -> JoinHandle<()> {
        let Self { history, mut tasks, .. } = self;
        let stage = stage.clone();
        std::thread::spawn(move || {
            let all = async { while tasks.join_next().await.is_some() {} };
            let late = stage.runtime.block_on(async { tokio::time::timeout(LAST_MAX, all).await });
            if late.is_err() {
                stage.docket.breaks("clients did not end in time".into());
                return;
            }
            judge(&stage, history);
        })
    }
}

/// Judges a history on a thread of its own, since the search is deep and may be long.
fn judge(stage: &Stage, history: History) {
    let (tx, rx) = channel();
    let search = move || {
        let judged = history.lock().unwrap_or_else(PoisonError::into_inner).judge();
        // Whoever waited may have given up.
        let _ = tx.send(judged);
    };
    let search = std::thread::Builder::new().stack_size(JUDGE_STACK).spawn(search);
    if let Err(e) = search {
        stage.docket.breaks(format!("the judge's thread: {e}"));
        return;
    }
    match rx.recv_timeout(JUDGE_MAX) {
        Ok(Ok(())) => {}
        Ok(Err(why)) => stage.docket.convict("acknowledged", why),
        Err(_) => stage.docket.lock().undecided += 1,
    }
}

/// Judges what can be told in the end only: tickets, and what logs say.
fn last_judgement(stage: &Stage) {
    let docket = &stage.docket;
    if !docket.is_over() {
        match stage.runtime.block_on(stage.people.tickets()) {
            None => docket.convict("heals", "no daemon lists its tickets".into()),
            Some(there) => {
                let judged = docket.lock().tally.judge(&there);
                judged.unwrap_or_else(|why| docket.convict("acknowledged", why));
            }
        }
    }
    for (machine, host) in docket.hosts.iter().enumerate() {
        let text = std::fs::read(stage.log(machine)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let looked = logs::look(host, &text, &docket.lock().secrets);
        if let Err((name, why)) = looked {
            docket.convict(name, why);
        }
    }
}
