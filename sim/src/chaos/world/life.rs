//! One run of the daemon on a machine, and what others reach of it while it lasts. Shell.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::daemon::Daemon;
use api::service::{InProcess, in_process, peer_frame};
use api::ticket::JoinTicket;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use node::config::Config;
use node::daemon::{self, Paths};
use node::enter::{self, Init};
use node::identity::{Identity, Membership};
use node::transport::SharedBook;
use node::whereabouts::Book;
use raft_store::model::{Name, State};
use raft_store::raft::RaftStatus;
use raft_store::rt::Scope;
use tokio::sync::Notify;
use tokio::time::sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::Service as _;
use uuid::Uuid;

use super::env::{SimEnv, SimMachine};
use super::{Machine, World, lock};
use crate::chaos::draw::Draw;
use crate::chaos::flaw::Flaw;

/// Where the daemon keeps what must survive.
const STATE_DIR: &str = "/var/lib/skein";
/// A daemon that ended by itself is started anew after this, as its unit says.
const RESTART: Duration = Duration::from_secs(2);

/// One run of the daemon.
pub struct Life {
    /// Which one, counted on its machine.
    pub number: u64,
    /// Its tasks.
    pub scope: Scope,
    stop: Notify,
    served: Mutex<Option<Arc<dyn Served>>>,
    who: Mutex<Option<(Uuid, Membership)>>,
}

/// What is reached of a daemon from outside.
pub trait Served: Send + Sync {
    /// Serves a frame of another daemon.
    fn frame(
        &self,
        from: Uuid,
        kind: u32,
        body: Bytes,
    ) -> BoxFuture<'static, Result<(u32, Bytes), Status>>;
    /// Serves a call of the API.
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>>;
    /// Returns what it has applied, and up to which index.
    fn applied(&self) -> (u64, Arc<State>);
    /// Waits until more is applied than up to this index.
    fn changed(&self, after: u64) -> BoxFuture<'static, ()>;
    /// Returns how Raft stands.
    fn raft(&self) -> RaftStatus;
}

struct Inside<D: Daemon> {
    daemon: Arc<D>,
    /// Made when it is first called: many lives end before that.
    api: Mutex<Option<InProcess<D>>>,
}

impl<D: Daemon> Served for Inside<D> {
    fn frame(
        &self,
        from: Uuid,
        kind: u32,
        body: Bytes,
    ) -> BoxFuture<'static, Result<(u32, Bytes), Status>> {
        let daemon = self.daemon.clone();
        async move { peer_frame(&daemon, from, kind, body).await }.boxed()
    }

    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        let mut api = lock(&self.api);
        let answer = api.get_or_insert_with(|| in_process(self.daemon.clone())).call(request);
        answer.map(|a| a.unwrap_or_else(|never| match never {})).boxed()
    }

    fn applied(&self) -> (u64, Arc<State>) {
        // What this node has is there at once.
        let read = self.daemon.read(true).now_or_never().and_then(Result::ok);
        read.map_or((0, self.daemon.state()), |s| (s.applied, s.state))
    }

    fn changed(&self, after: u64) -> BoxFuture<'static, ()> {
        let daemon = self.daemon.clone();
        async move { daemon.changed(after).await }.boxed()
    }

    fn raft(&self) -> RaftStatus {
        self.daemon.raft()
    }
}

impl Life {
    /// Lets others reach a daemon.
    pub(super) fn serve<D: Daemon>(
        self: &Arc<Self>,
        world: &World,
        machine: usize,
        daemon: Arc<D>,
    ) {
        let served: Arc<dyn Served> = Arc::new(Inside { daemon, api: Mutex::default() });
        *lock(&self.served) = Some(served.clone());
        world.0.judge.watch(world, machine, self, served);
    }

    /// Returns what is reached of the daemon, once it serves.
    pub fn served(&self) -> Option<Arc<dyn Served>> {
        lock(&self.served).clone()
    }

    /// Returns the node's identity, once it is a member.
    pub fn who(&self) -> Option<(Uuid, Membership)> {
        lock(&self.who).clone()
    }

