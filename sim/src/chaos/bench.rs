//! `skein-sim bench`: how fast fleets are simulated, and how much a leader has to say in them. Shell.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use node::enter::Init;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::cli::say;
use super::judge::Judge;
use super::kernel;
use super::people::{Person, node_name};
use super::play::Stage;
use super::run::{Keep, run};
use super::schedule::{Profile, Schedule};
use super::trace::Trace;
use super::world::life::Start;
use super::world::{Shape, World};

/// `skein-sim bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Sizes of the fleets whose idle leader is listened to.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000", value_parser = size)]
    sizes: Vec<usize>,
    /// How many seeds of the default profile are run.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// Where to write the figures.
    #[arg(long, value_name = "DIR", default_value = "target/chaos/bench")]
    out: PathBuf,
}

/// The drain needs three servers beside the first machine.
fn size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(nodes @ 4..) => Ok(nodes),
        _ => Err("a fleet of at least 4 is wanted".into()),
    }
}

/// What one fleet took.
#[derive(Clone, Debug, Serialize)]
struct Fleet {
    nodes: usize,
    /// Virtual seconds until all had joined.
    made_s: f64,
    /// Virtual seconds in all, with a drain, a VIP's move and an idle stretch.
    virtual_s: f64,
    wall_s: f64,
    /// Of the whole process, at its highest.
    memory_mb: f64,
    /// What the leader sends in a virtual second of an idle fleet.
    leader_messages_s: f64,
    /// What a machine that does not lead sends.
    other_messages_s: f64,
    moved: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Figures {
    commit: &'static str,
    /// Virtual seconds in a second of one core, default profile.
    default_per_s: f64,
    seeds: u64,
    fleets: Vec<Fleet>,
}

/// Measures.
///
/// # Errors
/// When a file cannot be written, a fleet is not made, or the kernel gives no runtime.
#[expect(clippy::disallowed_methods, reason = "how fast it is, is a matter of the real clock")]
pub fn bench(args: &BenchArgs) -> Result<u8, String> {
    let began = Instant::now();
    let mut virtual_us = 0;
    for seed in 0..args.seeds {
        let schedule = Schedule::sized(seed, Profile::Default, 5);
        virtual_us += run(&schedule, Keep::Hash)?.virtual_us;
    }
    let default_per_s = virtual_us as f64 / 1e6 / began.elapsed().as_secs_f64();
    if args.seeds > 0 {
        say(&format!(
            "5 nodes, default profile, {} seeds: {default_per_s:.0} virtual seconds per second",
            args.seeds
        ));
    }
    let mut fleets = Vec::new();
    for nodes in &args.sizes {
        let one = fleet(*nodes)?;
        say(&format!(
            "{} nodes: {:.0} virtual seconds in {:.1} s ({:.1} per second), {:.0} MB, leader {:.0} messages/s, others {:.1}, VIP moved: {}",
            one.nodes,
            one.virtual_s,
            one.wall_s,
            one.virtual_s / one.wall_s,
            one.memory_mb,
            one.leader_messages_s,
            one.other_messages_s,
            one.moved
        ));
        fleets.push(one);
    }
    let figures = Figures { commit: node::COMMIT, default_per_s, seeds: args.seeds, fleets };
    let json = serde_json::to_string_pretty(&figures).map_err(|e| e.to_string())?;
    std::fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let path = args.out.join("sim.json");
    std::fs::write(&path, json + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
    say(&format!("figures in {}", path.display()));
    Ok(0)
}

#[expect(clippy::disallowed_methods, reason = "how fast it is, is a matter of the real clock")]
fn fleet(nodes: usize) -> Result<Fleet, String> {
    let began = Instant::now();
    let found = kernel::run(live(nodes))?;
    let (made_s, virtual_s, [leader, other], moved) = found?;
    Ok(Fleet {
        nodes,
        made_s,
        virtual_s,
        wall_s: began.elapsed().as_secs_f64(),
        memory_mb: memory_mb(),
        leader_messages_s: leader,
        other_messages_s: other,
        moved,
    })
}

/// The highest that this process took, in megabytes.
fn memory_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

type Life = (f64, f64, [f64; 2], bool);

/// A fleet that is joined all at once, gets a cluster, is left alone for a while, and has its VIP's holder drained.
async fn live(nodes: usize) -> Result<Life, String> {
    let shape = Shape { sites: vec![0; nodes], between_us: 0, packets: nodes <= 50 };
    let judge = Judge::default();
    let world = World::new(1, &shape, None, Arc::new(Trace::default()), judge.clone());
    let stage = Stage { world: world.clone(), judge };
    let result = lived(&stage, nodes).await;
    world.end();
    result
}

async fn lived(stage: &Stage, nodes: usize) -> Result<Life, String> {
    let world = &stage.world;
    let name = node_name(0).parse().map_err(|_| "a machine's name is no name".to_owned())?;
    world.start(0, Start::Init(Init { name, ipv4_pool: None, voters: 5 }));
    until(600, "the first node serves", || !world.serving().is_empty()).await?;
    for machine in 1..nodes {
        let stage = stage.clone();
        let joins = async move { stage.join(machine, 0, false).await };
        world.scope().spawn("join", joins);
        // A storm, though not all in the same moment.
        sleep(Duration::from_millis(2)).await;
    }
    until(600, "everybody has joined", || world.serving().len() == nodes).await?;
    let listens = || {
        let leads = world.serving().into_iter().find(|(_, _, s)| s.raft().leads());
        leads.is_some_and(|(_, _, s)| s.raft().voters.len() + s.raft().learners.len() == nodes)
    };
    until(600, "everybody listens to the leader", listens).await?;
    let made_s = world.now_us() as f64 / 1e6;
    let person = Person::new(world, &stage.judge, 0);
    person.create_cluster("lab", &[1, 2, 3], &[]).await;
    let ready = |m: usize| world.kubernetes().machine(m).is_ready();
    until(180, "the cluster's servers are ready", || ready(1) && ready(2) && ready(3)).await?;
    sleep(Duration::from_secs(10)).await;
    let before: Vec<u64> = (0..nodes).map(|m| world.net().sent(m)).collect();
    sleep(Duration::from_secs(10)).await;
    let rates: Vec<f64> =
        (0..nodes).map(|m| (world.net().sent(m) - before[m]) as f64 / 10.0).collect();
    let serving = world.serving();
    let leads = serving.iter().find(|(_, _, s)| s.raft().leads());
    let leader = leads.map_or(0, |(machine, _, _)| *machine);
    let others: f64 = rates.iter().enumerate().filter(|(m, _)| *m != leader).map(|(_, r)| r).sum();
    let holder = || {
        let (_, state) = world.serving().first()?.2.applied();
        let vip = state.vips.values().next()?;
        stage.holder(&state, vip)
    };
    let held = holder().ok_or("the VIP has no holder")?;
    person.drain(held, false).await;
    let moved = until(30, "the VIP moves", || holder().is_some_and(|h| h != held)).await.is_ok();
    let virtual_s = world.now_us() as f64 / 1e6;
    Ok((made_s, virtual_s, [rates[leader], others / (nodes.max(2) - 1) as f64], moved))
}

async fn until(seconds: u64, what: &str, is_so: impl Fn() -> bool) -> Result<(), String> {
    let wait = async {
        while !is_so() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let late = |_| format!("within {seconds} virtual seconds it did not come to this: {what}");
    timeout(Duration::from_secs(seconds), wait).await.map_err(late)
}
