//! The port to the machine, and its Linux implementation. Shell.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use crate::observe::Observed;
use crate::spec::Spec;
use crate::step::Action;

mod cleanup;
mod command;
mod disk;
mod files;
mod install;
mod links;
mod linux;
mod network;
mod preflight;
mod probe;
mod process;
mod systemd;

pub use linux::{LinuxConfig, LinuxHost, Manager};

/// What the driver needs of a machine.
pub trait Host: Send + Sync + 'static {
    /// Looks at the machine; bounded in time. `spec` says which binary is meant.
    fn observe(&self, spec: &Spec) -> impl Future<Output = Result<Observed, HostError>> + Send;
    /// Does one thing, or starts it in the background where it takes long; repeating it does no harm.
    fn perform(&self, action: &Action) -> impl Future<Output = Result<(), HostError>> + Send;
    /// Measures how long a small durable write takes where K3s keeps its data: the 95th percentile of some, within seconds.
    fn durable_write(&self) -> impl Future<Output = Result<Duration, HostError>> + Send;
}

/// Why the machine could not be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file could not be read, written or removed.
    #[error("cannot {verb} {path}: {source}")]
    File { verb: &'static str, path: PathBuf, source: std::io::Error },
    /// A program could not be run, or failed.
    #[error("`{command}` failed: {detail}")]
    Command { command: String, detail: String },
    /// Something that must be true first is not.
    #[error("{0}")]
    Refused(String),
}
