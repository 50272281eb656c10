//! A Linux machine: one value that owns the manager, the background tasks and the memory of exits. Shell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::install::Fetcher;
use super::process::Supervision;
use super::{Host, HostError, cleanup, disk, files, links, preflight, probe, process, systemd};
use crate::observe::{Binary, Credentials, Marker, Observed, Probe, Unit};
use crate::render::{FileSpec, Layout};
use crate::spec::{RoleKind, Spec};
use crate::step::{Action, StartPlan};
use crate::unit::HEADER;

/// What stands in for an operator's configuration where there is none.
pub(super) const EMPTY_CONFIG: &str =
    "# Settings of your own; Skein's are in config.yaml.d/50-skein.yaml and win.\n";
/// How much of the log is looked through, in bytes.
const TAIL: u64 = 8 << 10;

/// The pause after a wipe that failed.
const WIPE_PAUSE: Duration = Duration::from_secs(3);

/// How K3s is kept running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Units of systemd.
    Systemd,
    /// A process of its own session, supervised by this daemon.
    Process,
}

impl Manager {
    /// systemd where it runs, else a supervised process.
    pub fn detect() -> Self {
        if Path::new("/run/systemd/system").is_dir() { Self::Systemd } else { Self::Process }
    }
}

/// Where things lie on this machine.
#[derive(Debug, Clone)]
pub struct LinuxConfig {
    /// The driver's own folder, such as `/var/lib/skein/k3s`.
    pub state_dir: PathBuf,
    /// How K3s is kept running.
    pub manager: Manager,
    /// K3s' folders.
    pub layout: Layout,
}

/// The machine itself.
pub struct LinuxHost {
    config: LinuxConfig,
    fetcher: Mutex<Fetcher>,
    supervision: Mutex<Supervision>,
    wipe: Mutex<Option<Wipe>>,
}

/// A wipe in the background.
struct Wipe {
    progress: Arc<Mutex<String>>,
    task: JoinHandle<()>,
}

