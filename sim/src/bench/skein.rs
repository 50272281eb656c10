//! Skein's trials: what is done to a lab, and when it has settled again. Shell.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use super::PORT;
use super::lab::{Lab, wait};
use super::plant::Plant;
use super::record::Clock;
use super::trial::{Case, Notes, Trial, sum_up};
use super::watch::Watch;

const SERVERS: usize = 3;
/// Two that vote beside the servers, so that a server and the leader may go together, and the client.
const WORKERS: usize = 3;
const SETTLED_MAX: Duration = Duration::from_secs(420);
const VIP: &str = "k3s_api_endpoint";
/// Where the client keeps what it writes to Kubernetes with.
const KUBECONFIG: &str = "/run/bench.kubeconfig";
/// How long a leader is stopped to lose its place, at most.
const ELECTION_MAX: Duration = Duration::from_secs(15);
/// How often the leadership is moved on until it lies where a case wants it.
const ARRANGEMENTS: u32 = 25;

/// A fleet to break.
pub(super) struct Fleet {
    lab: Lab,
    hosts: Vec<String>,
    client: String,
    endpoint: SocketAddr,
    version: String,
    writes: bool,
    plant: bool,
}

/// Who is who right now.
struct Standing {
    holder: String,
    leader: String,
    generation: u64,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default()
}

impl Fleet {
    /// Makes a lab with responders on its servers.
    pub(super) fn up(name: &str, k3s: &str, plant: bool) -> Result<Self, String> {
        let (servers, workers) = (SERVERS.to_string(), WORKERS.to_string());
        let options = ["--servers", &servers, "--workers", &workers, "--k3s", k3s];
        let lab = Lab::up(name, &options)?;
        let hosts: Vec<String> = (1..=SERVERS + WORKERS).map(|i| format!("n{i}")).collect();
        let status = lab.ask(&hosts[0], &["status"])?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        // The one without a vote: it never leads, so that no case has to strike the client.
        let learner = nodes.iter().find(|n| n["raft"] == "learner").map(|n| text(&n["name"]));
        let client = learner
            .filter(|l| hosts[SERVERS..].contains(l))
            .unwrap_or_else(|| hosts[SERVERS + WORKERS - 1].clone());
        for host in &hosts[..SERVERS] {
            lab.respond(host)?;
        }
        let cluster = lab.ask(&client, &["cluster", "show", "lab"])?;
        let url = text(&cluster["endpoint"]);
        let endpoint = url.trim_start_matches("https://").parse();
        let endpoint = endpoint.map_err(|e| format!("the cluster's endpoint {url:?}: {e}"))?;
        // Only the rehearsal says so in its version; it takes no writes.
        let version = text(&cluster["version"]);
        let writes = !version.contains("rehearsal");
        if writes {
            let line = format!("umask 077; skein kubeconfig lab >{KUBECONFIG}");
            lab.run(&client, &["sh", "-c", &line])?;
        }
        Ok(Self { lab, hosts, client, endpoint, version, writes, plant })
    }

    /// What runs as K3s.
    pub(super) fn version(&self) -> String {
        self.version.clone()
    }

    fn clocks(&self) -> Vec<Clock> {
        Clock::ALL.into_iter().filter(|c| self.writes || *c != Clock::Write).collect()
    }

    fn servers(&self) -> &[String] {
        &self.hosts[..SERVERS]
    }

    fn standing(&self, from: &str) -> Result<Standing, String> {
        let status = self.lab.ask(from, &["status"])?;
        let vip = &status["vips"][0];
        Ok(Standing {
            holder: text(&vip["holder"]),
            leader: text(&status["leader"]),
            generation: number(&vip["generation"]),
        })
    }

    /// Waits until every node is ready, the fleet has a quorum and the cluster waits for nothing.
    pub(super) fn settled(&self) -> Result<(), String> {
        wait("the lab to settle", SETTLED_MAX, || {
            let status = self.lab.ask(&self.client, &["status"])?;
            let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
            let ready = nodes.iter().filter(|n| n["state"] == "ready").count();
            if ready != self.hosts.len() || nodes.len() != ready || status["healthy"] != true {
                return Err(format!("{ready} of {} nodes are ready", self.hosts.len()));
            }
            let cluster = self.lab.ask(&self.client, &["cluster", "show", "lab"])?;
            let list = |key: &str| cluster[key].as_array().cloned().unwrap_or_default();
            let ready =
                list("servers").iter().chain(&list("workers")).all(|m| m["status"] == "ready");
            let calm = list("waiting_for").is_empty() && cluster["status"] == "active";
            if calm && ready { Ok(()) } else { Err(format!("the cluster waits: {cluster}")) }
        })
    }

