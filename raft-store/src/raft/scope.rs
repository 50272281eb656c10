//! Tasks with an owner: spawned here, ended together, and loud when they panic. Shell.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

/// Owns every task of one daemon; dropping the last handle ends them.
#[derive(Clone, Debug, Default)]
pub struct Scope(Arc<Mutex<Tasks>>);

#[derive(Debug, Default)]
struct Tasks {
    running: JoinSet<()>,
    killed: bool,
}

impl Scope {
    /// Makes a scope without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` until it ends or the scope does.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let guarded = async move {
            let guard = PanicReport(name);
            task.await;
            std::mem::forget(guard);
        };
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A task that is being ended must not leave others behind.
        if tasks.killed {
            return;
        }
        while tasks.running.try_join_next().is_some() {}
        tasks.running.spawn(guarded);
    }

    /// Ends all tasks at their next await; nothing can be spawned any more.
    pub fn kill(&self) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.killed = true;
        tasks.running.abort_all();
    }
}

/// Says in the log when a task ended by panic; tasks that end or are ended say nothing.
struct PanicReport(&'static str);

impl Drop for PanicReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.0, "a task panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn killing_a_scope_ends_its_tasks() {
        let scope = Scope::new();
        let (tx, rx) = tokio::sync::oneshot::channel::<()>();
        scope.spawn("waiter", async move {
            let _tx = tx;
            tokio::time::sleep(Duration::from_secs(60)).await;
        });
        scope.kill();
        assert!(rx.await.is_err());
        let (tx, rx) = tokio::sync::oneshot::channel::<()>();
        scope.spawn("late", async move {
            let _ = tx.send(());
        });
        assert!(rx.await.is_err(), "it ran after the end");
    }
}
