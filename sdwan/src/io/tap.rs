//! Copies of what passes through an overlay, for people who look for a fault. Shell.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

/// A packet, or several of one flow in one piece, as the device gave or got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// When, in microseconds since 1970.
    pub at_us: u64,
    /// The packet; a checksum may be left to the receiver, as a network card's driver leaves it to the card.
    pub bytes: Vec<u8>,
    /// How many were not copied so far, since nobody took them in time.
    pub missed: u64,
}

/// Somebody who wants copies. All packet threads of an overlay share it.
#[derive(Clone, Debug)]
pub(super) struct Tap {
    sink: Sender<Captured>,
    missed: Arc<AtomicU64>,
}

impl Tap {
    pub(super) fn new(sink: Sender<Captured>) -> Self {
        Self { sink, missed: Arc::default() }
    }
}

/// Everybody who wants copies.
#[derive(Debug, Default)]
pub(super) struct Taps(Vec<Tap>);

impl Taps {
    pub(super) fn add(&mut self, tap: Tap) {
        self.0.push(tap);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Copies a packet to everybody who has room; who is gone is forgotten.
    #[expect(clippy::disallowed_methods, reason = "a capture has the time of day")]
    pub(super) fn copy(&mut self, bytes: &[u8]) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_us = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        self.0.retain(|Tap { sink, missed }| {
            let so_far = missed.load(Ordering::Relaxed);
            let copy = Captured { at_us, bytes: bytes.to_vec(), missed: so_far };
            match sink.try_send(copy) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    missed.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Closed(_)) => false,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_slow_misses_packets_and_who_is_gone_gets_none() {
        let (tx, mut rx) = tokio::sync::mpsc::channel(2);
        let (mut taps, mut others, tap) = (Taps::default(), Taps::default(), Tap::new(tx));
        taps.add(tap.clone());
        others.add(tap);
        for n in 0..3 {
            taps.copy(&[n]);
        }
        others.copy(&[3]);
        let first: Vec<_> = [rx.try_recv(), rx.try_recv()].into_iter().flatten().collect();
        assert_eq!(first.iter().map(|c| c.bytes[0]).collect::<Vec<_>>(), [0, 1]);
        taps.copy(&[4]);
        let later = rx.try_recv().unwrap();
        assert_eq!((later.bytes, later.missed), (vec![4], 2));
        drop(rx);
        taps.copy(&[5]);
        others.copy(&[6]);
        assert!(taps.is_empty() && others.is_empty());
    }
}
