//! What a flawed world does to frames on their way, and what is heard of them. Shell.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use node::frames;
use raft_store::raft::kind;
use serde_json::Value;
use uuid::Uuid;

use super::World;
use crate::chaos::draw::Draw;
use crate::chaos::flaw::Flaw;

impl World {
    /// Returns the body with which a frame arrives.
    pub(super) fn tampered(&self, kind: u32, number: u64, body: Bytes) -> Bytes {
        match (self.flaw(), kind) {
            (Some(Flaw::MuteHolder), frames::kind::REPORT) => {
                changed(&body, |report| report["vips"] = Value::Array(Vec::new()))
            }
            (Some(Flaw::ForgottenRequest), kind::PROPOSE) => {
                let bytes = Draw::new(self.seed(), "another request", &[number]).bytes();
                let id = uuid::Builder::from_random_bytes(std::array::from_fn(|i| bytes[i]));
                let id: Uuid = id.into_uuid();
                changed(&body, |command| command["body"]["request"] = id.to_string().into())
            }
            _ => body,
        }
    }

    /// Returns the body with which an answer comes back.
    pub(super) fn tampered_answer(&self, kind: u32, body: Bytes) -> Bytes {
        match (self.flaw(), kind) {
            // Done, up to index 0: the caller waits for nothing.
            (Some(Flaw::StaleRead), kind::READ_INDEX) => Bytes::new(),
            _ => body,
        }
    }

    /// Hears a machine's report, whose words people are shown; in a flawed world it is kept, to be repeated when the
    /// machine is silent.
    pub(super) fn hear_report(&self, from: usize, kind: u32, body: &Bytes) {
        if kind != frames::kind::REPORT {
            return;
        }
        if let Ok(words) = std::str::from_utf8(body) {
            self.0.judge.line(words);
        }
        if self.flaw() == Some(Flaw::BlindPlanner) {
            super::lock(&self.0.reports).insert(from, body.clone());
        }
    }

    /// Tells whoever leads that silent machines are well, for ever.
    pub async fn speak_for_the_dead(self) {
        let mut members = BTreeMap::new();
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let serving = self.serving();
            let known = serving.iter().filter_map(|(m, life, _)| Some((*m, life.who()?)));
            members.extend(known.map(|(m, (who, member))| (m, (who, member.node))));
            let leads = serving.iter().find(|(_, _, served)| served.raft().leads());
            let Some((_, _, leader)) = leads else { continue };
            let reports = super::lock(&self.0.reports).clone();
            for (machine, (who, node)) in &members {
                let silent =
                    self.machine(*machine).is_none_or(|m| m.life().is_none() || m.is_paused());
                // One that led has reported to nobody: it says what another one said.
                let words = reports.get(machine).or(reports.values().next());
                let Some(body) = words.filter(|_| silent) else { continue };
                let body = changed(body, |report| {
                    (report["node"], report["api_ready"]) = (node.0.into(), true.into());
                });
                // A leader that is no more does not answer.
                let told = leader.frame(*who, frames::kind::REPORT, body);
                let _ = tokio::time::timeout(Duration::from_millis(50), told).await;
            }
        }
    }
}

fn changed(body: &Bytes, change: impl FnOnce(&mut Value)) -> Bytes {
    match serde_json::from_slice::<Value>(body) {
        Ok(mut value) => {
            change(&mut value);
            serde_json::to_vec(&value).map_or_else(|_| body.clone(), Into::into)
        }
        Err(_) => body.clone(),
    }
}
