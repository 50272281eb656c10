//! The lab's verbs. Shell.

use clap::{Args, Subcommand, ValueEnum};
use nix::unistd::geteuid;

use super::chaos::ChaosArgs;
use super::peers::Wanted;
use super::store::{self, HostRecord, Lab};
use super::{Result, chaos, down, faults, fleet, host, peers, refusal, runtime, say, status, up};
use crate::bench::Bench;
use crate::picture::{self, PictureArgs};
use crate::tutorial::{self, TutorialArgs};

/// `skein-sim lab`.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// The lab's name; several may run side by side [default: lab, or what bench, chaos and tutorial are called]
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

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring up hosts, daemons and a cluster called `lab`.
    Up(up::UpArgs),
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
    /// Let a drawn plan of faults happen to a lab of its own, and judge what is seen of it; it is removed in the end.
    Chaos(ChaosArgs),
    /// Play a tutorial's commands in a lab of its own, and compare what they print with what it says.
    Tutorial(TutorialArgs),
    /// Record a lab that comes up, is drained and loses a host, as a picture; it is removed in the end.
    Picture(PictureArgs),
    /// Remove the lab and everything that it made.
    Down,
}

/// Carries out a verb.
///
/// # Errors
/// In words, with what to do next.
pub fn run(args: LabArgs) -> std::result::Result<u8, String> {
    let name = args.name();
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
        Verb::Chaos(args) => return chaos::run(&name, &args),
        Verb::Tutorial(args) => return tutorial::run(&name, &args),
        Verb::Picture(args) => return draw(&name, &args),
        verb => change(&name, verb)?,
    }
    Ok(0)
}

impl LabArgs {
    fn name(&self) -> String {
        let usual = match self.verb {
            Verb::Bench(_) => "bench",
            Verb::Chaos(_) => "chaos",
            Verb::Tutorial(_) => "tutorial",
            _ => "lab",
        };
        self.name.clone().unwrap_or_else(|| usual.into())
    }
}

/// Says what these arguments need beside the lab itself, for `./lab` to install: a word each.
///
/// # Errors
/// When they name no K3s.
pub fn needs(args: &LabArgs) -> std::result::Result<u8, String> {
    let name = args.name();
    check_name(&name)?;
    let mut needs = match &args.verb {
        Verb::Up(up) if Lab::load(&name)?.is_none() => runtime::needs(up.k3s())?,
        Verb::Bench(Bench::Failover(failover)) => runtime::needs(failover.k3s())?,
        Verb::Tutorial(tutorial) => runtime::needs(tutorial.k3s())?,
        Verb::Chaos(chaos) => runtime::needs(chaos.k3s())?,
        _ => Vec::new(),
    };
    match &args.verb {
        Verb::Bench(Bench::Failover(_)) => needs.push("bench"),
        Verb::Bench(Bench::Consensus(_)) if peers::needs_go(Wanted::Etcd)? => needs.push("etcd"),
        Verb::Bench(Bench::Dataplane(_) | Bench::Interop) => {
            needs.push("tunnels");
            if peers::needs_go(Wanted::WireguardGo)? {
                needs.push("wireguard-go");
            }
        }
        _ => {}
    }
    super::print(needs.join(" "));
    Ok(0)
}