    /// Brings leader and holder where the case wants them: never one host, since that would be another case.
    fn arrange(&self, case: Case) -> Result<Standing, String> {
        for _ in 0..ARRANGEMENTS {
            let standing = self.standing(&self.client)?;
            let Standing { holder, leader, .. } = &standing;
            let leads_apart = !self.servers().contains(leader) && *leader != self.client;
            if case == Case::HolderAndLeader && !leads_apart {
                // Two servers at once would take etcd's quorum along, which is no case of the VIP.
                self.unseat(leader)?;
            } else if holder == leader {
                let other =
                    self.servers().iter().find(|s| *s != leader).ok_or("one server only")?;
                self.lab.run(&self.client, &["skein", "vip", "move", VIP, "--to", other])?;
            } else {
                return Ok(standing);
            }
            self.settled()?;
        }
        Err(format!("leader and holder did not come to lie as {} wants them", case.title()))
    }

    /// Stops the leader until another one leads.
    fn unseat(&self, leader: &str) -> Result<(), String> {
        let from = self.hosts.iter().find(|h| *h != leader).ok_or("one host only")?;
        self.lab.verb(&["pause", leader])?;
        let other = wait("another leader", ELECTION_MAX, || {
            let now = self.standing(from)?.leader;
            if now.is_empty() || now == leader { Err("none yet".into()) } else { Ok(()) }
        });
        self.lab.verb(&["resume", leader])?;
        other
    }

    fn strike(&self, case: Case, standing: &Standing) -> Result<(), String> {
        let holder = standing.holder.as_str();
        match case {
            Case::Drain => {
                let drain = ["skein", "drain", holder, "--stop", "--timeout", "60s"];
                self.lab.run(&self.client, &drain).map(drop)
            }
            Case::Kill => self.lab.verb(&["kill", holder]).map(drop),
            Case::Crash => self.lab.verb(&["crash", holder]).map(drop),
            Case::HolderAndLeader => {
                self.lab.together(&[["kill", holder], ["kill", &standing.leader]])
            }
            Case::Pause => self.lab.verb(&["pause", holder]).map(drop),
            Case::Cut => self.lab.verb(&["cut", holder]).map(drop),
        }
    }

    fn undo(&self, case: Case, standing: &Standing) -> Result<(), String> {
        let holder = standing.holder.as_str();
        match case {
            Case::Drain => self.lab.run(&self.client, &["skein", "undrain", holder]).map(drop),
            Case::Kill | Case::Crash => {
                self.lab.verb(&["start", holder])?;
                self.lab.respond(holder)
            }
            Case::HolderAndLeader => {
                self.lab.verb(&["start", &standing.leader])?;
                self.lab.verb(&["start", holder])?;
                self.lab.respond(holder)
            }
            Case::Pause => self.lab.verb(&["resume", holder]).map(drop),
            Case::Cut => self.lab.verb(&["heal"]).map(drop),
        }
    }

    fn observe(&self) -> Result<Watch, String> {
        let mut args = vec![SocketAddr::new(self.endpoint.ip(), PORT).to_string()];
        args.extend(["--tls".into(), self.endpoint.to_string()]);
        if self.writes {
            args.extend(["--write".into(), KUBECONFIG.into()]);
        }
        Watch::start(&self.lab, &self.client, &args)
    }

    /// The holders from a generation on.
    fn holders_since(&self, generation: u64) -> Result<Vec<String>, String> {
        let vip = self.lab.ask(&self.client, &["vip", "show", VIP])?;
        let history = vip["history"].as_array().cloned().unwrap_or_default();
        let since = history.iter().filter(|h| number(&h["generation"]) >= generation);
        Ok(since.map(|h| text(&h["holder"])).collect())
    }

    /// Runs one trial, and leaves the lab as it was before.
    pub(super) fn trial(&self, case: Case, number: u32) -> Result<Trial, String> {
        let second = Duration::from_secs(1);
        let clocks = self.clocks();
        self.settled()?;
        let standing = self.arrange(case)?;
        let mut watch = self.observe()?;
        watch.until_calm(&clocks, (second / 2, second / 2, second * 30))?;
        watch.mark("fault")?;
        self.strike(case, &standing)?;
        watch.mark("done")?;
        // What is not answered by then is a figure, too.
        let most = if self.writes { second * 90 } else { second * 20 };
        let _ = watch.until_calm(&clocks, (second * 5 / 2, second, most));
        if self.plant {
            self.plant()?.answer_in_turns()?;
        }
        watch.mark("undo")?;
        self.undo(case, &standing)?;
        self.settled()?;
        let _ = watch.until_calm(&clocks, (second / 4, second / 4, second * 20));
        watch.mark("end")?;
        let record = watch.end()?;
        let holders = self.holders_since(standing.generation)?;
        sum_up(&record, Notes { number, holders, leader: standing.leader })
    }

    /// A second host with the VIP's address, around the overlay, whose receivers would drop its packets.
    fn plant(&self) -> Result<Plant<'_>, String> {
        let holder = self.standing(&self.client)?.holder;
        let second = self.servers().iter().find(|s| **s != holder).ok_or("one server only")?;
        let address: IpAddr = self.endpoint.ip();
        Plant::new(&self.lab, second, &self.client, address)
    }
}
