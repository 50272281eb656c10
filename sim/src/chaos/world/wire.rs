//! What daemons send each other, over the simulated network. Shell.
//!
//! Harsher than TCP on purpose: a message may be lost, come twice or overtake another. Whoever asks waits no longer
//! than its deadline, as over the real wire.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::transport::failed;
use bytes::Bytes;
use node::config::API_PORT;
use node::env::linux::transport_error;
use node::env::{Message, Wire};
use raft_store::raft::{TransportError, granted_vote, kind};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::World;
use super::life::Life;
use crate::chaos::draw::Draw;

/// The wire of one daemon.
#[derive(Clone)]
pub struct SimWire {
    world: World,
    from: usize,
    me: Uuid,
    fleet: Uuid,
}

type Answer = Result<Message, TransportError>;

/// Whom a frame is for.
#[derive(Clone, Copy)]
enum Addressee {
    Node(Uuid),
    Anybody,
}

/// A frame under way.
#[derive(Clone)]
struct Letter {
    number: u64,
    from: usize,
    to: usize,
    me: Uuid,
    fleet: Uuid,
    addressee: Addressee,
    kind: u32,
    body: Bytes,
}

impl SimWire {
    /// Makes the wire of the daemon `me` on a machine.
    pub fn new(world: World, from: usize, me: Uuid, fleet: Uuid) -> Self {
        Self { world, from, me, fleet }
    }

    async fn exchange(
        &self,
        address: SocketAddr,
        addressee: Addressee,
        (kind, body): Message,
        deadline: Duration,
    ) -> Answer {
        let owner = self.world.net().owner(address.ip());
        let Some(to) = owner.filter(|_| address.port() == API_PORT) else {
            sleep(deadline).await;
            return Err(TransportError::Timeout(deadline));
        };
        let number = self.world.next_exchange();
        self.world.hear_report(self.from, kind, &body);
        let letter = Letter {
            number,
            from: self.from,
            to,
            me: self.me,
            fleet: self.fleet,
            addressee,
            kind,
            body,
        };
        let numbers = [number, self.from as u64, to as u64, u64::from(kind)];
        self.world.recorder().note("call", &numbers, &letter.body);
        let (tx, rx) = oneshot::channel();
        let fate = self.world.net().fate(self.from, to, self.world.now_us());
        let mut answers = Some(tx);
        if fate.is_empty() {
            sleep(deadline).await;
            return Err(TransportError::Timeout(deadline));
        }
        for arrival in fate {
            let travel =
                carry(self.world.clone(), letter.clone(), arrival, deadline, answers.take());
            self.world.scope().spawn("wire", travel);
        }
        match timeout(deadline, rx).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(TransportError::Unreachable("connection reset".into())),
            Err(_) => Err(TransportError::Timeout(deadline)),
        }
    }
}

/// Carries one copy of a frame, and what is answered to the first.
async fn carry(
    world: World,
    letter: Letter,
    arrival: Duration,
    deadline: Duration,
    answer_to: Option<oneshot::Sender<Answer>>,
) {
    let over = Instant::now() + deadline;
    sleep(arrival).await;
    let answer = arrive(&world, &letter).await;
    let Some(answer_to) = answer_to else { return };
    let back = match answer {
        Some(_) => world.net().fate(letter.to, letter.from, world.now_us()).first().copied(),
        None => None,
    };
    match (answer, back) {
        (Some(answer), Some(back)) => {
            sleep(back).await;
            let (len, words) = match &answer {
                Ok((_, body)) => (body.len(), body.clone()),
                Err(e) => (0, Bytes::from(e.to_string())),
            };
            world.recorder().note("answer", &[letter.number, len as u64], &words);
            // The asker may have given up.
            let _ = answer_to.send(answer);
        }
        // Silence: the asker finds out by its deadline.
        _ => {
            tokio::time::sleep_until(over).await;
            drop(answer_to);
        }
    }
}

/// Hands a frame to the daemon that listens where it arrived; nothing where nobody answers at all.
async fn arrive(world: &World, letter: &Letter) -> Option<Answer> {
    let machine = world.machine(letter.to)?;
    if !machine.is_on() {
        return None;
    }
    let refused = |why: &str| Some(Err(TransportError::Unreachable(why.to_owned())));
    let Some(life) = machine.life() else { return refused("connection refused") };
    let (Some(served), Some((uuid, member))) = (life.served(), life.who()) else {
        return refused("connection refused");
    };
    let wanted = match letter.addressee {
        Addressee::Node(wanted) => wanted == uuid,
        Addressee::Anybody => true,
    };
    if !wanted || member.fleet != letter.fleet {
        return refused("invalid peer certificate: not valid for name");
    }
    let (tx, rx) = oneshot::channel();
    let (from, asked) = (letter.me, letter.kind);
    let body = world.tampered(asked, world.next_exchange(), letter.body.clone());
    life.scope.spawn("inbound", async move {
        // The asker's machine may be gone.
        let _ = tx.send(served.frame(from, asked, body).await);
    });
    match rx.await {
        Ok(Ok((kind::VOTE, answer))) => {
            if let Some((term, candidate)) = granted_vote(&letter.body, &answer) {
                world.0.judge.voted(world, member.node.0, term, candidate);
            }
            Some(Ok((kind::VOTE, answer)))
        }
        Ok(Ok((kind, body))) => Some(Ok((kind, world.tampered_answer(kind, body)))),
        Ok(Err(status)) => Some(Err(transport_error(failed(&status)))),
        Err(_) => died(world, letter, &life)
            .then(|| Err(TransportError::Unreachable("connection reset".to_owned()))),
    }
}

/// Whether a daemon's end in the middle of a call is told by a reset, or by nothing.
fn died(world: &World, letter: &Letter, life: &Arc<Life>) -> bool {
    let place = [letter.number, life.number];
    Draw::new(world.seed(), "reset", &place).chance(500)
}

impl Wire for SimWire {
    async fn call(
        &self,
        to: Uuid,
        addresses: &[SocketAddr],
        message: Message,
        deadline: Duration,
    ) -> Answer {
        let mut last = Err(TransportError::Unreachable("no address is known".into()));
        let until = Instant::now() + deadline;
        for address in addresses {
            let left = until.saturating_duration_since(Instant::now());
            last = self.exchange(*address, Addressee::Node(to), message.clone(), left).await;
            if !matches!(last, Err(TransportError::Unreachable(_))) {
                return last;
            }
        }
        last
    }

    async fn call_at(&self, address: SocketAddr, message: Message, deadline: Duration) -> Answer {
        self.exchange(address, Addressee::Anybody, message, deadline).await
    }
}
