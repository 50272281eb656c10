//! Tasks with an owner: spawned here, paused and ended together, and loud when they panic. Shell.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::{AbortHandle, JoinHandle};

use super::clock::Clock;

/// The number of a root scope's own tasks.
const ROOT: usize = 0;

thread_local! {
    /// In whose task this thread is.
    static CURRENT: RefCell<Option<Home>> = const { RefCell::new(None) };
}

/// Owns tasks of one daemon; dropping the last handle ends them.
#[derive(Clone, Debug)]
pub struct Scope {
    home: Home,
    last: Arc<Last>,
}

/// Where a task belongs: to a node, and there to a set of tasks that end together.
#[derive(Clone, Debug)]
struct Home(Arc<Set>);

#[derive(Debug)]
struct Set {
    node: Arc<Node>,
    number: usize,
    killed: AtomicBool,
}

/// Ends the tasks of a set when the last handle goes.
#[derive(Debug)]
struct Last(Home);

#[derive(Debug)]
struct Node {
    tasks: Mutex<Tasks>,
    clock: Clock,
    rng: Mutex<StdRng>,
    paused: AtomicBool,
    /// Who waits for the end of the pause, first come first.
    waiting: Mutex<Vec<Waker>>,
}

#[derive(Debug, Default)]
struct Tasks {
    next: u64,
    sets: Vec<Weak<Set>>,
    running: BTreeMap<u64, (usize, AbortHandle)>,
    /// Tasks that ended before they were entered above.
    early: BTreeSet<u64>,
    panics: Vec<&'static str>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Scope {
    fn default() -> Self {
        Self::new()
    }
}

impl Scope {
    /// Makes a scope without tasks, with randomness from the kernel.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where a daemon's own seed comes from"
    )]
    pub fn new() -> Self {
        Self::with(StdRng::from_rng(&mut rand::rng()))
    }

    /// Makes a scope without tasks, whose randomness comes from a seed.
    pub fn seeded(seed: [u8; 32]) -> Self {
        Self::with(StdRng::from_seed(seed))
    }

    fn with(rng: StdRng) -> Self {
        let node = Node {
            tasks: Mutex::default(),
            clock: Clock::default(),
            rng: Mutex::new(rng),
            paused: AtomicBool::new(false),
            waiting: Mutex::default(),
        };
        Self::of(Home::new(&Arc::new(node), false))
    }

    fn of(home: Home) -> Self {
        Self { last: Arc::new(Last(home.clone())), home }
    }

    /// Makes a scope of the same node whose tasks can be ended before this one's.
    #[must_use]
    pub fn child(&self) -> Self {
        Self::of(Home::new(&self.home.0.node, self.home.is_killed()))
    }

    /// Runs `task` until it ends or the scope does.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        // Ended by the scope, not by whoever holds the handle.
        drop(self.home.spawn(name, task));
    }

    /// Makes a future run as a part of this scope: what it spawns belongs here.
    pub fn run<T>(&self, future: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
        within(self.home.clone(), future)
    }

    /// Ends all tasks of this scope, and of its children if it is the root; nothing can be spawned any more.
    ///
    /// No task of it makes another step, though what they held is dropped only by and by.
    pub fn kill(&self) {
        self.last.0.kill();
    }

    /// Lets no task of this node make a step until [`Self::thaw`], as SIGSTOP does. Its clock goes on.
    pub fn pause(&self) {
        self.home.0.node.paused.store(true, Ordering::Release);
    }

    /// Ends a pause.
    pub fn thaw(&self) {
        self.home.0.node.paused.store(false, Ordering::Release);
        let waiting = std::mem::take(&mut *lock(&self.home.0.node.waiting));
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Lets this node's clock run faster by so many parts per million from now on, or slower if negative.
    pub fn set_rate(&self, ppm: i32) {
        self.home.0.node.clock.set_rate(ppm, tokio::time::Instant::now());
    }

    /// Returns the names of the tasks that panicked.
    pub fn panics(&self) -> Vec<&'static str> {
        lock(&self.home.0.node.tasks).panics.clone()
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        self.0.kill();
    }
}

