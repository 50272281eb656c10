//! The second half of a run: all faults are off, and within a bound the fleet must be whole again. Shell.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use node::config::API_PORT;
use raft_store::model::{ClusterStatus, Phase, State, Vip};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::invariant::acknowledged::Ask;
use super::people::Person;
use super::play::Stage;
use super::register;
use super::world::life::{Life, Served};
use super::world::stack::Asked;

/// How long the fleet may take to be whole again.
const BOUND: Duration = Duration::from_secs(90);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Pause between two rounds in which people tell daemons where others are.
const TELLS: Duration = Duration::from_secs(5);

/// A member's daemon.
struct Member {
    machine: usize,
    served: Arc<dyn Served>,
    life: Arc<Life>,
}

/// Ends all faults and waits until the fleet is whole; returns what it still lacks at the end of the bound. Where machines
/// have `moved` to other addresses, people help.
///
/// # Errors
/// In words, what it lacks.
pub async fn heal(stage: &Stage, moved: bool) -> Result<(), String> {
    stage.heal();
    if moved {
        stage.world.scope().spawn("telling", tell_endpoints(stage.clone()));
    }
    let over = Instant::now() + BOUND;
    loop {
        let lacks = match lacking(stage) {
            None => proof(stage).await,
            some => some,
        };
        match lacks {
            None => return Ok(()),
            Some(why) if Instant::now() >= over => {
                // Asked only now: whoever knows who votes may need a while to serve again.
                let Some(lost) = beyond_help(stage) else {
                    return Err(format!("{} s after all faults ended: {why}", BOUND.as_secs()));
                };
                tracing::info!(why = %lost, "this fleet cannot heal by itself");
                return Ok(());
            }
            Some(_) => sleep(LOOK).await,
        }
    }
}

/// Tells everybody where one member is, again and again: nobody finds a member whose address is new, and all of whose
/// former contacts have new ones, too. `skein endpoint add` is for this.
async fn tell_endpoints(stage: Stage) {
    loop {
        if let Some((_, state)) = stage.judge.newest() {
            let members = stage.world.serving();
            let mut members = members
                .iter()
                .filter(|(_, life, _)| life.who().is_some_and(|(uuid, _)| belongs(&state, uuid)));
            let contacts: Vec<usize> = members.by_ref().take(2).map(|(m, _, _)| *m).collect();
            for machine in stage.world.members() {
                let contact = contacts.iter().find(|c| **c != machine);
                let address =
                    contact.and_then(|c| stage.world.net().addresses(*c).first().copied());
                if let Some(ip) = address {
                    let person = Person::new(&stage.world, &stage.judge, machine);
                    person.tell_endpoint((ip, API_PORT).into()).await;
                }
            }
        }
        sleep(TELLS).await;
    }
}

/// Machines whose daemon is, or will be, a member that has not lost what it had.
fn alive(stage: &Stage) -> BTreeSet<u64> {
    let mut ids = BTreeSet::new();
    for machine in stage.world.members() {
        let life = stage.world.machine(machine).and_then(|m| m.life());
        if let Some((_, member)) = life.and_then(|l| l.who()) {
            ids.insert(member.node.0);
        }
    }
    ids
}

/// A fleet whose majority of voters has lost its disks is beyond help, as every Raft group is; and so is one whose last
/// node with a disk was taken out: nobody is left to take over from it.
fn beyond_help(stage: &Stage) -> Option<String> {
    let alive = alive(stage);
    let serving = stage.world.serving();
    let newest = serving.iter().map(|(_, _, served)| served.raft()).max_by_key(|r| r.last_log);
    let Some(raft) = newest else {
        return stage.world.members().is_empty().then(|| "nobody is a member".to_owned());
    };
    let left = raft.voters.intersection(&alive).count();
    if left * 2 <= raft.voters.len() {
        return Some(format!("of the voters {:?} only {left} still have their disks", raft.voters));
    }
    let (_, state) = stage.judge.newest()?;
    let heirless = !state.nodes.keys().any(|id| alive.contains(&id.0));
    heirless.then(|| "no node of the fleet still has its disk".to_owned())
}

fn members(stage: &Stage, state: &State) -> Result<Vec<Member>, String> {
    let mut found = Vec::new();
    for machine in stage.world.members() {
        let Some(life) = stage.world.machine(machine).and_then(|m| m.life()) else {
            return Err(format!("machine {machine} has no daemon"));
        };
        let Some((uuid, _)) = life.who() else { continue };
        if !belongs(state, uuid) {
            continue;
        }
        let Some(served) = life.served() else {
            return Err(format!("the daemon of machine {machine} does not serve"));
        };
        found.push(Member { machine, served, life });
    }
    Ok(found)
}

