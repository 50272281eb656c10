//! The book of steps of one machine, and the order that ends it. Shell.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::steps::{Step, due};

/// Where steps are written down, as lines in `steps`, if the folder is there. `order` names the one after which the
/// process is killed, such as `2 host Start`; `died` says that it was.
const DIR: &str = "/var/log/skein-steps";

/// Writes steps down, one after the other.
pub(super) struct Ledger {
    dir: PathBuf,
    turn: Mutex<()>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { dir: DIR.into(), turn: Mutex::new(()) }
    }

    /// Writes a step down; does not return if it was ordered as the last one.
    pub(super) fn step(&self, step: &Step) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.join("steps");
        // Without the folder nobody wants to know.
        let Ok(mut file) = OpenOptions::new().create(true).append(true).open(&path) else {
            return;
        };
        let _ = file.write_all(format!("{}\n", step.line()).as_bytes());
        let order = fs::read_to_string(self.dir.join("order")).unwrap_or_default();
        if due(&fs::read_to_string(&path).unwrap_or_default(), &order) {
            let _ = fs::write(self.dir.join("died"), &order);
            // As the kernel ends what used too much memory: no destructor, no last word.
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }
}
