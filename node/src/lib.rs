//! Skein's daemon and command line: the place where the parts are put together.
//!
//! | module | what | pure |
//! |---|---|---|
//! | [`config`], [`identity`], [`whereabouts`], [`trips`] | what one machine knows of itself and others | mostly |
//! | [`mod@env`] | the one seam to the outside | ports |
//! | [`project`] | replicated state as specs for overlay and K3s | yes |
//! | [`daemon`], [`listeners`] | the wiring, and what it listens on | no |
//! | [`leader`], [`reporter`], [`gossip`] | loops of the control plane | no |
//! | [`agent`] | loops that make this host be what the state says | no |
//! | [`backend`], [`overlay`] | the daemon as the API sees it, and its way to the overlay's agent | no |
//! | [`metrics`] | what the overlays counted, as text | yes |
//! | [`enter`] | founding and joining a fleet | no |
//! | [`cli`] | the command line | no |

pub mod agent;
pub mod backend;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod enter;
pub mod env;
pub mod files;
pub mod frames;
pub mod gossip;
pub mod identity;
pub mod leader;
pub mod listeners;
pub mod metrics;
pub mod overlay;
pub mod own;
pub mod project;
pub mod reporter;
pub mod transport;
pub mod trips;
pub mod whereabouts;

/// How many threads run the daemon's tasks. Each one more is woken for nothing most of the time: idle, in turns on a busy machine,
/// two took 0.53, 0.59 and 0.93 of the processor time of four. One alone would stand still while a task waits for the disk.
pub const THREADS: usize = 2;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit of this build, with `-dirty` if the tree differed from it.
pub const COMMIT: &str = env!("SKEIN_COMMIT");
