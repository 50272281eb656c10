//! The wiring: opens the store, starts the loops, serves the API, and ends when something vital does. Shell.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::tls::{Papers, TlsError};
use raft_store::model::NodeId;
use raft_store::raft::{Profile, Published, Store, StoreConfig, StoreError};
use raft_store::rt::{Scope, sleep, timeout, watch};
use raft_store::seal::FleetKey;
use tokio::sync::mpsc;

use crate::agent::Shared;
use crate::agent::chores::ChoresAgent;
use crate::agent::overlay::OverlayAgent;
use crate::agent::runtime::K3sAgent;
use crate::backend::Backend;
use crate::config::{Config, Timers};
use crate::env::{Env, Files, Server as _};
use crate::gossip::Gossiper;
use crate::identity::{Identity, IdentityError};
use crate::leader::{Leader, channel};
use crate::listeners::ListenError;
use crate::overlay::OverlayHandle;
use crate::own::OwnHandle;
use crate::reporter;
use crate::transport::{NodeTransport, SharedBook};

/// How long Raft may take to stop.
const STOP_MAX: Duration = Duration::from_secs(3);

/// Why the daemon does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The machine's identity cannot be used.
    #[error(transparent)]
    Identity(IdentityError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(StoreError),
    /// The keys cannot be used.
    #[error(transparent)]
    Tls(TlsError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(ListenError),
    /// Something vital ended.
    #[error("{0}")]
    Ended(String),
}

/// Where the daemon keeps and finds things.
#[derive(Clone, Debug)]
pub struct Paths {
    /// What must survive a restart.
    pub state_dir: PathBuf,
    /// The local socket.
    pub socket: PathBuf,
}

fn profile(timers: Timers) -> Profile {
    match timers {
        Timers::Fast => Profile::Fast,
        Timers::Lan => Profile::Lan,
        Timers::Wan => Profile::Wan,
    }
}

/// Returns where this host's K3s comes from.
pub fn release(config: &Config) -> k3s::Release {
    match (&config.k3s.binary, &config.k3s.url, &config.k3s.sha256) {
        (Some(path), _, sha256) => {
            k3s::Release::Path { path: path.clone(), sha256: sha256.clone() }
        }
        (None, Some(url), Some(sha256)) => {
            k3s::Release::Url { url: url.clone(), sha256: sha256.clone() }
        }
        _ => k3s::Release::Pinned,
    }
}

/// The store's configuration for a member.
pub fn store_config(identity: &Identity, config: &Config) -> Result<StoreConfig, IdentityError> {
    let member = identity.membership()?;
    Ok(StoreConfig { id: member.node.0, fleet: member.fleet, profile: profile(config.timers) })
}

/// The member's papers for TLS.
pub fn papers(files: &dyn Files, identity: &Identity) -> Result<Papers, IdentityError> {
    Ok(Papers {
        cert_pem: identity.cert_pem(files)?,
        key_pem: identity.tls_key_pem().to_owned().into(),
        ca_pem: identity.ca_pem(files)?,
    })
}

/// Runs the daemon of a member until it is told to end, or something vital ends. Its tasks belong to `scope`.
///
/// # Errors
/// When it cannot start, or something vital ended.
pub async fn run<E: Env>(
    scope: &Scope,
    env: Arc<E>,
    book: SharedBook,
    identity: Identity,
    config: Config,
    paths: Paths,
) -> Result<(), DaemonError> {
    scope.run(run_here(scope.child(), env, book, identity, config, paths)).await
}

async fn run_here<E: Env>(
    scope: Scope,
    env: Arc<E>,
    book: SharedBook,
    identity: Identity,
    config: Config,
    paths: Paths,
) -> Result<(), DaemonError> {
    let member = identity.membership().map_err(DaemonError::Identity)?.clone();
    let papers = papers(env.files(), &identity).map_err(DaemonError::Identity)?;
    let server = env.listen(&config, &paths, &papers).await?;
    let transport = NodeTransport::new(env.wire(), book.clone());
    let store_config = store_config(&identity, &config).map_err(DaemonError::Identity)?;
    let (dir, wire) = (&paths.state_dir, transport.clone());
    let store = match Store::open_on(env.disks(), dir, &store_config, wire).await {
        Ok(store) => store,
        Err(error) => {
            // The others would only see silence, and guess.
            let own = OwnHandle::default();
            own.update(|own| own.ending = Some(error.to_string()));
            reporter::last_words(&*env, (member.node, 0), &book, &own).await;
            return Err(DaemonError::Store(error));
        }
    };
    tracing::info!(node = %member.name, id = %member.node, commit = crate::COMMIT, "the daemon runs");

    let (fatal, ended) = mpsc::channel::<String>(8);
    let (key, fleet_key) = watch::channel(None::<FleetKey>);
    let shared = Shared {
        env,
        me: member.node,
        name: member.name.to_string(),
        store: store.clone(),
        book,
        own: OwnHandle::default(),
        fleet_key,
    };
    scope.spawn("key", open_key(store.clone(), member.node, *identity.sealing(), key));
    let vital = Vital { scope: &scope, fatal: &fatal };
    let gossiper = Gossiper::new(&shared, (identity.uuid(), member.node.0), &config);
    vital.spawn("gossip", gossiper.run());
    let overlay = start_agents(&vital, shared.clone(), &identity, &config, &paths);
    let watch = watch_raft(shared.clone(), fatal.clone());
    vital.spawn("raft watch", watch);
    let backend = start_control(&vital, shared, transport, overlay);
    let env = backend.env.clone();
    server.serve(&scope, backend, fatal.clone());
    end(&*env, &scope, &store, ended).await
}

/// Starts loops without which the daemon must not go on: half a daemon would keep its lease on everything.
struct Vital<'a> {
    scope: &'a Scope,
    fatal: &'a mpsc::Sender<String>,
}

