//! People and programs that use the API of a lab's daemons, and remember what they were told. Shell.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::client::connect_local;
use api::proto;
use api::proto::fleet_client::FleetClient;
use api::proto::networks_client::NetworksClient;
use api::ticket::JoinTicket;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use node::config::SOCKET;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use uuid::Uuid;

use super::docket::Docket;
use super::view::Answer;
use crate::chaos::draw::Draw;
use crate::chaos::invariant::acknowledged::{Acknowledged, Ask, Told};
use crate::chaos::register;
use crate::chaos::world::client::CALL_MAX;
use crate::lab::host;
use crate::lab::store::Lab;

/// How long a connection within one machine may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long a look at a daemon may take.
const LOOK_MAX: Duration = Duration::from_millis(1_500);
/// A person tries a call so often.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_millis(1_000);

/// Whoever uses the API.
#[derive(Clone)]
pub(super) struct People {
    lab: Arc<Lab>,
    docket: Arc<Docket>,
    seed: u64,
}

/// What a client does, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habit {
    pub(super) round: u64,
    /// Tells it from the round's others.
    pub(super) number: u64,
    /// Through which host it calls; through any, if none is named.
    pub(super) via: Option<usize>,
    pub(super) calls: usize,
    pub(super) every_ms: u64,
    pub(super) until_ms: u64,
}

/// What a round's clients saw.
pub(super) type History = Arc<Mutex<Acknowledged>>;

impl People {
    pub(super) fn new(lab: &Arc<Lab>, docket: &Arc<Docket>, seed: u64) -> Self {
        Self { lab: lab.clone(), docket: docket.clone(), seed }
    }

    /// Connects to a host's daemon by its socket, which is reached through the host's own view of files.
    async fn channel(&self, host: usize) -> Option<Channel> {
        let init = host::running(&self.lab, &self.lab.hosts[host])?;
        let socket = PathBuf::from(format!("/proc/{init}/root{SOCKET}"));
        timeout(CONNECT_MAX, connect_local(&socket)).await.ok()?.ok()
    }

    /// Asks a daemon how it sees the fleet.
    pub(super) async fn look(&self, host: usize) -> Option<Answer> {
        let asked = async {
            let channel = self.channel(host).await?;
            let read = Some(proto::Read { stale: true });
            let mut fleet = FleetClient::new(channel.clone());
            let mut networks = NetworksClient::new(channel);
            let status = fleet.get_status(proto::GetStatusRequest {}).await.ok()?.into_inner();
            let network = proto::GetNetworkRequest { name: "default".into(), read };
            let network = networks.get(network).await.ok()?.into_inner();
            let tickets = fleet.list_tickets(proto::ListTicketsRequest { read }).await;
            Some(Answer { status, network, tickets: tickets.ok()?.into_inner() })
        };
        timeout(LOOK_MAX, asked).await.ok()?
    }

    /// Returns all tickets that there are.
    pub(super) async fn tickets(&self) -> Option<BTreeSet<u64>> {
        for host in 0..self.docket.hosts.len() {
            let Some(channel) = self.channel(host).await else { continue };
            let mut fleet = FleetClient::new(channel);
            let call = fleet.list_tickets(proto::ListTicketsRequest { read: None });
            if let Ok(Ok(list)) = timeout(CALL_MAX, call).await {
                return Some(list.into_inner().tickets.iter().map(|t| t.id).collect());
            }
        }
        None
    }

    /// Makes a ticket, repeating the same request at one host after the other until it is answered.
    pub(super) async fn ticket(&self, via: &[usize], role: &str) -> Option<String> {
        let id = Uuid::new_v4();
        self.docket.lock().tally.requests.request(id.as_u128());
        let request = proto::CreateTicketRequest {
            request_id: id.to_string(),
            role: role.to_owned(),
            ..Default::default()
        };
        let now = usize::try_from(self.docket.now_ms()).unwrap_or(0);
        for turn in 0..TRIES {
            let host = *via.get((now + turn) % via.len().max(1))?;
            if let Some(channel) = self.channel(host).await {
                let mut fleet = FleetClient::new(channel);
                let call = fleet.create_ticket(request.clone());
                if let Ok(Ok(answer)) = timeout(CALL_MAX, call).await {
                    return Some(self.got(id, &answer.into_inner()));
                }
            }
            sleep(PAUSE).await;
        }
        None
    }

