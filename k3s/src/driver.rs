//! One bounded round of observe, step and perform. Shell over the pure step.

use std::time::Duration;

use tokio::time::Instant;

use crate::host::{Host, HostError};
use crate::observe::{Captured, Health, Observed, Phase, Probe, Turn};
use crate::spec::{RoleKind, Spec};
use crate::step::{password_rejected, step};
use crate::token::{Token, agent_token};

/// How long one look or one change may take before the turn gives up on it.
const HOST_DEADLINE: Duration = Duration::from_secs(20);
/// When to try again after the host failed.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps K3s on one host as its spec says; owned by one task.
#[derive(Debug)]
pub struct Driver<H> {
    host: H,
    health: Option<Health>,
    ready_once: bool,
}

impl<H: Host> Driver<H> {
    /// A driver that knows nothing yet about the host.
    pub fn new(host: H) -> Self {
        Self { host, health: None, ready_once: false }
    }

    /// The host, for what goes beside turns.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// One round: look, decide, act. Never longer than about the deadline of one look and one change; what takes longer runs on in the background and shows in `waiting_for`.
    pub async fn turn(&mut self, spec: &Spec, now: Instant) -> Turn {
        let seen = match bounded(self.host.observe(spec)).await {
            Ok(seen) => seen,
            Err(error) => return self.blind(&error, now),
        };
        let next = step(spec, &seen, now);
        let mut waiting_for = next.waiting_for;
        let mut changed = false;
        for action in &next.actions {
            match bounded(self.host.perform(action)).await {
                Ok(()) => changed = true,
                Err(error) => {
                    tracing::warn!(%error, "a change of this host for K3s failed and will be tried again");
                    waiting_for = Some(format!("{error}; trying again"));
                    break;
                }
            }
        }
        let health = self.judge(&seen, now);
        self.ready_once |= health.ready == Some(true);
        let captured = captured(spec, &seen).filter(|_| health.ready == Some(true));
        let version = match &seen.binary {
            crate::observe::Binary::Present(binary) => Some(binary.version.text.clone()),
            crate::observe::Binary::Missing { .. } | crate::observe::Binary::Fetching { .. } => {
                None
            }
        };
        Turn {
            phase: next.phase,
            waiting_for,
            version,
            captured,
            left_out: next.left_out,
            password_rejected: password_rejected(&seen.log_tail),
            health,
            changed,
            wake: next.wake,
        }
    }

    fn judge(&mut self, seen: &Observed, now: Instant) -> Health {
        let (ready, detail) = match &seen.probe {
            Probe::NotYet(why) => (None, why.clone()),
            Probe::Ready => (Some(true), "ready".to_owned()),
            Probe::NotReady(why) => (Some(false), why.clone()),
        };
        let since =
            self.health.as_ref().filter(|last| last.ready == ready).map_or(now, |last| last.since);
        let health = Health { ready, since, detail };
        self.health = Some(health.clone());
        health
    }

    fn blind(&mut self, error: &HostError, now: Instant) -> Turn {
        let since =
            self.health.as_ref().filter(|last| last.ready.is_none()).map_or(now, |last| last.since);
        let health = Health { ready: None, since, detail: error.to_string() };
        self.health = Some(health.clone());
        Turn {
            phase: if self.ready_once { Phase::Degraded } else { Phase::Installing },
            waiting_for: Some(format!("this host cannot be looked at: {error}; trying again")),
            version: None,
            captured: None,
            health,
            left_out: Vec::new(),
            password_rejected: false,
            changed: false,
            wake: now + RETRY,
        }
    }
}

/// The credentials, if all of them are there and whole.
fn captured(spec: &Spec, seen: &Observed) -> Option<Captured> {
    let Spec::Run(run) = spec else { return None };
    if run.role.kind() != RoleKind::Server {
        return None;
    }
    let found = &seen.credentials;
    let server_token = Token::parse(found.server_token.as_ref()?.expose()).ok()?.text();
    let agent_token =
        agent_token(found.agent_token.as_ref(), &server_token, run.agent_token.as_ref()).ok()?;
    Some(Captured {
        agent_token,
        kubeconfig: found.kubeconfig.clone()?,
        server_ca: found.server_ca.clone()?,
        server_token,
    })
}

async fn bounded<T>(work: impl Future<Output = Result<T, HostError>>) -> Result<T, HostError> {
    match tokio::time::timeout(HOST_DEADLINE, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(HostError::Refused(format!(
            "no answer from this host within {} s",
            HOST_DEADLINE.as_secs()
        ))),
    }
}
