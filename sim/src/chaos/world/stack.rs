//! The TCP of a machine: it answers for the API server that runs on it, and lets a client ask one. Shell.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::tcp::{ACK, RST, SYN, Segment};
use super::{World, lock};

/// Where an API server listens.
pub const API: u16 = 6443;
/// A segment without an answer is sent again after this (RFC 6298, the first timer).
const RETRANSMIT: Duration = Duration::from_secs(1);
/// How often.
const TRIES: usize = 3;

type Flow = ((IpAddr, u16), (IpAddr, u16));

/// The TCP of a machine.
#[derive(Default)]
pub struct Stack(Mutex<State>);

#[derive(Default)]
struct State {
    /// Connections that were taken here: this side first.
    taken: BTreeMap<Flow, ()>,
    /// Who waits here for what comes back.
    waiting: BTreeMap<Flow, mpsc::UnboundedSender<Segment>>,
    next_port: u16,
}

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// This machine answered.
    By(usize),
    /// Somebody was there, and nobody listened, or the connection was lost.
    Refused,
    /// Nobody answered.
    Silence,
}

impl Stack {
    pub(super) fn clear(&self) {
        *lock(&self.0) = State::default();
    }

    /// Ends all connections to these addresses; returns how many there were.
    pub(super) fn kill_flows(&self, to: &[IpAddr]) -> usize {
        let mut state = lock(&self.0);
        let before = state.waiting.len() + state.taken.len();
        state.waiting.retain(|(_, (ip, _)), _| !to.contains(ip));
        state.taken.retain(|(_, (ip, _)), ()| !to.contains(ip));
        before - state.waiting.len() - state.taken.len()
    }
}

impl World {
    /// Takes in a packet that was delivered to a machine, and answers it.
    pub(super) fn receive(&self, number: usize, packet: &[u8]) {
        let Some(machine) = self.machine(number) else { return };
        let Some(segment) = Segment::parse(packet) else { return };
        self.check_delivery(number, &segment);
        if !machine.devices.has(segment.to.0) {
            // Not this host's: it forwards nothing.
            return;
        }
        let flow = (segment.to, segment.from);
        let waiting = lock(&machine.devices.stack.0).waiting.get(&flow).cloned();
        if let Some(waiting) = waiting {
            // Who waited may have given up.
            let _ = waiting.send(segment);
            return;
        }
        if segment.flags & RST != 0 {
            lock(&machine.devices.stack.0).taken.remove(&flow);
            return;
        }
        let ready = segment.to.1 == API && self.kubernetes().machine(number).is_ready();
        let mut state = lock(&machine.devices.stack.0);
        let answer = if segment.flags & SYN != 0 && ready {
            state.taken.insert(flow, ());
            segment.answer(SYN | ACK, Vec::new())
        } else if state.taken.contains_key(&flow) && ready {
            state.taken.remove(&flow);
            segment.answer(ACK, number.to_string().into_bytes())
        } else {
            segment.answer(RST, Vec::new())
        };
        drop(state);
        if let Some(packet) = answer.packet() {
            self.transmit(number, &packet);
        }
    }

    /// Asks the API server at an address who it is.
    pub async fn ask(&self, from: usize, to: IpAddr) -> Asked {
        let Some(machine) = self.machine(from) else { return Asked::Silence };
        let Some(source) = machine.devices.source_for(to) else { return Asked::Silence };
        let (tx, mut rx) = mpsc::unbounded_channel();
        let flow = {
            let mut state = lock(&machine.devices.stack.0);
            state.next_port = state.next_port.max(32_767).wrapping_add(1).max(32_768);
            let flow = ((source, state.next_port), (to, API));
            state.waiting.insert(flow, tx);
            flow
        };
        let asked = self.converse(from, flow, &mut rx).await;
        lock(&machine.devices.stack.0).waiting.remove(&flow);
        let (kind, by) = match asked {
            Asked::By(by) => (0, by as u64),
            Asked::Refused => (1, 0),
            Asked::Silence => (2, 0),
        };
        self.recorder().note("asked", &[from as u64, kind, by], to.to_string().as_bytes());
        asked
    }

    async fn converse(
        &self,
        number: usize,
        (from, to): Flow,
        rx: &mut mpsc::UnboundedReceiver<Segment>,
    ) -> Asked {
        let steps = [(SYN, Vec::new(), SYN | ACK), (ACK, b"who".to_vec(), ACK)];
        let mut last = Vec::new();
        for (flags, payload, wanted) in steps {
            let Some(packet) = (Segment { from, to, flags, payload }).packet() else {
                return Asked::Silence;
            };
            let mut heard = None;
            for _ in 0..TRIES {
                self.transmit(number, &packet);
                let until = async {
                    while let Some(segment) = rx.recv().await {
                        if segment.flags == wanted || segment.flags & RST != 0 {
                            return Some(segment);
                        }
                    }
                    None
                };
                match timeout(RETRANSMIT, until).await {
                    // The connection was ended here, because its other end is lost.
                    Ok(None) => return Asked::Refused,
                    Ok(Some(segment)) => heard = Some(segment),
                    Err(_) => continue,
                }
                break;
            }
            match heard {
                Some(segment) if segment.flags & RST == 0 => last = segment.payload,
                Some(_) => return Asked::Refused,
                None => return Asked::Silence,
            }
        }
        let by = String::from_utf8_lossy(&last).parse();
        by.map_or(Asked::Refused, Asked::By)
    }

    /// Sends a packet with another machine's address as its source, as one that was taken over would.
    pub fn spoof(&self, from: usize, as_if: usize, to: usize) {
        let own = |n: usize| -> Option<IpAddr> {
            self.machine(n)?.devices.specs().first()?.addresses.first().copied()
        };
        let (Some(source), Some(target)) = (own(as_if), own(to)) else { return };
        let payload = format!("{FORGED}{from}").into_bytes();
        let segment = Segment { from: (source, 1), to: (target, 2), flags: RST, payload };
        if let Some(packet) = segment.packet() {
            self.transmit(from, &packet);
        }
    }

    /// Nobody's packet may come under another's address.
    fn check_delivery(&self, number: usize, segment: &Segment) {
        let words = String::from_utf8_lossy(&segment.payload);
        if let Some(forger) = words.strip_prefix(FORGED) {
            let (from, to) = (segment.from.0, segment.to.0);
            let why = format!(
                "machine {number} took a packet of machine {forger} that claims to come from {from}, to {to}"
            );
            self.0.judge.convict(self, "delivery", why);
        }
    }
}

/// How the payload of a packet with a foreign source begins.
const FORGED: &str = "forged by ";
