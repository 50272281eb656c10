//! A value that many may watch; whoever waits is woken in the order in which they began to wait. Shell.
//!
//! tokio's own channel of this kind spreads those who wait over eight queues at random, so that a run could
//! not be repeated. It works like that one otherwise.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Context, Poll, Waker};

/// Every sender, or every receiver, is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watched value's other end is gone")]
pub struct Closed;

struct Shared<T> {
    value: RwLock<T>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    senders: usize,
    receivers: usize,
    next: u64,
    waiting: BTreeMap<u64, Waker>,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes everybody, first come first.
    fn wake(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_values().for_each(Waker::wake);
    }
}

/// Changes the value.
pub struct Sender<T>(Arc<Shared<T>>);

/// Sees the value, and waits for its changes.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value, as long as it is looked at. Not to be kept across an await.
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Makes a watched value.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// Makes a watched value that nobody watches yet.
    pub fn new(value: T) -> Self {
        let state = Mutex::new(State { senders: 1, ..State::default() });
        Self(Arc::new(Shared { value: RwLock::new(value), state }))
    }

    /// Returns another end to see it from.
    pub fn subscribe(&self) -> Receiver<T> {
        let mut state = self.0.state();
        state.receivers += 1;
        Receiver { shared: self.0.clone(), seen: state.version }
    }

    /// Looks at the value.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.read())
    }

    /// Puts another value in place, and returns the former one.
    pub fn send_replace(&self, value: T) -> T {
        let mut value = value;
        self.send_modify(|old| std::mem::swap(old, &mut value));
        value
    }

    /// Changes the value.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Changes the value; those who wait are woken only if `change` says that it did.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let mut value = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut value);
        drop(value);
        if changed {
            self.0.wake(|state| state.version += 1);
        }
        changed
    }
}

impl<T> Receiver<T> {
    /// Looks at the value.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// Looks at the value, and counts it as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.seen = self.shared.state().version;
        self.borrow()
    }

    /// Waits until there is a value that was not seen yet.
    ///
    /// # Errors
    /// When every sender is gone.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        Changed { receiver: self, id: None }.await
    }

    /// Waits until the value is as `wanted`.
    ///
    /// # Errors
    /// When every sender is gone before it is.
    pub async fn wait_for(&mut self, wanted: impl Fn(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        loop {
            if wanted(&self.borrow_and_update()) {
                return Ok(self.borrow());
            }
            self.changed().await?;
        }
    }
}

/// The wait for a change.
struct Changed<'a, T> {
    receiver: &'a mut Receiver<T>,
    /// Its place in the queue.
    id: Option<u64>,
}

impl<T> Future for Changed<'_, T> {
    type Output = Result<(), Closed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { receiver, id } = &mut *self;
        let mut state = receiver.shared.state();
        if state.version != receiver.seen {
            receiver.seen = state.version;
            return Poll::Ready(Ok(()));
        }
        if state.senders == 0 {
            return Poll::Ready(Err(Closed));
        }
        let place = id.unwrap_or(state.next);
        if id.is_none() {
            state.next += 1;
        }
        *id = Some(place);
        state.waiting.insert(place, cx.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Changed<'_, T> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.receiver.shared.state().waiting.remove(&id);
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state().senders += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let last = {
            let mut state = self.0.state();
            state.senders -= 1;
            state.senders == 0
        };
        if last {
            self.0.wake(|_| {});
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.state().receivers += 1;
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.state().receivers -= 1;
    }
}

impl<T: fmt::Debug> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&*self.borrow()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&*self.borrow()).finish()
    }
}

/// openraft's name for it.
#[derive(Debug)]
pub struct Fifo;

impl openraft_rt::Watch for Fifo {
    type Sender<T: Send + Sync> = Sender<T>;
    type Receiver<T: Send + Sync> = Receiver<T>;
    type Ref<'a, T: Send + 'a> = Ref<'a, T>;

    fn channel<T: Send + Sync>(init: T) -> (Sender<T>, Receiver<T>) {
        channel(init)
    }
}

impl<T: Send + Sync> openraft_rt::WatchSender<Fifo, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), openraft_rt::watch::SendError<T>> {
        if self.0.state().receivers == 0 {
            return Err(openraft_rt::watch::SendError(value));
        }
        self.send_replace(value);
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        Self::send_if_modified(self, modify)
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Self::subscribe(self)
    }
}

impl<T: Send + Sync> openraft_rt::WatchReceiver<Fifo, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), openraft_rt::RecvError> {
        Self::changed(self).await.map_err(|_| openraft_rt::RecvError(()))
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.borrow()
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        Self::borrow_and_update(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;
    use tokio::task::yield_now;

    #[tokio::test]
    async fn those_who_wait_are_woken_in_the_order_in_which_they_came() {
        let (tx, rx) = channel(0);
        let (order, mut seen) = mpsc::unbounded_channel();
        let scope = crate::rt::Scope::new();
        for who in 0..50 {
            let (mut rx, order) = (rx.clone(), order.clone());
            scope.spawn("waiter", async move {
                while rx.changed().await.is_ok() {
                    let _ = order.send(who);
                }
            });
        }
        yield_now().await;
        for round in 1..4 {
            tx.send_replace(round);
            yield_now().await;
            yield_now().await;
            let woken: Vec<i32> = std::iter::from_fn(|| seen.try_recv().ok()).collect();
            assert_eq!(woken, (0..50).collect::<Vec<_>>(), "round {round}");
        }
    }

    #[tokio::test]
    async fn a_change_is_seen_once_and_the_end_is_told() {
        let (tx, mut rx) = channel(1);
        assert!(!tx.send_if_modified(|_| false));
        tx.send_modify(|v| *v += 1);
        assert_eq!(rx.changed().await, Ok(()));
        assert_eq!(*rx.borrow_and_update(), 2);
        let other = tx.clone();
        drop(tx);
        assert_eq!(other.send_replace(7), 2);
        drop(other);
        assert_eq!(rx.wait_for(|v| *v == 7).await.map(|v| *v), Ok(7), "the last value is seen");
        assert_eq!(rx.changed().await, Err(Closed));
        assert!(rx.wait_for(|v| *v == 8).await.is_err());
    }
}