impl Home {
    fn new(node: &Arc<Node>, killed: bool) -> Self {
        let mut tasks = lock(&node.tasks);
        let (number, killed) = (tasks.sets.len(), AtomicBool::new(killed));
        let set = Arc::new(Set { node: node.clone(), number, killed });
        tasks.sets.push(Arc::downgrade(&set));
        Self(set)
    }

    fn is_killed(&self) -> bool {
        self.0.killed.load(Ordering::Acquire)
    }

    fn kill(&self) {
        let number = self.0.number;
        let mine = |set: usize| number == ROOT || set == number;
        let tasks = lock(&self.0.node.tasks);
        let sets = tasks.sets.iter().filter_map(Weak::upgrade);
        for set in sets.filter(|set| mine(set.number)) {
            set.killed.store(true, Ordering::Release);
        }
        let ending: Vec<AbortHandle> =
            tasks.running.values().filter(|(set, _)| mine(*set)).map(|(_, h)| h.clone()).collect();
        drop(tasks);
        ending.iter().for_each(AbortHandle::abort);
    }

    #[expect(clippy::disallowed_methods, reason = "this is where tasks get their owner")]
    fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        // A task that is being ended must not leave others behind.
        if self.is_killed() {
            let never = tokio::spawn(std::future::pending());
            never.abort();
            return never;
        }
        let mut tasks = lock(&self.0.node.tasks);
        let id = tasks.next;
        tasks.next += 1;
        drop(tasks);
        let future = Some(Box::pin(future));
        let task = Task { home: self.clone(), name, id: Some(id), future };
        let handle = tokio::spawn(task);
        let mut tasks = lock(&self.0.node.tasks);
        if self.is_killed() {
            handle.abort();
        }
        if !tasks.early.remove(&id) {
            tasks.running.insert(id, (self.0.number, handle.abort_handle()));
        }
        handle
    }
}

/// A future that runs as a part of a node.
struct Task<F> {
    home: Home,
    name: &'static str,
    /// Its number among the node's tasks; none for a part of another task.
    id: Option<u64>,
    future: Option<Pin<Box<F>>>,
}

/// Puts the former home back, also when a task panics.
struct Entered(Option<Home>);

fn enter(home: &Home) -> Entered {
    Entered(CURRENT.with(|c| c.borrow_mut().replace(home.clone())))
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|c| *c.borrow_mut() = self.0.take());
    }
}

/// Notes a panic that passes through.
struct PanicReport<'a>(&'a Home, &'static str);

impl Drop for PanicReport<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.1, "a task panicked");
            lock(&self.0.0.node.tasks).panics.push(self.1);
        }
    }
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { home, name, future, id } = &mut *self;
        let node = &home.0.node;
        if node.paused.load(Ordering::Acquire) {
            lock(&node.waiting).push(cx.waker().clone());
            // Looked at again: it may have ended in between, and would wake nobody any more.
            if node.paused.load(Ordering::Acquire) {
                return Poll::Pending;
            }
        }
        if id.is_some() && home.is_killed() {
            return Poll::Pending;
        }
        let _entered = enter(home);
        let _report = id.is_some().then_some(PanicReport(home, name));
        let Some(inner) = future.as_mut() else { return Poll::Pending };
        inner.as_mut().poll(cx)
    }
}

impl<F> Drop for Task<F> {
    fn drop(&mut self) {
        let entered = enter(&self.home);
        drop(self.future.take());
        drop(entered);
        if let Some(id) = self.id {
            let mut tasks = lock(&self.home.0.node.tasks);
            if tasks.running.remove(&id).is_none() {
                tasks.early.insert(id);
            }
        }
    }
}

fn within<T>(home: Home, future: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
    Task { home, name: "part", id: None, future: Some(Box::pin(future)) }
}