    /// Ends all its tasks. What is reached of the daemon holds this life in turn, so it is let go of here.
    pub(super) fn end(&self) {
        self.scope.kill();
        let served = lock(&self.served).take();
        // Outside of the lock: whatever it owned may look at this life when it is dropped.
        drop(served);
    }

    pub(super) async fn told_to_end(&self) {
        self.stop.notified().await;
    }
}

/// How a machine's daemon comes to run.
#[derive(Clone, Debug)]
pub enum Start {
    /// `skein init`, then the daemon.
    Init(Init),
    /// `skein join`, then the daemon.
    Join {
        /// The ticket.
        ticket: Box<JoinTicket>,
        /// The node's name.
        name: Name,
        /// Whose place it takes.
        replaces: Option<Name>,
    },
    /// The daemon alone, of a machine that is a member.
    Daemon,
}

impl World {
    /// Starts the daemon of a machine, unless one runs there or it has no power. Where one is about to end, after it.
    pub fn start(&self, number: usize, start: Start) {
        let Some(machine) = self.machine(number).cloned() else { return };
        let life = {
            let mut lives = lock(&machine.lives);
            if lives.now.is_some() || lives.powered_off {
                lives.again = lives.ending;
                return;
            }
            lives.count += 1;
            (lives.paused, lives.ending, lives.again) = (false, false, false);
            let seed = Draw::new(self.seed(), "life", &[number as u64, lives.count]).bytes();
            let life = Arc::new(Life {
                number: lives.count,
                scope: Scope::seeded(seed),
                stop: Notify::new(),
                served: Mutex::default(),
                who: Mutex::default(),
            });
            lives.now = Some(life.clone());
            life
        };
        let rate = machine.rate_ppm.load(std::sync::atomic::Ordering::Relaxed);
        life.scope.set_rate(i32::try_from(rate).unwrap_or(0));
        self.recorder().note("start", &[number as u64, life.number], &[]);
        let (world, running) = (self.clone(), life.clone());
        life.scope.spawn("daemon", async move {
            let ended = run(&world, &machine, &running, start).await;
            world.ended(&machine, &running, ended);
        });
    }

    /// Notes that a daemon ended by itself, and has it started again where its unit would.
    fn ended(&self, machine: &Arc<Machine>, life: &Arc<Life>, ended: Result<(), String>) {
        let words = ended.as_ref().err().cloned().unwrap_or_default();
        self.recorder().note("ended", &[machine.number as u64, life.number], words.as_bytes());
        tracing::info!(machine = machine.number, why = %words, "a daemon ended");
        let (world, number) = (self.clone(), machine.number);
        let member = life.who().is_some();
        let life = life.number;
        let again = lock(&machine.lives).again;
        self.scope().spawn("systemd", async move {
            world.bury(number, life, false);
            sleep(RESTART).await;
            if (ended.is_err() || again) && member {
                world.start(number, Start::Daemon);
            }
        });
    }

    /// Takes a life away, if it is this one.
    fn bury(&self, number: usize, life: u64, power_cut: bool) {
        let Some(machine) = self.machine(number) else { return };
        let dead = {
            let mut lives = lock(&machine.lives);
            lives.now.take_if(|now| now.number == life)
        };
        if let Some(dead) = dead {
            dead.end();
            machine.drive.crash(power_cut);
            machine.devices.daemon_died();
        }
    }

    /// Kills a machine's daemon, as SIGKILL does.
    pub fn kill(&self, number: usize) {
        let life = self.machine(number).and_then(|m| m.life()).map(|l| l.number);
        if let Some(life) = life {
            self.recorder().note("kill", &[number as u64, life], &[]);
            self.bury(number, life, false);
        }
    }

    /// Cuts a machine's power: what was not synced is lost.
    pub fn power_off(&self, number: usize) {
        let Some(machine) = self.machine(number) else { return };
        self.recorder().note("power off", &[number as u64], &[]);
        let life = {
            let mut lives = lock(&machine.lives);
            lives.powered_off = true;
            lives.now.as_ref().map(|l| l.number)
        };
        match life {
            Some(life) => self.bury(number, life, true),
            None => machine.drive.crash(true),
        }
        machine.devices.power_off();
        self.kubernetes().machine(number).power_off();
    }