impl Vital<'_> {
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let end = End { name, fatal: self.fatal.clone() };
        self.scope.spawn(name, async move {
            let _end = end;
            task.await;
        });
    }
}

/// Ends the daemon when it is dropped, also by a panic.
struct End {
    name: &'static str,
    fatal: mpsc::Sender<String>,
}

impl Drop for End {
    fn drop(&mut self) {
        // Full or closed only if the daemon ends already.
        let _ = self.fatal.try_send(format!("the {} loop ended", self.name));
    }
}

/// Waits for the end, and ends in order.
async fn end<E: Env>(
    env: &E,
    scope: &Scope,
    store: &Store<NodeTransport<E::Wire>>,
    mut ended: mpsc::Receiver<String>,
) -> Result<(), DaemonError> {
    let result = tokio::select! {
        biased;
        () = env.told_to_end() => Ok(()),
        why = ended.recv() => Err(DaemonError::Ended(why.unwrap_or_default())),
    };
    // A leader that leaves says so: the next one is there in milliseconds.
    hand_over(store).await;
    scope.kill();
    // A store that does not stop in time ends with the process.
    let _ = timeout(STOP_MAX, store.stop()).await;
    tracing::info!("the daemon has ended; K3s and the overlay's device go on");
    result
}

/// Starts the leader's loop and the reports to it, and puts together what the API needs.
fn start_control<E: Env>(
    vital: &Vital<'_>,
    shared: Shared<E>,
    transport: NodeTransport<E::Wire>,
    overlay: OverlayHandle,
) -> Arc<Backend<E>> {
    let (leader, inbox) = channel();
    let (env, store) = (shared.env.clone(), shared.store.clone());
    let (key, own) = (shared.fleet_key.clone(), shared.own.clone());
    let looking = Leader::new(env.clone(), store.clone(), key, own).run(inbox);
    vital.spawn("leader", looking);
    let (transport_too, own) = (transport.clone(), shared.own.clone());
    let reporting = reporter::run(env, shared.me, store, transport_too, leader.clone(), own);
    vital.spawn("reporter", reporting);
    Arc::new(Backend {
        env: shared.env,
        me: shared.me,
        store: shared.store,
        transport,
        leader,
        book: shared.book,
        own: shared.own,
        fleet_key: shared.fleet_key,
        overlay,
    })
}

fn start_agents<E: Env>(
    vital: &Vital<'_>,
    shared: Shared<E>,
    identity: &Identity,
    config: &Config,
    paths: &Paths,
) -> OverlayHandle {
    let (handle, agent_end) = crate::overlay::channel();
    let (left_tx, left) = watch::channel(false);
    let wireguard = zeroize::Zeroizing::new(*identity.wireguard());
    let overlay = OverlayAgent::new(shared.clone(), wireguard, agent_end);
    vital.spawn("overlay", overlay.run());
    let dir = paths.state_dir.join("k3s");
    let data_dir = config.k3s.data_dir.clone().unwrap_or_else(|| "/var/lib/rancher/k3s".into());
    vital.spawn("k3s", K3sAgent::new(shared.clone(), release(config), dir, left).run());
    vital.spawn("chores", ChoresAgent::new(shared, data_dir, left_tx).run());
    handle
}

/// Opens the fleet's key once it is boxed for this node.
async fn open_key<W: crate::env::Wire>(
    store: Store<NodeTransport<W>>,
    me: NodeId,
    sealing: [u8; 32],
    key: watch::Sender<Option<FleetKey>>,
) {
    let sealing = zeroize::Zeroizing::new(sealing);
    loop {
        let Published { index, state } = store.published();
        let boxed = state.nodes.get(&me).and_then(|n| n.key_box.clone());
        // A state that is kept has to be copied when it changes.
        drop(state);
        match boxed.map(|b| FleetKey::unbox(&b, &sealing)) {
            Some(Ok(opened)) => {
                key.send_replace(Some(opened));
                return;
            }
            Some(Err(e)) => {
                tracing::error!(error = %e, "the fleet's key does not open with this node's key")
            }
            None => {}
        }
        store.changed(index).await;
    }
}

/// Ends the daemon when Raft has stopped here, which it does when the disk fails.
async fn watch_raft<E: Env>(shared: Shared<E>, fatal: mpsc::Sender<String>) {
    loop {
        if let Some(why) = shared.store.stopped() {
            tracing::error!(%why, "raft has stopped: nothing is acknowledged any more");
            shared.own.update(|own| own.ending = Some(why.clone()));
            let me = (shared.me, shared.store.status().applied);
            reporter::last_words(&*shared.env, me, &shared.book, &shared.own).await;
            let _ = fatal.try_send(format!("raft has stopped: {why}"));
            return;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

async fn hand_over<W: crate::env::Wire>(store: &Store<NodeTransport<W>>) {
    let status = store.status();
    if status.leader != Some(status.id) {
        return;
    }
    let best = status.voters.iter().filter(|v| **v != status.id);
    let best = best.max_by_key(|v| status.matched.get(v).copied().unwrap_or(0));
    if let Some(to) = best
        && store.transfer_leader(*to).await.is_ok()
    {
        sleep(Duration::from_millis(100)).await;
    }
}
