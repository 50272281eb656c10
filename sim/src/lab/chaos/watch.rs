//! Looks at every host again and again, and shows what is seen to the checks. Shell.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::sleep;

use super::checks::Speaker;
use super::docket::Expected;
use super::stage::Stage;
use super::view::{Seen, newest};
use crate::chaos::story::Now;
use crate::lab::host;

/// Pause between two looks.
const EVERY: Duration = Duration::from_millis(400);
/// A daemon that is missing at so many looks in a row has ended.
const MISSING: u32 = 2;

/// Looks once at each host.
pub(super) async fn look(stage: &Stage) -> Vec<Seen> {
    let daemons = stage.lab.hosts.iter().map(|h| host::daemon(&stage.lab, h));
    let daemons: Vec<Option<(i32, bool)>> =
        daemons.map(|d| d.map(|(pid, paused)| (pid.as_raw(), paused))).collect();
    let answers = daemons.iter().enumerate().map(|(n, daemon)| async move {
        match daemon {
            Some((_, false)) => stage.people.look(n).await,
            _ => None,
        }
    });
    let answers = join_all(answers).await;
    let one = |(daemon, answer): (Option<(i32, bool)>, _)| Seen {
        daemon: daemon.map(|(pid, _)| pid),
        paused: daemon.is_some_and(|(_, paused)| paused),
        answer,
    };
    daemons.into_iter().zip(answers).map(one).collect()
}

/// Looks until all is over.
pub(super) async fn watch(stage: Stage) {
    let mut missing: Vec<(u64, u32)> = vec![(0, 0); stage.docket.hosts.len()];
    let mut before_ms = 0;
    while !stage.docket.is_over() {
        let expected = stage.docket.lock().expected.clone();
        let wiped = stage.docket.lock().wiped.clone();
        let seen = look(&stage).await;
        note(&stage, &mut before_ms, &seen);
        for (n, host) in stage.docket.hosts.iter().enumerate() {
            check(&stage, host, wiped[n], &seen[n]);
            if has_ended(expected[n], &seen[n], &mut missing[n]) {
                let why = format!("the daemon of {host} ended by itself; its log says why");
                stage.docket.convict("stays_up", why);
            }
        }
        sleep(EVERY).await;
    }
}

/// Counts looks at which a daemon is missing that is expected to run, and has been for as long.
fn has_ended(expected: Expected, seen: &Seen, missing: &mut (u64, u32)) -> bool {
    if !expected.up || seen.daemon.is_some() || missing.0 != expected.change {
        *missing = (expected.change, 0);
    }
    missing.1 += u32::from(expected.up && seen.daemon.is_none());
    missing.1 > MISSING
}

fn check(stage: &Stage, host: &str, wiped: u64, seen: &Seen) {
    let (Some(answer), Some(daemon)) = (&seen.answer, seen.daemon) else { return };
    let by = Speaker { host, daemon, wiped };
    let found = stage.docket.lock().checks.seen(by, answer);
    if let Err((name, why)) = found {
        stage.docket.convict(name, why);
    }
}

/// Tells the story what is so now.
fn note(stage: &Stage, before_ms: &mut u64, seen: &[Seen]) {
    let at_ms = stage.docket.now_ms();
    let mut now = Vec::new();
    let mut add = |machine: usize, kind: &str, detail: String| {
        now.push(Now { machine, kind: kind.to_owned(), detail });
    };
    let holders: Vec<(&str, &str)> = newest(seen).map_or_else(Vec::new, |status| {
        status.vips.iter().map(|v| (v.holder.as_str(), v.name.as_str())).collect()
    });
    for (n, (seen, host)) in seen.iter().zip(&stage.docket.hosts).enumerate() {
        if seen.daemon.is_some() {
            add(n, if seen.paused { "paused" } else { "up" }, String::new());
        }
        if let Some(answer) = seen.answer.as_ref().filter(|a| a.status.leader == *host) {
            add(n, "leads", format!("term {}", answer.status.term));
        }
        for (_, vip) in holders.iter().filter(|(holder, _)| holder == host) {
            add(n, "holds", (*vip).to_owned());
        }
    }
    let mut state = stage.docket.lock();
    state.story.moment(*before_ms, at_ms, &now);
    state.seen = seen.to_vec();
    *before_ms = at_ms;
}