fn belongs(state: &State, uuid: Uuid) -> bool {
    state.node_by_uuid(uuid).is_some()
}

/// Says what the fleet lacks, as far as it can be seen.
fn lacking(stage: &Stage) -> Option<String> {
    let Some((index, state)) = stage.judge.newest() else {
        return Some("nothing was ever applied".into());
    };
    let members = match members(stage, &state) {
        Ok(members) => members,
        Err(why) => return Some(why),
    };
    let leaders: BTreeSet<Option<u64>> = members.iter().map(|m| m.served.raft().leader).collect();
    let applied: BTreeSet<u64> = members.iter().map(|m| m.served.applied().0).collect();
    if leaders.len() != 1 || leaders.contains(&None) {
        return Some(format!("no common leader: {leaders:?}"));
    }
    if applied.len() != 1 || !applied.contains(&index) {
        return Some(format!("applied are {applied:?}, the newest index is {index}"));
    }
    state.vips.values().find_map(|vip| vip_lacks(stage, &state, vip, &members))
}

fn vip_lacks(stage: &Stage, state: &State, vip: &Vip, members: &[Member]) -> Option<String> {
    let cluster = state.clusters.get(&vip.cluster)?;
    if cluster.status != ClusterStatus::Active {
        return None;
    }
    let machine_of = |id: raft_store::model::NodeId| {
        let found =
            members.iter().find(|m| m.life.who().is_some_and(|(_, member)| member.node == id));
        found.map(|m| m.machine)
    };
    let eligible: Vec<usize> = (state.servers(cluster.id).iter())
        .filter(|(n, a)| a.phase == Phase::Ready && !a.leaving && n.drain.is_none())
        .filter_map(|(n, _)| machine_of(n.id))
        .filter(|m| stage.world.kubernetes().machine(*m).is_ready())
        .collect();
    if eligible.is_empty() {
        return None;
    }
    let holder = vip.holder.and_then(machine_of);
    if !holder.is_some_and(|h| eligible.contains(&h)) {
        return Some(format!("VIP {} is at {holder:?}, eligible are {eligible:?}", vip.name));
    }
    // Whoever is in the network reaches the holder through it.
    let inside = members.iter().filter(|m| {
        let node = m.life.who().and_then(|(uuid, _)| state.node_by_uuid(uuid).cloned());
        node.is_some_and(|n| n.networks.contains_key(&vip.network))
    });
    for member in inside {
        for ip in vip.addresses() {
            let answers = stage.world.answers(member.machine, ip);
            if answers != holder {
                let from = member.machine;
                return Some(format!(
                    "from machine {from}, {ip} is answered by {answers:?}, not {holder:?}"
                ));
            }
        }
    }
    None
}

async fn session_fails(stage: &Stage, state: &State, vip: &Vip, member: &Member) -> Option<String> {
    let (world, from) = (&stage.world, member.machine);
    let (uuid, _) = member.life.who()?;
    let inside = state.node_by_uuid(uuid)?.networks.contains_key(&vip.network);
    let holder = stage.holder(state, vip)?;
    if !inside || !world.kubernetes().machine(holder).is_ready() {
        return None;
    }
    for ip in vip.addresses() {
        let asked = world.ask(from, ip).await;
        if asked != Asked::By(holder) {
            let name = &vip.name;
            return Some(format!(
                "asked from machine {from}, {name} at {ip} gave {asked:?}, not machine {holder}"
            ));
        }
    }
    None
}

/// Writes and reads once more through a member, and asks through each VIP from every machine of its network.
async fn proof(stage: &Stage) -> Option<String> {
    let (_, state) = stage.judge.newest()?;
    let members = members(stage, &state).ok()?;
    for vip in state.vips.values().filter(|v| v.holder.is_some()) {
        for member in &members {
            if let Some(why) = session_fails(stage, &state, vip, member).await {
                return Some(why);
            }
        }
    }
    let member = members.into_iter().next()?;
    let person = Person::new(&stage.world, &stage.judge, member.machine);
    // What an earlier proof may have left: it was late, not refused.
    person.register("proof", &Ask::Remove).await;
    for (ask, due) in register::proof(stage.world.now_us()) {
        let told = person.register("proof", &ask).await;
        if told != Some(due) {
            return Some(format!("a fresh {ask:?} was answered with {told:?}"));
        }
    }
    None
}