    fn got(&self, request: Uuid, answer: &proto::CreateTicketResponse) -> String {
        let mut state = self.docket.lock();
        let noted = state.tally.requests.ticket(request.as_u128(), answer.id);
        state.secrets.learn(&answer.ticket);
        if let Ok(ticket) = answer.ticket.parse::<JoinTicket>() {
            state.secrets.learn(&hex::encode(ticket.secret));
            state.secrets.learn(&URL_SAFE_NO_PAD.encode(ticket.secret));
            state.secrets.learn(&STANDARD.encode(ticket.secret));
        }
        drop(state);
        if let Err(why) = noted {
            self.docket.convict("acknowledged", why);
        }
        answer.ticket.clone()
    }

    /// Makes tickets until a moment.
    pub(super) async fn tickets_until(self, until_ms: u64) {
        let all: Vec<usize> = (0..self.docket.hosts.len()).collect();
        while self.docket.now_ms() < until_ms && !self.docket.is_over() {
            drop(self.ticket(&all, "any").await);
            sleep(PAUSE * 2).await;
        }
    }

    /// Makes one call to a register and notes it, also if it failed; one that was never sent is none.
    async fn call(&self, via: usize, register: &str, ask: Ask, history: &History) -> Option<Told> {
        let channel = self.channel(via).await?;
        let calls = || history.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = calls().begins(register, ask.clone(), self.docket.now_us());
        let told = timeout(CALL_MAX, register::call(channel, register, &ask)).await.ok().flatten();
        if let Some(told) = told.clone() {
            calls().ends(&begun, self.docket.now_us(), told);
        }
        {
            let calls = &mut self.docket.lock().calls;
            calls.0 += 1;
            calls.1 += usize::from(told.is_some());
        }
        told
    }

    /// Writes and reads registers, one call after the other.
    pub(super) async fn client(self, habit: Habit, history: History) {
        let mut draw = Draw::new(self.seed, "lab client", &[habit.round, habit.number]);
        for _ in 0..habit.calls {
            if self.docket.now_ms() >= habit.until_ms || self.docket.is_over() {
                return;
            }
            let (register, ask) = register::next(&mut draw);
            let register = format!("device{register}-r{}", habit.round);
            let any = draw.index(self.docket.hosts.len());
            let _ = self.call(habit.via.unwrap_or(any), &register, ask, &history).await;
            sleep(Duration::from_millis(habit.every_ms)).await;
        }
    }

    /// Writes, reads and removes through a host: a fleet that is whole takes it.
    ///
    /// # Errors
    /// In words, what was answered otherwise.
    pub(super) async fn proof(&self, via: usize) -> Result<(), String> {
        let history = History::default();
        for (ask, due) in register::proof(self.docket.now_us()) {
            let told = self.call(via, "proof", ask.clone(), &history).await;
            if told != Some(due) {
                // What is left of it would refuse the next try.
                let _ = self.call(via, "proof", Ask::Remove, &history).await;
                let host = &self.docket.hosts[via];
                return Err(format!("a fresh {ask:?} through {host} was answered with {told:?}"));
            }
        }
        Ok(())
    }

    /// Loses a write on purpose: what a client put is taken away behind its back.
    pub(super) async fn lose_a_write(self, round: u64, until_ms: u64, history: History) {
        let (register, unseen) = (format!("planted-r{round}"), History::default());
        while self.docket.now_ms() < until_ms && !self.docket.is_over() {
            let told = self.call(0, &register, Ask::Put(7), &history).await;
            if told == Some(Told::Done)
                && self.call(1, &register, Ask::Remove, &unseen).await == Some(Told::Done)
                && self.call(2, &register, Ask::Read, &history).await.is_some()
            {
                return;
            }
            sleep(PAUSE).await;
        }
    }
}
