//! A Linux machine: one value that owns the manager, the background task and the memory of exits. Shell.

use std::path::PathBuf;

use super::{Host, HostError};
use crate::observe::Observed;
use crate::render::Layout;
use crate::spec::Spec;
use crate::step::Action;

/// How K3s is kept running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Units of systemd.
    Systemd,
    /// A process of its own session, supervised by this daemon.
    Process,
}

impl Manager {
    /// systemd where it is process 1, else a supervised process.
    pub fn detect() -> Self {
        if std::path::Path::new("/run/systemd/system").is_dir() {
            Self::Systemd
        } else {
            Self::Process
        }
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
}

impl LinuxHost {
    /// A host with these places.
    pub fn new(config: LinuxConfig) -> Self {
        Self { config }
    }
}

impl Host for LinuxHost {
    async fn observe(&self, _spec: &Spec) -> Result<Observed, HostError> {
        Err(HostError::Refused(format!(
            "cannot look at {} yet",
            self.config.state_dir.display()
        )))
    }

    async fn perform(&self, _action: &Action) -> Result<(), HostError> {
        Err(HostError::Refused(format!(
            "cannot change {} yet",
            self.config.state_dir.display()
        )))
    }
}