/// Keeps a future in the scope of the running task, for whoever hands it to another task than the scope's own.
pub fn here<T>(future: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
    let home = CURRENT.with(|c| c.borrow().clone());
    async move {
        match home {
            Some(home) => within(home, future).await,
            None => future.await,
        }
    }
}

/// Gives a look at the clock of the running task's node.
pub(super) fn with_clock<T>(look: impl FnOnce(Option<&Clock>) -> T) -> T {
    CURRENT.with(|c| look(c.borrow().as_ref().map(|home| &home.0.node.clock)))
}

/// Spawns into the scope of the running task, or beside all scopes where there is none.
#[expect(clippy::disallowed_methods, reason = "a test or a tool may run a store without a scope")]
pub(super) fn spawn_here<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let home = CURRENT.with(|c| c.borrow().clone());
    match home {
        Some(home) => home.spawn("raft", future),
        None => tokio::spawn(future),
    }
}

/// Draws a generator from the running task's node, or from the kernel where there is none.
#[expect(clippy::disallowed_methods, reason = "a test or a tool may run a store without a scope")]
pub(super) fn rng_here() -> StdRng {
    let home = CURRENT.with(|c| c.borrow().clone());
    match home {
        Some(home) => StdRng::seed_from_u64(lock(&home.0.node.rng).next_u64()),
        None => StdRng::from_rng(&mut rand::rng()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot;
    use tokio::time::sleep;

    #[tokio::test]
    async fn killing_a_scope_ends_its_tasks() {
        let scope = Scope::new();
        let (tx, rx) = oneshot::channel::<()>();
        scope.spawn("waiter", async move {
            let _tx = tx;
            sleep(Duration::from_secs(60)).await;
        });
        scope.kill();
        assert!(rx.await.is_err());
        let (tx, rx) = oneshot::channel::<()>();
        scope.spawn("late", async move {
            let _ = tx.send(());
        });
        assert!(rx.await.is_err(), "it ran after the end");
    }

    #[tokio::test]
    async fn what_a_task_spawns_ends_with_its_scope_and_a_child_ends_alone() {
        let (root, (tx, rx)) = (Scope::new(), oneshot::channel::<()>());
        let child = root.child();
        let (child_tx, child_rx) = oneshot::channel::<()>();
        root.spawn("outer", async move {
            drop(spawn_here(async move {
                let _tx = tx;
                sleep(Duration::from_secs(60)).await;
            }));
        });
        child.spawn("inner", async move {
            let _tx = child_tx;
            sleep(Duration::from_secs(60)).await;
        });
        tokio::task::yield_now().await;
        child.kill();
        assert!(child_rx.await.is_err());
        let mut rx = rx;
        assert!(rx.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty));
        drop(root);
        assert!(rx.await.is_err(), "the last handle ends what is left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_node_makes_no_step() {
        let scope = Scope::seeded([0; 32]);
        let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
        scope.spawn("ticker", async move {
            while tx.send(()).is_ok() {
                sleep(Duration::from_millis(100)).await;
            }
        });
        sleep(Duration::from_millis(250)).await;
        scope.pause();
        let before = std::iter::from_fn(|| rx.try_recv().ok()).count();
        sleep(Duration::from_secs(10)).await;
        assert_eq!((before, rx.len()), (3, 0));
        scope.thaw();
        sleep(Duration::from_millis(150)).await;
        assert_eq!(rx.len(), 2);
    }

    #[tokio::test]
    async fn a_panic_is_noted_and_a_seed_gives_the_same_numbers() {
        let scope = Scope::seeded([7; 32]);
        scope.spawn("clumsy", async { panic!("on purpose") });
        tokio::task::yield_now().await;
        assert_eq!(scope.panics(), ["clumsy"]);
        let draw = |seed| async move {
            Scope::seeded([seed; 32]).run(async { rng_here().next_u64() }).await
        };
        assert_eq!(draw(7).await, draw(7).await);
        assert_ne!(draw(7).await, draw(8).await);
    }
}