impl Verb {
    fn word(&self) -> String {
        let word = format!("{self:?}");
        word.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default().to_lowercase()
    }
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

/// Draws a picture of a lab of its own, under the usual name, since that shows; nobody's lab is removed for it.
fn draw(name: &str, args: &PictureArgs) -> std::result::Result<u8, String> {
    if let Some(lab) = Lab::load(name)? {
        let next = format!("{} down removes it; or --name for another one", lab.call());
        return Err(refusal("no picture was made", format!("lab {name} is there already"), next));
    }
    picture::run(name, args)
}

fn any_host(name: &str) -> Result<String> {
    let lab = Lab::require(name)?;
    let up = lab.hosts.iter().find(|h| host::daemon(&lab, h).is_some_and(|(_, stopped)| !stopped));
    up.map(|h| h.name.clone()).ok_or_else(|| "no daemon runs; boot one with: ./lab start n1".into())
}

fn change(name: &str, verb: Verb) -> Result<()> {
    let _lock = store::lock(name, &format!("lab {name}: {}", verb.word()))?;
    match verb {
        Verb::Up(args) => return up::up(name, &args),
        Verb::Down => return down::down(name),
        _ => {}
    }
    let mut lab = Lab::require(name)?;
    match verb {
        Verb::Kill { host } => {
            host::power_cut(&lab, up_host(&lab, &host, "was not killed")?);
        }
        Verb::Crash { host } => host::crash(&lab, up_host(&lab, &host, "was not crashed")?),
        Verb::Pause { host } => faults::pause(&lab, up_host(&lab, &host, "was not paused")?, true)?,
        Verb::Resume { host } => {
            faults::pause(&lab, up_host(&lab, &host, "was not resumed")?, false)?;
        }
        Verb::Start { host } => start(&lab, lab.host(&host)?)?,
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
            let h = up_host(&lab, &host, "was not cut")?;
            faults::cut(&lab, h, &from?, one_way)?;
        }
        Verb::Heal => faults::heal(&lab),
        Verb::Up(_)
        | Verb::Down
        | Verb::Exec { .. }
        | Verb::Bench(_)
        | Verb::Chaos(_)
        | Verb::Tutorial(_)
        | Verb::Picture(_)
        | Verb::Drain { .. }
        | Verb::Status { .. } => {}
    }
    Ok(())
}

/// Finds a host that must be up for what is to be done with it.
fn up_host<'a>(lab: &'a Lab, name: &str, not_done: &str) -> Result<&'a HostRecord> {
    let h = lab.host(name)?;
    if host::running(lab, h).is_some() {
        return Ok(h);
    }
    Err(refusal(
        format!("{name} {not_done}"),
        "the host is down",
        format!("{} start {name}", lab.call()),
    ))
}

fn start(lab: &Lab, h: &HostRecord) -> Result<()> {
    let name = &h.name;
    let refused = |why, next: String| Err(refusal(format!("{name} was not started"), why, next));
    match host::daemon(lab, h) {
        Some((_, true)) => refused("its daemon is paused", format!("{} resume {name}", lab.call())),
        Some(_) => refused("it is up and its daemon runs", format!("{} status", lab.call())),
        None => boot_member(lab, h),
    }
}

fn boot_member(lab: &Lab, h: &HostRecord) -> Result<()> {
    host::boot(lab, h)?;
    if !lab.daemons {
        return Ok(());
    }
    fleet::start_daemon(lab, h)?;
    fleet::answers(lab, h)
}

fn wipe(lab: &Lab, h: &HostRecord) -> Result<()> {
    let alive = |o: &&HostRecord| host::daemon(lab, o).is_some_and(|(_, stopped)| !stopped);
    if !lab.hosts.iter().filter(|o| o.name != h.name).any(|o| alive(&o)) {
        return Err(refusal(
            format!("{} was not wiped", h.name),
            "with an empty disk it has to join again, and no other host's daemon runs",
            format!("{} status shows what could be started; {0} down removes the lab", lab.call()),
        ));
    }
    let position = lab.hosts.iter().position(|x| x.name == h.name).unwrap_or(0);
    // The ticket first: without one the host could not come back.
    let ticket = fleet::ticket(lab, if position < lab.servers { "voter" } else { "any" })?;
    host::crash(lab, h);
    let disk = lab.host_dir(h).join("disk");
    std::fs::remove_dir_all(&disk).map_err(|e| format!("{}: {e}", disk.display()))?;
    host::boot(lab, h)?;
    let who = ["--name", &h.name, "--replaces", &h.name, "--foreground"];
    host::detach(lab, h, &[&["skein", "join", &ticket], &who[..]].concat(), fleet::LOG)
}
