//! The end of a run: all faults are off, and within a bound the fleet must be whole again. Shell.

use std::time::Duration;

use super::reach::holders_answer;
use super::stage::Stage;
use super::view::{lacking, newest};
use super::watch::look;
use crate::lab::host;

/// How long the fleet may take to be whole again: as long as the simulated one.
pub(super) const BOUND: Duration = Duration::from_secs(90);
/// Pause between two looks.
const LOOK_MS: u64 = 500;

/// Waits until the fleet is whole; tells after how many milliseconds it was.
///
/// # Errors
/// In words, what it lacks at the end of the bound.
pub(super) fn heal(stage: &Stage) -> Result<u64, String> {
    let from_ms = stage.docket.now_ms();
    let until_ms = from_ms + u64::try_from(BOUND.as_millis()).unwrap_or(u64::MAX);
    loop {
        if stage.docket.is_over() {
            return Ok(0);
        }
        let seen = stage.runtime.block_on(look(stage));
        let why = lacking(&stage.docket.hosts, &seen);
        let nodes = newest(&seen).map(|s| s.nodes.clone()).unwrap_or_default();
        stage.docket.lock().seen = seen;
        let out: Vec<&str> = nodes
            .iter()
            .filter(|n| n.state.starts_with("drain"))
            .map(|n| n.name.as_str())
            .collect();
        let lacks = match why {
            Some(why) => Err(why),
            None => proof(stage),
        };
        match lacks {
            Ok(()) => return Ok(stage.docket.now_ms() - from_ms),
            Err(why) if stage.docket.now_ms() >= until_ms => {
                return Err(format!("{} s after all faults ended: {why}", BOUND.as_secs()));
            }
            Err(_) => undrain(stage, &out),
        }
        stage.docket.rest(LOOK_MS);
    }
}

/// Takes nodes back into service, as a person would in the end.
fn undrain(stage: &Stage, out: &[&str]) {
    for machine in 0..stage.docket.hosts.len() {
        let name = stage.docket.hosts[machine].as_str();
        if out.contains(&name) {
            let _ = host::exec(&stage.lab, stage.host(machine), &["skein", "undrain", name]);
        }
    }
}

/// Asks through each VIP from each host, then writes and reads once more through each.
fn proof(stage: &Stage) -> Result<(), String> {
    holders_answer(stage)?;
    let prove = async {
        for via in 0..stage.docket.hosts.len() {
            stage.people.proof(via).await?;
        }
        Ok(())
    };
    stage.runtime.block_on(prove)
}