impl Drop for LinuxHost {
    fn drop(&mut self) {
        // It is repeatable, and nobody would look at it any more.
        if let Some(wipe) = locked(&self.wipe).take() {
            wipe.task.abort();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host for LinuxHost {
    async fn observe(&self, spec: &Spec) -> Result<Observed, HostError> {
        let now = Instant::now();
        let layout = &self.config.layout;
        let unit = self.unit(now).await?;
        let credentials = probe::credentials(layout)?;
        let (log_tail, log_bytes) = self.log(&unit).await;
        let probe = probed(spec, &unit, layout, &credentials).await;
        // Asked only where it may explain something: a healthy K3s is looked at for ever.
        let healthy = probe == Probe::Ready;
        let lacks = if healthy { Vec::new() } else { preflight::lacks(&layout.root) };
        Ok(Observed {
            binary: self.binary(spec, now),
            files: hashes(layout)?,
            marker: self.marker()?,
            foreign: self.foreign()?,
            etcd_data: layout.etcd_wal().exists(),
            probe,
            wiping: self.wiping(),
            lacks,
            layout: layout.clone(),
            systemd: self.config.manager == Manager::Systemd,
            unit,
            credentials,
            log_tail,
            log_bytes,
        })
    }

    async fn perform(&self, action: &Action) -> Result<(), HostError> {
        let state = &self.config.state_dir;
        match action {
            Action::Fetch(release) => {
                locked(&self.fetcher).start(release, &self.binaries());
                Ok(())
            }
            Action::Mark(Some(marker)) => write_marker(&self.marker_path(), marker),
            Action::Mark(None) => files::remove(&self.marker_path()),
            Action::Write(specs) => self.write(specs),
            Action::Remove(paths) => paths.iter().try_for_each(|path| files::remove(path)),
            Action::Start(plan) => self.start(plan).await,
            Action::Stop(role) => self.stop(*role, Signal::SIGTERM).await,
            Action::Kill(role) => self.stop(*role, Signal::SIGKILL).await,
            Action::Wipe => {
                self.begin_wipe(state);
                Ok(())
            }
            Action::RotateLog => process::rotate(&self.config.layout.log),
        }
    }

    async fn durable_write(&self) -> Result<Duration, HostError> {
        let folder = self.config.layout.data_dir.clone();
        #[expect(clippy::disallowed_methods, reason = "this is a Linux port")]
        let measured = tokio::task::spawn_blocking(move || disk::durable_write(&folder)).await;
        measured.map_err(|e| HostError::Refused(format!("the disk could not be measured: {e}")))?
    }
}

impl LinuxHost {
    /// A host with these places.
    pub fn new(config: LinuxConfig) -> Self {
        Self {
            config,
            fetcher: Mutex::default(),
            supervision: Mutex::default(),
            wipe: Mutex::default(),
        }
    }

    fn marker_path(&self) -> PathBuf {
        self.config.state_dir.join("marker.json")
    }

    fn binaries(&self) -> PathBuf {
        self.config.state_dir.join("bin")
    }

    fn marker(&self) -> Result<Option<Marker>, HostError> {
        let path = self.marker_path();
        let Some(text) = files::read(&path)? else {
            return Ok(None);
        };
        let damaged = |error: serde_json::Error| {
            HostError::Refused(format!("{} is damaged: {error}", path.display()))
        };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    fn binary(&self, spec: &Spec, now: Instant) -> Binary {
        match spec {
            Spec::Run(run) => locked(&self.fetcher).look(&run.release, &self.binaries(), now),
            Spec::Absent | Spec::Waiting { .. } | Spec::Stopped => {
                Binary::Missing { last_error: None, next_try: None }
            }
        }
    }

    async fn unit(&self, now: Instant) -> Result<Unit, HostError> {
        let state = &self.config.state_dir;
        match self.config.manager {
            Manager::Process => process::observe(state, &mut locked(&self.supervision), now),
            Manager::Systemd => {
                let shown = systemd::show().await?;
                systemd::judge(&shown, state, &mut locked(&self.supervision), now)
            }
        }
    }

    async fn log(&self, unit: &Unit) -> (Vec<String>, u64) {
        match (self.config.manager, unit) {
            (Manager::Process, _) => files::tail(&self.config.layout.log, TAIL),
            (Manager::Systemd, Unit::Running { role, .. } | Unit::Exited { role, .. }) => {
                (systemd::tail(*role).await, 0)
            }
            (Manager::Systemd, _) => (Vec::new(), 0),
        }
    }

    /// A K3s that somebody else installed: data, or a unit without our header.
    fn foreign(&self) -> Result<Option<String>, HostError> {
        let layout = &self.config.layout;
        for path in ["server/db", "server/token", "agent/kubelet.kubeconfig"] {
            let path = layout.data_dir.join(path);
            if path.exists() {
                return Ok(Some(format!("there is a K3s on this host ({})", path.display())));
            }
        }
        for role in [RoleKind::Server, RoleKind::Agent] {
            let path = layout.unit(role);
            if files::read(&path)?.is_some_and(|text| !text.starts_with(HEADER)) {
                return Ok(Some(format!("there is a K3s on this host ({})", path.display())));
            }
        }
        Ok(None)
    }

    fn write(&self, specs: &[FileSpec]) -> Result<(), HostError> {
        let layout = &self.config.layout;
        let drop_ins = [RoleKind::Server, RoleKind::Agent].map(|role| layout.drop_in(role));
        let drop_ins = specs
            .iter()
            .filter(|spec| drop_ins.contains(&spec.path))
            .filter_map(|spec| spec.path.parent());
        // Open to all, as K3s and systemd have them; what lies below them is not.
        for folder in
            [layout.data_dir.as_path(), layout.config_dir.as_path()].into_iter().chain(drop_ins)
        {
            files::make_public_folder(folder)?;
        }
        for spec in specs {
            files::write(&spec.path, spec.mode, spec.content.expose().as_bytes())?;
        }
        let config = self.config.layout.operator_config();
        if config.exists() { Ok(()) } else { files::write(&config, 0o600, EMPTY_CONFIG.as_bytes()) }
    }

    async fn start(&self, plan: &StartPlan) -> Result<(), HostError> {
        let state = &self.config.state_dir;
        locked(&self.supervision).starting(Instant::now());
        match self.config.manager {
            Manager::Process => process::start(plan, state, &self.config.layout).await,
            Manager::Systemd => {
                systemd::start(plan, state).await?;
                // For people only; a host of another manager may share its programs with others.
                if let Err(error) = links::lay(&self.binaries(), &plan.binary).await {
                    tracing::warn!(%error, "kubectl was not put on the path");
                }
                Ok(())
            }
        }
    }

    async fn stop(&self, role: RoleKind, signal: Signal) -> Result<(), HostError> {
        let now = Instant::now();
        match (self.config.manager, signal) {
            (Manager::Process, _) => {
                process::signal(&self.config.state_dir, signal, &mut locked(&self.supervision), now)
            }
            (Manager::Systemd, Signal::SIGKILL) => systemd::kill(role).await,
            (Manager::Systemd, _) => systemd::stop(role).await,
        }
    }

    fn wiping(&self) -> Option<String> {
        let mut slot = locked(&self.wipe);
        let wipe = slot.as_ref()?;
        let text = locked(&wipe.progress).clone();
        // A wipe that failed is shown once, then begun anew.
        if wipe.task.is_finished() {
            *slot = None;
            return (!text.is_empty()).then_some(text);
        }
        Some(text)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the task is owned here, and ended when this value goes"
    )]
    fn begin_wipe(&self, state: &Path) {
        let mut slot = locked(&self.wipe);
        if slot.as_ref().is_some_and(|wipe| !wipe.task.is_finished()) {
            return;
        }
        let progress = Arc::new(Mutex::new("starting".to_owned()));
        let work = wipe(self.config.clone(), state.to_owned(), Arc::clone(&progress));
        *slot = Some(Wipe { task: tokio::spawn(work), progress });
    }
}

async fn wipe(config: LinuxConfig, state: PathBuf, progress: Arc<Mutex<String>>) {
    let tell = |text: &str| text.clone_into(&mut locked(&progress));
    let outcome = async {
        let marker = files::read(&state.join("marker.json"))?
            .and_then(|text| serde_json::from_str::<Marker>(&text).ok());
        cleanup::wipe(&config.layout, marker.as_ref(), &tell).await?;
        if config.manager == Manager::Systemd {
            systemd::reload().await?;
            links::remove(&state.join("bin"))?;
        }
        for name in ["bin", "process", "started"] {
            let path = state.join(name);
            let removed = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            if let Err(source) = removed
                && source.kind() != std::io::ErrorKind::NotFound
            {
                return Err(HostError::File { verb: "remove", path, source });
            }
        }
        // Last: while it is there, the wipe is not over.
        files::remove(&state.join("marker.json"))
    };
    match outcome.await {
        Ok(()) => tell(""),
        Err(error) => {
            tracing::warn!(%error, "removing K3s failed and will be tried again");
            tell(&format!("{error}; trying again"));
            tokio::time::sleep(WIPE_PAUSE).await;
        }
    }
}

fn write_marker(path: &Path, marker: &Marker) -> Result<(), HostError> {
    let text = serde_json::to_vec(marker).map_err(|error| HostError::Refused(error.to_string()))?;
    files::write(path, 0o600, &text)
}

/// Of our files that exist. An authority is hashed too, so that a half-laid one is seen.
fn hashes(layout: &Layout) -> Result<BTreeMap<PathBuf, String>, HostError> {
    let mut found = BTreeMap::new();
    let laid = crate::ca::paths().into_iter().map(|path| layout.tls().join(path));
    for path in layout.ours().into_iter().chain(laid) {
        if let Some(hash) = files::sha256(&path)? {
            found.insert(path, hash);
        }
    }
    Ok(found)
}

async fn probed(spec: &Spec, unit: &Unit, layout: &Layout, credentials: &Credentials) -> Probe {
    let node = match spec {
        Spec::Run(run) => Some(run.node_name.as_str()),
        Spec::Waiting { .. } | Spec::Absent | Spec::Stopped => None,
    };
    match asked(spec, unit) {
        Ok(role) => probe::probe(role, node, layout, credentials).await,
        Err(known) => known,
    }
}

/// Which role to ask, or what is known without asking. One that should run and does not is as unready as one that says so.
fn asked(spec: &Spec, unit: &Unit) -> Result<RoleKind, Probe> {
    match (spec, unit) {
        (Spec::Absent | Spec::Stopped, _) => {
            Err(Probe::NotYet("K3s is not meant to run".to_owned()))
        }
        (Spec::Run(_) | Spec::Waiting { .. }, Unit::Running { role, .. }) => Ok(*role),
        (Spec::Run(_) | Spec::Waiting { .. }, _) => {
            Err(Probe::NotReady("K3s does not run".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_k3s_that_should_run_and_does_not_is_unready() {
        let now = Instant::now();
        let role = RoleKind::Server;
        let waiting = Spec::Waiting { reason: "a key".into() };
        let ended = Unit::Exited { role, how: "x".into(), restarts: 1, next_try: now };
        for unit in [Unit::Stopped, ended, Unit::Stopping { role, since: now }] {
            assert_eq!(
                asked(&waiting, &unit),
                Err(Probe::NotReady("K3s does not run".into())),
                "{unit:?}"
            );
            for spec in [Spec::Absent, Spec::Stopped] {
                assert!(matches!(asked(&spec, &unit), Err(Probe::NotYet(_))), "{unit:?}");
            }
        }
        let running = Unit::Running { role, fingerprint: None };
        assert_eq!(asked(&waiting, &running), Ok(role));
    }
}
