//! What can go wrong, on demand. Shell.

use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};

use super::store::{HostRecord, Lab};
use super::{Result, host, refusal, sh, try_sh, wire};

/// How tables of cuts are called.
pub(super) const TABLE: &str = "skein_lab_cut";

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
    let cut = Cut { table: TABLE, from, one_way, permille: None };
    lay_cut(lab, h, &cut)
}

/// A cut of a host.
pub(super) struct Cut<'a> {
    /// Its table, whose name begins with [`TABLE`], so that it is found by [`heal`].
    pub(super) table: &'a str,
    /// From whom; from all if there is nobody.
    pub(super) from: &'a [&'a HostRecord],
    /// The host is heard no more, but still hears.
    pub(super) one_way: bool,
    /// So many packets of a thousand are lost, and not all.
    pub(super) permille: Option<u64>,
}

/// Lays a cut beside those that are there.
pub(super) fn lay_cut(lab: &Lab, h: &HostRecord, cut: &Cut<'_>) -> Result<()> {
    if cut.from.iter().any(|o| o.name == h.name) {
        let next = format!("{} cut {} --from another host", lab.call(), h.name);
        return Err(refusal(
            format!("{} was not cut", h.name),
            "--from names the host itself",
            next,
        ));
    }
    let mut child = Command::new("ip")
        .args(["netns", "exec", &lab.netns(h), "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("nft: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules(lab, cut).as_bytes()).map_err(|e| format!("nft: {e}"))?;
    }
    let out = child.wait_with_output().map_err(|e| format!("nft: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("nft: {}", String::from_utf8_lossy(&out.stderr).trim()))
}

/// Writes a cut as nft reads it.
fn rules(lab: &Lab, cut: &Cut<'_>) -> String {
    let drop = cut
        .permille
        .map_or_else(|| "drop".to_owned(), |lost| format!("numgen random mod 1000 < {lost} drop"));
    let to: Vec<String> = cut.from.iter().map(|o| lab.address(o)).collect();
    let to6: Vec<String> = cut.from.iter().map(|o| lab.address6(o)).collect();
    let rules = |verb: &str, face: &str| {
        if cut.from.is_empty() {
            format!("{face} \"eth0\" {drop}")
        } else {
            format!(
                "ip {verb} {{ {} }} {drop}\n    ip6 {verb} {{ {} }} {drop}",
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
    if !cut.one_way {
        chains += &chain("in", "prerouting", rules("saddr", "iifname"));
    }
    format!("table inet {} {{\n{chains}}}\n", cut.table)
}

/// Takes a cut away; one of a host that booted since is gone already.
pub(super) fn uncut(lab: &Lab, h: &HostRecord, table: &str) {
    try_sh("ip", &["netns", "exec", &lab.netns(h), "nft", "delete", "table", "inet", table]);
}

fn uncut_all(lab: &Lab, h: &HostRecord) {
    let listed = sh("ip", &["netns", "exec", &lab.netns(h), "nft", "list", "tables", "inet"]);
    for table in listed.unwrap_or_default().lines().filter_map(|l| l.split(' ').nth(2)) {
        if table.starts_with(TABLE) {
            uncut(lab, h, table);
        }
    }
}

/// Undoes all cuts and lets all daemons go on.
pub(super) fn heal(lab: &Lab) {
    for h in lab.hosts.iter().filter(|h| host::running(lab, h).is_some()) {
        uncut_all(lab, h);
        wire::set(lab, h, true);
        if let Some((pid, true)) = host::daemon(lab, h) {
            let _ = kill(pid, Signal::SIGCONT);
        }
    }
}
