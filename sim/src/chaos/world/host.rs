//! The port to K3s with an ear for secrets: what must not be told is learned from the specs that name it. Shell.

use std::time::Duration;

use k3s::{Action, Host, HostError, Observed, RunSpec, Secret, Spec};

use super::World;
use crate::chaos::flaw::Flaw;
use crate::chaos::k3s::SimHost;

/// K3s on a machine.
pub struct HeardHost {
    inner: SimHost,
    world: World,
}

impl HeardHost {
    /// Listens to a host.
    pub fn new(inner: SimHost, world: World) -> Self {
        Self { inner, world }
    }
}

fn secrets(run: &RunSpec) -> impl Iterator<Item = &Secret> {
    let join = match &run.role {
        k3s::Role::Server { join } => join.as_ref(),
        k3s::Role::Agent { join } => Some(join),
    };
    let tokens = [run.server_token.as_ref(), run.agent_token.as_ref(), join.map(|j| &j.token)];
    let keys = run.ca.iter().map(|ca| &ca.root_key);
    tokens.into_iter().flatten().chain(keys)
}

impl Host for HeardHost {
    async fn observe(&self, spec: &Spec) -> Result<Observed, HostError> {
        if let Spec::Run(run) = spec {
            for secret in secrets(run) {
                self.world.0.judge.learn(secret.expose());
            }
            if self.world.flaw() == Some(Flaw::TalkativeHost)
                && let Some(secret) = secrets(run).next()
            {
                let why = format!("the token {} was not taken", secret.expose());
                return Err(HostError::Refused(why));
            }
        }
        self.inner.observe(spec).await
    }

    async fn perform(&self, action: &Action) -> Result<(), HostError> {
        self.inner.perform(action).await
    }

    async fn durable_write(&self) -> Result<Duration, HostError> {
        self.inner.durable_write().await
    }
}
