//! What can go wrong, on demand. Shell.

use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};

use super::store::{HostRecord, Lab};
use super::{Result, host, refusal, try_sh, wire};

const TABLE: &str = "skein_lab_cut";

/// Stops a host's daemon, or lets it go on.
pub(super) fn pause(lab: &Lab, h: &HostRecord, stop: bool) -> Result<()> {
    let what = format!("{} was not {}", h.name, if stop { "paused" } else { "resumed" });
    let next = |verb: &str| format!("{} {verb} {}", lab.call(), h.name);
    let Some((pid, stopped)) = host::daemon(lab, h) else {
        return Err(refusal(what, "no daemon runs in it", next("start")));
    };
    match (stop, stopped) {
        (true, true) => return Err(refusal(what, "its daemon is paused already", next("resume"))),
        (false, false) => {
            return Err(refusal(
                what,
                "its daemon is not paused",
                format!("{} status", lab.call()),
            ));
        }
        _ => {}
    }
    let signal = if stop { Signal::SIGSTOP } else { Signal::SIGCONT };
    kill(pid, signal).map_err(|e| format!("process {pid}: {e}"))
}

/// Cuts a host from others, or from all; one way it is heard no more, but still hears.
pub(super) fn cut(lab: &Lab, h: &HostRecord, from: &[&HostRecord], one_way: bool) -> Result<()> {
    if from.iter().any(|o| o.name == h.name) {
        let next = format!("{} cut {} --from another host", lab.call(), h.name);
        return Err(refusal(
            format!("{} was not cut", h.name),
            "--from names the host itself",
            next,
        ));
    }
    let to: Vec<String> = from.iter().map(|o| lab.address(o)).collect();
    let to6: Vec<String> = from.iter().map(|o| lab.address6(o)).collect();
    let rules = |verb: &str, face: &str| {
        if from.is_empty() {
            format!("{face} \"eth0\" drop")
        } else {
            format!(
                "ip {verb} {{ {} }} drop\n    ip6 {verb} {{ {} }} drop",
                to.join(", "),
                to6.join(", ")
            )
        }
    };
    let chain = |name: &str, hook: &str, rules: String| {
        format!(
            "  chain {name} {{\n    type filter hook {hook} priority -300;\n    {rules}\n  }}\n"
        )
    };
    let mut chains = chain("out", "output", rules("daddr", "oifname"));
    chains += &chain("through", "forward", rules("daddr", "oifname"));
    if !one_way {
        chains += &chain("in", "prerouting", rules("saddr", "iifname"));
    }
    let text = format!("table inet {TABLE} {{\n{chains}}}\n");
    let mut child = Command::new("ip")
        .args(["netns", "exec", &lab.netns(h), "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("nft: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).map_err(|e| format!("nft: {e}"))?;
    }
    let out = child.wait_with_output().map_err(|e| format!("nft: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("nft: {}", String::from_utf8_lossy(&out.stderr).trim()))
}

/// Undoes all cuts and lets all daemons go on.
pub(super) fn heal(lab: &Lab) {
    for h in lab.hosts.iter().filter(|h| host::running(lab, h).is_some()) {
        try_sh("ip", &["netns", "exec", &lab.netns(h), "nft", "delete", "table", "inet", TABLE]);
        wire::set(lab, h, true);
        if let Some((pid, true)) = host::daemon(lab, h) {
            let _ = kill(pid, Signal::SIGCONT);
        }
    }
}
