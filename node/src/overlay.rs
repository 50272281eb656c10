//! The way from the API to the overlay's agent, which alone has the devices. Shell.

use std::time::Duration;

use raft_store::rt::{timeout, watch};
use sdwan::{Captured, MeshStatus, RoundTrip};
use tokio::sync::{mpsc, oneshot};

/// How long an agent may take to pass a question on.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long a round trip may take: one that was begun ends after a second, with or without an answer.
const TRIP_MAX: Duration = Duration::from_secs(3);
/// How many captured packets wait for their reader; what comes then is missed, and counted.
const WAITING_MAX: usize = 1_024;

/// What the agent is asked.
pub enum Ask {
    /// To take a round trip to a peer.
    Ping {
        /// The network.
        network: String,
        /// The peer.
        peer: String,
        /// Where the answer will be, if there is such a peer.
        answer: oneshot::Sender<Option<oneshot::Receiver<RoundTrip>>>,
    },
    /// To copy packets.
    Capture {
        /// The network.
        network: String,
        /// Where to.
        sink: mpsc::Sender<Captured>,
        /// Whether there is such a network.
        answer: oneshot::Sender<bool>,
    },
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// There is no such network or peer here.
    Unknown,
    /// The agent, or the packet thread, did not answer in time.
    Late,
    /// The peer has no address of its own that could be asked.
    NoAddress,
}

/// The agent's other end.
#[derive(Clone)]
pub struct OverlayHandle {
    asks: mpsc::Sender<Ask>,
    status: watch::Receiver<Vec<MeshStatus>>,
}

/// The agent's own end: what it is asked, and where it says how the meshes stand.
pub type AgentEnd = (mpsc::Receiver<Ask>, watch::Sender<Vec<MeshStatus>>);

/// Makes both ends.
pub fn channel() -> (OverlayHandle, AgentEnd) {
    let (asks, asked) = mpsc::channel(64);
    let (told, status) = watch::channel(Vec::new());
    (OverlayHandle { asks, status }, (asked, told))
}

impl OverlayHandle {
    /// Returns how the meshes stood when the agent last looked.
    pub fn status(&self) -> Vec<MeshStatus> {
        self.status.borrow().clone()
    }

    async fn ask<T>(&self, ask: Ask, answer: oneshot::Receiver<T>) -> Result<T, NoAnswer> {
        let asked = async {
            self.asks.send(ask).await.map_err(|_| NoAnswer::Late)?;
            answer.await.map_err(|_| NoAnswer::Late)
        };
        timeout(ANSWER_MAX, asked).await.map_err(|_| NoAnswer::Late)?
    }

    /// Takes a round trip through the tunnel to a peer.
    pub async fn ping(&self, network: &str, peer: &str) -> Result<RoundTrip, NoAnswer> {
        let (answer, asked) = oneshot::channel();
        let ask = Ask::Ping { network: network.into(), peer: peer.into(), answer };
        let trip = self.ask(ask, asked).await?.ok_or(NoAnswer::Unknown)?;
        let took = timeout(TRIP_MAX, trip).await.map_err(|_| NoAnswer::Late)?;
        took.map_err(|_| NoAnswer::NoAddress)
    }

    /// Begins to copy a network's packets.
    pub async fn capture(&self, network: &str) -> Result<mpsc::Receiver<Captured>, NoAnswer> {
        let (sink, packets) = mpsc::channel(WAITING_MAX);
        let (answer, asked) = oneshot::channel();
        let ask = Ask::Capture { network: network.into(), sink, answer };
        let known = self.ask(ask, asked).await?;
        known.then_some(packets).ok_or(NoAnswer::Unknown)
    }
}
