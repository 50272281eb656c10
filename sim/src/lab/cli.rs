//! The lab's verbs. Shell.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use nix::unistd::geteuid;

use super::fleet::Progress;
use super::store::{self, HostRecord, Lab};
use super::{Result, cgroup, faults, fleet, host, runtime, say, status, wire};
use crate::bench::Bench;

/// `skein-sim lab`.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// The lab's name; several may run side by side [default: lab, for a bench: bench]
    #[arg(long, global = true)]
    name: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// How far `up` goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    Hosts,
    Members,
    Cluster,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring up hosts, daemons and a cluster called `lab`.
    Up {
        /// How many control-plane hosts.
        #[arg(long, default_value = "3")]
        servers: u8,
        /// How many workers.
        #[arg(long, default_value = "1")]
        workers: u8,
        /// What runs as K3s: auto, rehearsal, build, or a path to a K3s binary.
        #[arg(long, default_value = "auto")]
        k3s: String,
        /// A folder of image archives for pods.
        #[arg(long)]
        images: Option<PathBuf>,
        /// Stop after the daemons are members: no cluster.
        #[arg(long)]
        no_cluster: bool,
        /// Stop after the hosts have booted: no daemons.
        #[arg(long)]
        no_daemons: bool,
    },
    /// Show hosts, daemons, addresses, pids and state folders.
    Status {
        /// table or json.
        #[arg(short, long, default_value = "table")]
        output: Format,
    },
    /// Run a command in a host.
    #[command(trailing_var_arg = true)]
    Exec {
        /// The host.
        host: String,
        /// The command.
        #[arg(required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Cut a host's power: the link goes down, then every process ends.
    Kill {
        /// The host.
        host: String,
    },
    /// End every process of a host; peers get resets.
    Crash {
        /// The host.
        host: String,
    },
    /// Stop a host's daemon (SIGSTOP).
    Pause {
        /// The host.
        host: String,
    },
    /// Let a stopped daemon go on.
    Resume {
        /// The host.
        host: String,
    },
    /// Boot a host again on the same disk.
    Start {
        /// The host.
        host: String,
    },
    /// Boot a host on an empty disk and let it take its own place again.
    Wipe {
        /// The host.
        host: String,
    },
    /// Boot a host with another underlay address.
    Readdress {
        /// The host.
        host: String,
    },
    /// Cut a host from others, or from all.
    Cut {
        /// The host.
        host: String,
        /// From these only.
        #[arg(long, value_delimiter = ',')]
        from: Vec<String>,
        /// It is heard no more, but still hears.
        #[arg(long)]
        one_way: bool,
    },
    /// Undo all cuts and pauses.
    Heal,
    /// Drain a host.
    #[command(trailing_var_arg = true)]
    Drain {
        /// The host.
        host: String,
        /// Options of `skein drain`.
        #[arg(allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Measure on a lab of its own, which is removed in the end.
    #[command(subcommand)]
    Bench(Bench),
    /// Remove the lab and everything that it made.
    Down,
}

/// Carries out a verb.
///
/// # Errors
/// In words, with what to do next.
pub fn run(args: LabArgs) -> std::result::Result<u8, String> {
    let usual = if matches!(args.verb, Verb::Bench(_)) { "bench" } else { "lab" };
    let name = args.name.unwrap_or_else(|| usual.into());
    check_name(&name)?;
    if !geteuid().is_root() {
        return Err(
            "a lab makes namespaces and network devices, which only root may do; run it with sudo"
                .into(),
        );
    }
    match args.verb {
        Verb::Exec { host, command } => return exec(&name, &host, &command),
        Verb::Drain { host, options } => {
            let mut command = vec!["skein".to_owned(), "drain".to_owned(), host.clone()];
            command.extend(options);
            return exec(&name, &any_host(&name)?, &command);
        }
        Verb::Status { output } => {
            status::show(&Lab::require(&name)?, output == Format::Json);
            return Ok(0);
        }
        Verb::Bench(bench) => return crate::bench::run(&name, &bench),
        verb => change(&name, verb)?,
    }
    Ok(0)
}

fn check_name(name: &str) -> Result<()> {
    let fine = !name.is_empty()
        && name.len() <= 20
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fine {
        Ok(())
    } else {
        Err(format!("--name {name:?}: use up to 20 lower-case letters, digits and hyphens"))
    }
}

fn exec(name: &str, host: &str, command: &[String]) -> std::result::Result<u8, String> {
    let lab = Lab::require(name)?;
    let h = lab.host(host)?;
    let args: Vec<&str> = command.iter().map(String::as_str).collect();
    Err(host::become_program(&lab, h, &args))
}

fn any_host(name: &str) -> Result<String> {
    let lab = Lab::require(name)?;
    let up = lab.hosts.iter().find(|h| host::daemon(&lab, h).is_some_and(|(_, stopped)| !stopped));
    up.map(|h| h.name.clone()).ok_or_else(|| "no daemon runs; boot one with: ./lab start n1".into())
}

fn change(name: &str, verb: Verb) -> Result<()> {
    let _lock = store::lock(name)?;
    match verb {
        Verb::Up { servers, workers, k3s, images, no_cluster, no_daemons } => {
            let stop = if no_daemons {
                Stop::Hosts
            } else if no_cluster {
                Stop::Members
            } else {
                Stop::Cluster
            };
            return up(name, (servers, workers), &k3s, images, stop);
        }
        Verb::Down => return down(name),
        _ => {}
    }
    let mut lab = Lab::require(name)?;
    match verb {
        Verb::Kill { host } => host::power_cut(&lab, lab.host(&host)?),
        Verb::Crash { host } => host::crash(&lab, lab.host(&host)?),
        Verb::Pause { host } => faults::pause(&lab, lab.host(&host)?, true)?,
        Verb::Resume { host } => faults::pause(&lab, lab.host(&host)?, false)?,
        Verb::Start { host } => boot_member(&lab, lab.host(&host)?)?,
        Verb::Wipe { host } => wipe(&lab, lab.host(&host)?)?,
        Verb::Readdress { host } => {
            host::crash(&lab, lab.host(&host)?);
            if let Some(h) = lab.hosts.iter_mut().find(|h| h.name == host) {
                h.moves = (h.moves + 1) % 4;
            }
            lab.save()?;
            boot_member(&lab, lab.host(&host)?)?;
            say(format!("{host} is at {} now", lab.address(lab.host(&host)?)));
        }
        Verb::Cut { host, from, one_way } => {
            let from: Result<Vec<&HostRecord>> = from.iter().map(|f| lab.host(f)).collect();
            faults::cut(&lab, lab.host(&host)?, &from?, one_way)?;
        }
        Verb::Heal => faults::heal(&lab),
        Verb::Up { .. }
        | Verb::Down
        | Verb::Exec { .. }
        | Verb::Bench(_)
        | Verb::Drain { .. }
        | Verb::Status { .. } => {}
    }
    Ok(())
}

fn boot_member(lab: &Lab, h: &HostRecord) -> Result<()> {
    host::boot(lab, h)?;
    if lab.daemons { fleet::start_daemon(lab, h) } else { Ok(()) }
}

fn wipe(lab: &Lab, h: &HostRecord) -> Result<()> {
    let position = lab.hosts.iter().position(|x| x.name == h.name).unwrap_or(0);
    // The ticket first: without one the host could not come back.
    let ticket = fleet::ticket(lab, if position < lab.servers { "voter" } else { "any" })?;
    host::crash(lab, h);
    let disk = lab.host_dir(h).join("disk");
    std::fs::remove_dir_all(&disk).map_err(|e| format!("{}: {e}", disk.display()))?;
    host::boot(lab, h)?;
    let line = format!("skein join {ticket} --name {} --replaces {} --foreground", h.name, h.name);
    host::detach(lab, h, &line, "/var/log/skein.log")
}

/// Finds the daemon's binary beside this one, and refuses one of another commit.
fn skein_binary() -> Result<PathBuf> {
    let exe = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    let skein = exe.parent().unwrap_or(Path::new("/")).join("skein");
    let version = super::sh(&skein.display().to_string(), &["--version"])?;
    if version.contains(node::COMMIT) {
        Ok(skein)
    } else {
        let why = format!(
            "{} is of another commit ({}) than skein-sim ({})",
            skein.display(),
            version.trim(),
            node::COMMIT
        );
        Err(format!("{why}; build both: cargo build"))
    }
}

fn up(
    name: &str,
    (servers, workers): (u8, u8),
    k3s: &str,
    images: Option<PathBuf>,
    stop: Stop,
) -> Result<()> {
    if servers == 0 || u16::from(servers) + u16::from(workers) > 50 {
        return Err("--servers must be at least 1, and at most 50 hosts fit".into());
    }
    let mut progress = Progress::new();
    let skein = skein_binary()?;
    let lab = match Lab::load(name)? {
        Some(known) if known.hosts.len() == usize::from(servers + workers) => {
            Lab { skein, ..known }
        }
        Some(known) => {
            return Err(format!(
                "lab {name} runs with {} hosts already; remove it first: ./lab down --name {name}",
                known.hosts.len()
            ));
        }
        None => {
            let (k3s, k3s_binary) = runtime::choose(k3s)?;
            let missing = runtime::missing(&k3s);
            if !missing.is_empty() {
                return Err(format!(
                    "Kubernetes needs programs that are missing here; install them: apt-get install {}",
                    missing.join(" ")
                ));
            }
            let host = |i: u8| HostRecord { name: format!("n{i}"), index: i, moves: 0 };
            let hosts = (1..=servers + workers).map(host).collect();
            Lab {
                name: name.into(),
                net: store::free_net(),
                k3s,
                k3s_binary,
                skein,
                images,
                servers: servers.into(),
                daemons: stop != Stop::Hosts,
                hosts,
            }
        }
    };
    lab.save()?;
    for h in &lab.hosts {
        progress.show(&format!("host {} to boot", h.name));
        host::boot(&lab, h)?;
    }
    if !lab.daemons {
        progress.end();
        return Ok(());
    }
    fleet::members(&lab, &mut progress)?;
    if stop == Stop::Cluster {
        fleet::cluster(&lab, &mut progress)?;
    }
    progress.end();
    super::print(host::exec(&lab, &lab.hosts[0], &["skein", "status"])?);
    let lab = if name == "lab" { "./lab".to_owned() } else { format!("./lab --name {name}") };
    say("try next:");
    for verb in [
        "exec n1 -- skein vip ls",
        "drain n1",
        "kill n2",
        "exec n3 -- skein events",
        "start n2",
        "down",
    ] {
        say(format!("  {lab} {verb}"));
    }
    Ok(())
}

fn down(name: &str) -> Result<()> {
    match Lab::load(name) {
        Ok(Some(lab)) => {
            for h in &lab.hosts {
                host::remove(&lab, h);
            }
            wire::remove(&lab);
            say(format!("lab {name} is gone"));
        }
        Ok(None) => say(format!("there is no lab {name}")),
        Err(e) => say(format!("{e}; its folder is removed")),
    }
    sweep(name);
    let dir = store::dir(name);
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("{}: {e}", dir.display()));
        }
        _ => {}
    }
    let _ = std::fs::remove_file(store::root().join(format!("{name}.lock")));
    let _ = std::fs::remove_dir(store::root());
    Ok(())
}

/// Removes what a crash kept out of the lab's records.
fn sweep(name: &str) {
    let prefix = format!("skein-{name}-");
    let ours = |name: &str| name.strip_prefix(&prefix).is_some_and(|host| !host.contains('-'));
    host::kill_all(&store::dir(name));
    for group in cgroup::names().iter().filter(|group| ours(group)) {
        cgroup::kill(group);
        cgroup::remove(group);
    }
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let ns = entry.file_name().to_string_lossy().into_owned();
        if ours(&ns) {
            super::try_sh("ip", &["netns", "del", &ns]);
        }
    }
}
