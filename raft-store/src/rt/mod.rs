//! The asynchronous runtime of a node: its tasks, its clock, its randomness. Shell over tokio.
//!
//! Everything that a daemon runs is a task of its [`Scope`], openraft's tasks included, so that a simulator which
//! holds many daemons in one process can stop, pause or end one of them, let its clock run at another rate, and
//! give it a seed. In production there is one scope, its clock is the machine's, and its seed comes from the kernel.

mod clock;
mod runtime;
mod scope;
pub mod watch;

pub use clock::{elapsed, now, sleep, sleep_until, timeout};
pub use runtime::NodeRt;
pub use scope::{Scope, here};
