//! Skein on a machine that counts: each step of a daemon is written down, and the process may be killed after any. Shell.
//!
//! The program is the product's own, from its command line on; only the ports of [`node::env`] are wrapped. A step is
//! one of these, once it has succeeded:
//!
//! | kind | what | how exact |
//! |---|---|---|
//! | `logged` | an entry of Raft's log is durable here | before anybody is told so |
//! | `committed` | an entry is known as committed here | as it becomes known; applying and answering go on beside it |
//! | `file` | a file of the machine's identity, whereabouts or founding lies in its place, or is removed | before the next instruction |
//! | `redeem` | a ticket was redeemed | before the answer is looked at |
//! | `host` | an action of the K3s driver; what it begins in the background has only begun | before the next action |
//! | `mesh` | other specs than before are in force on the devices | before that is reported |
//! | `kube`, `etcd` | a change at the Kubernetes API or of etcd's members | before the answer is looked at |
//!
//! Raft's blank entries are no steps. Nor are calls to other daemons: whatever such a call changes is a step there.

mod disk;
mod ledger;
mod ports;
mod steps;

use std::process::ExitCode;
use std::sync::Arc;

use node::env::linux::{Linux, LinuxEnv, LinuxMachine, LinuxSettings, TlsWire};

use ledger::Ledger;

/// A machine, or a member's world on it, whose steps are counted.
pub struct Mortal<T> {
    inner: Arc<T>,
    ledger: Arc<Ledger>,
    files: ports::Files<T>,
    disks: disk::Disks<T>,
}

impl<T> Mortal<T> {
    fn new(inner: T, ledger: Arc<Ledger>) -> Self {
        let inner = Arc::new(inner);
        let files = ports::Files::new(inner.clone(), ledger.clone());
        let disks = disk::Disks::new(inner.clone(), ledger.clone());
        Self { inner, ledger, files, disks }
    }
}

impl Linux for Mortal<LinuxMachine> {
    type Env = Mortal<LinuxEnv>;

    fn env(&self, wire: TlsWire, settings: LinuxSettings) -> Self::Env {
        Mortal::new(self.inner.env(wire, settings), self.ledger.clone())
    }
}

/// Is the `skein` program on this machine, counted.
pub fn main() -> ExitCode {
    node::cli::main(&Mortal::new(LinuxMachine, Arc::new(Ledger::new())))
}
