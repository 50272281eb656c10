//! Sees that virtual time goes on. It stands still while any task can run, so one task that never waits stops it for
//! ever, and no check under virtual time would notice. Shell.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::world::World;

/// How often it looks, by the real clock.
const LOOK: Duration = Duration::from_secs(1);
/// After so many looks at the same virtual time, that time is taken to stand still.
const PATIENCE: u32 = 10;

/// Watches one run, until it is dropped.
pub struct Watchdog {
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Begins to watch. A world that stands still is convicted and ended, from a thread of its own.
    pub fn watch(world: &World) -> Self {
        let (over, ended) = channel();
        let world = world.clone();
        let thread = std::thread::spawn(move || guard(&world, &ended));
        Self { over: Some(over), thread: Some(thread) }
    }
}

fn guard(world: &World, ended: &Receiver<()>) {
    let (mut seen, mut looks) = (None, 0);
    while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let now = Some(world.judge().looked_ms());
        looks = if now == seen { looks + 1 } else { 0 };
        seen = now;
        if looks == PATIENCE {
            let why = "a task never waits: virtual time stands still".to_owned();
            world.judge().convict(world, "goes_on", why);
            world.end();
            return;
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            // What it would have to say of a panic was printed already.
            let _ = thread.join();
        }
    }
}