    /// Gives a machine power again, and starts its daemon if it is a member.
    pub fn power_on(&self, number: usize) {
        let Some(machine) = self.machine(number) else { return };
        lock(&machine.lives).powered_off = false;
        self.start(number, Start::Daemon);
    }

    /// Lets a machine's daemon stand still.
    pub fn pause(&self, number: usize) {
        let Some(machine) = self.machine(number) else { return };
        if let Some(life) = machine.life() {
            lock(&machine.lives).paused = true;
            life.scope.pause();
        }
    }

    /// Lets a machine's daemon go on.
    pub fn thaw(&self, number: usize) {
        let Some(machine) = self.machine(number) else { return };
        let stood = std::mem::replace(&mut lock(&machine.lives).paused, false);
        if let Some(life) = machine.life() {
            life.scope.thaw();
            if stood && self.flaw() == Some(Flaw::RestlessTask) {
                life.scope.spawn("restless", async {
                    loop {
                        tokio::task::yield_now().await;
                    }
                });
            }
        }
    }

    /// Gives a machine another address: whoever knows the former one does not reach it any more.
    pub fn readdress(&self, number: usize) {
        let net = self.net();
        for old in net.addresses(number) {
            if let IpAddr::V4(v4) = old {
                let [a, b, c, d] = v4.octets();
                net.take(old);
                // Another site's net, of which no machine has an address at first.
                net.give(Ipv4Addr::new(a, b, c.wrapping_add(16), d).into(), number);
            }
        }
    }

    /// Tells a machine's daemon to end in order.
    pub fn stop(&self, number: usize) {
        let Some(machine) = self.machine(number) else { return };
        if let Some(life) = machine.life() {
            lock(&machine.lives).ending = true;
            life.stop.notify_one();
        }
    }

    /// Returns the daemons that serve, by machine.
    pub fn serving(&self) -> Vec<(usize, Arc<Life>, Arc<dyn Served>)> {
        let all = self.machines().iter();
        all.filter_map(|m| {
            let life = m.life()?;
            let served = life.served()?;
            Some((m.number, life, served))
        })
        .collect()
    }

    /// Tells whether a machine was ever a member.
    pub fn is_member(&self, number: usize) -> bool {
        let Some(machine) = self.machine(number) else { return false };
        let identity = Identity::load(&*machine.files, Path::new(STATE_DIR));
        identity.is_ok_and(|identity| identity.membership().is_ok())
    }

    /// Returns machines that were ever members.
    pub fn members(&self) -> BTreeSet<usize> {
        let numbers = self.machines().iter().map(|m| m.number);
        numbers.filter(|number| self.is_member(*number)).collect()
    }
}

async fn run(
    world: &World,
    machine: &Arc<Machine>,
    life: &Arc<Life>,
    start: Start,
) -> Result<(), String> {
    let dir = Path::new(STATE_DIR);
    let here = SimMachine::new(world.clone(), machine.clone(), life.scope.clone());
    let identity = match start {
        Start::Init(init) => enter::init(&here, dir, &init).await.map_err(|e| e.to_string())?,
        Start::Join { ticket, name, replaces } => {
            let joined = enter::join(&here, dir, &ticket, &name, replaces.as_ref()).await;
            joined.map_err(|e| e.to_string())?.identity
        }
        Start::Daemon => Identity::load(&*machine.files, dir).map_err(|e| e.to_string())?,
    };
    let member = identity.membership().map_err(|e| e.to_string())?.clone();
    world.recorder().note("member", &[machine.number as u64, member.node.0], &[]);
    *lock(&life.who) = Some((identity.uuid(), member));
    let book = SharedBook::new(Book::load(&*machine.files, &dir.join("whereabouts.json")));
    let env = Arc::new(SimEnv::new(here, life.clone(), identity.uuid()));
    let config = Config::default();
    let paths = Paths { state_dir: dir.to_owned(), socket: PathBuf::from("/run/skein/skein.sock") };
    daemon::run(&life.scope, env, book, identity, config, paths).await.map_err(|e| e.to_string())
}
