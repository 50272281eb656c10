//! From nothing to a working lab, or on from where it was interrupted. Shell.

use std::path::PathBuf;

use clap::Args;

use super::fleet::Progress;
use super::store::{self, HostRecord, Lab};
use super::{Result, faults, fleet, host, refusal, runtime, say};
use crate::beside::beside;

/// Options of `up`; what is not given is as the lab has it.
#[derive(Debug, Args)]
pub(super) struct UpArgs {
    /// How many control-plane hosts [default: 3].
    #[arg(long)]
    servers: Option<u8>,
    /// How many workers [default: 1].
    #[arg(long)]
    workers: Option<u8>,
    /// What runs as K3s: auto, rehearsal, build, or a path to a K3s binary [default: auto].
    #[arg(long)]
    k3s: Option<String>,
    /// A folder of image archives for pods.
    #[arg(long)]
    images: Option<PathBuf>,
    /// Stop after the daemons are members: no cluster.
    #[arg(long)]
    no_cluster: bool,
    /// Run daemons that write down each step, and can be killed after any.
    #[arg(long, hide = true)]
    mortal: bool,
    /// Stop after the hosts have booted: no daemons.
    #[arg(long)]
    no_daemons: bool,
    /// Give each host's Skein a small disk of its own.
    #[arg(long, hide = true)]
    small_disks: bool,
}

impl UpArgs {
    /// What is to run as K3s.
    pub(super) fn k3s(&self) -> &str {
        self.k3s.as_deref().unwrap_or("auto")
    }
}

/// Finds the daemon's binary; a mortal one is this very program.
fn skein_binary(mortal: bool) -> Result<PathBuf> {
    if !mortal {
        return beside("skein", "the lab was not made");
    }
    let exe = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    runtime::as_program(&exe, "mortal", "skein")
}

/// Finds the folder, so that later verbs find it from wherever they are called.
fn images(args: &UpArgs) -> Result<Option<PathBuf>> {
    let Some(given) = &args.images else {
        return Ok(None);
    };
    let said = |e: std::io::Error| {
        let next = "name a folder of image archives, or leave --images out";
        refusal("the lab was not made", format!("--images {}: {e}", given.display()), next)
    };
    let full = std::fs::canonicalize(given).map_err(said)?;
    std::fs::read_dir(&full).map_err(said)?;
    Ok(Some(full))
}

/// Returns the options that are given and are not as the lab has them.
fn differences(lab: &Lab, args: &UpArgs, images: Option<&PathBuf>) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |option: &str, given: Option<String>, has: String| {
        if let Some(given) = given.filter(|given| *given != has) {
            found.push(format!("--{option} is {given}, the lab has {has}"));
        }
    };
    let workers = lab.hosts.len() - lab.servers;
    compare("servers", args.servers.map(|n| n.to_string()), lab.servers.to_string());
    compare("workers", args.workers.map(|n| n.to_string()), workers.to_string());
    let k3s = args.k3s.clone().filter(|k3s| k3s != "auto").map(|k3s| runtime::name(&k3s));
    compare("k3s", k3s, lab.k3s.clone());
    let has = lab.images.as_ref().map_or("none".into(), |p| p.display().to_string());
    compare("images", images.map(|p| p.display().to_string()), has);
    if args.no_cluster && !lab.no_cluster {
        found.push("--no-cluster is given, the lab has a cluster".into());
    }
    found
}

fn new(name: &str, args: &UpArgs, images: Option<PathBuf>, skein: PathBuf) -> Result<Lab> {
    let (servers, workers) = (args.servers.unwrap_or(3), args.workers.unwrap_or(1));
    if servers == 0 || u16::from(servers) + u16::from(workers) > 50 {
        return Err("--servers must be at least 1, and at most 50 hosts fit".into());
    }
    let (k3s, k3s_binary) = runtime::choose(args.k3s())?;
    let missing = runtime::missing(&k3s, &k3s_binary);
    if !missing.is_empty() {
        let why = format!("{k3s} needs programs that are missing here: {}", missing.join(" "));
        let next = format!("apt-get install {}, or --k3s rehearsal", missing.join(" "));
        return Err(refusal("the lab was not made", why, next));
    }
    if images.is_some() && k3s == "rehearsal" {
        say("--images is of no use here: the rehearsal runs no pods");
    }
    let host = |i: u8| HostRecord { name: format!("n{i}"), index: i, moves: 0 };
    let hosts = (1..=servers + workers).map(host).collect();
    Ok(Lab {
        name: name.into(),
        net: store::free_net(),
        k3s,
        k3s_binary,
        skein,
        images,
        no_cluster: args.no_cluster,
        servers: servers.into(),
        daemons: !args.no_daemons,
        small_disks: args.small_disks,
        hosts,
    })
}

pub(super) fn up(name: &str, args: &UpArgs) -> Result<()> {
    let mut progress = Progress::new();
    let skein = skein_binary(args.mortal)?;
    let images = images(args)?;
    let lab = match Lab::load(name)? {
        Some(known) => {
            let differences = differences(&known, args, images.as_ref());
            if !differences.is_empty() {
                let next = format!("{} down removes it, then up again", known.call());
                let what = format!("lab {name} is there already, and otherwise");
                return Err(refusal(what, differences.join("; "), next));
            }
            let daemons = known.daemons || !args.no_daemons;
            Lab { skein, no_cluster: args.no_cluster, daemons, ..known }
        }
        None => new(name, args, images, skein)?,
    };
    lab.save()?;
    for h in &lab.hosts {
        progress.show(&format!("host {} to boot", h.name));
        host::boot(&lab, h)?;
        if let Some((_, true)) = host::daemon(&lab, h) {
            say(format!("the daemon of {} was paused; it goes on", h.name));
            faults::pause(&lab, h, false)?;
        }
    }
    if !lab.daemons {
        progress.end();
        return Ok(());
    }
    fleet::members(&lab, &mut progress)?;
    if !lab.no_cluster {
        fleet::cluster(&lab, &mut progress)?;
    }
    progress.end();
    super::print(host::exec(&lab, &lab.hosts[0], &["skein", "status"])?);
    advise(&lab);
    Ok(())
}

fn advise(lab: &Lab) {
    say("try next:");
    for verb in [
        "exec n1 -- skein vip ls",
        "drain n1",
        "kill n2",
        "exec n3 -- skein events",
        "start n2",
        "down",
    ] {
        // Not every lab has these hosts.
        let named = verb.split(' ').find(|w| w.len() == 2 && w.starts_with('n'));
        if named.is_none_or(|host| lab.hosts.iter().any(|h| h.name == host)) {
            say(format!("  {} {verb}", lab.call()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_options_that_are_given_are_compared() {
        let lab = Lab {
            name: "lab".into(),
            net: 0,
            k3s: "rehearsal".into(),
            k3s_binary: "/x".into(),
            skein: "/y".into(),
            images: None,
            no_cluster: false,
            servers: 1,
            daemons: true,
            small_disks: false,
            hosts: vec![HostRecord { name: "n1".into(), index: 1, moves: 0 }],
        };
        let none = UpArgs {
            servers: None,
            workers: None,
            k3s: None,
            images: None,
            no_cluster: false,
            mortal: false,
            no_daemons: false,
            small_disks: false,
        };
        assert!(differences(&lab, &none, None).is_empty());
        let all = UpArgs {
            servers: Some(2),
            workers: Some(1),
            k3s: Some("build".into()),
            images: None,
            no_cluster: true,
            mortal: false,
            no_daemons: false,
            small_disks: false,
        };
        assert_eq!(differences(&lab, &all, Some(&"/i".into())).len(), 5);
    }
}
