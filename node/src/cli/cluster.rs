//! Commands about clusters, kubeconfigs and VIPs. Shell.

use std::path::PathBuf;
use std::time::Duration;

use api::client::ApiError;
use api::proto;
use api::status::detail;
use clap::{Args, Subcommand};
use tokio::time::{Instant, sleep};

use super::connect::request_id;
use super::output::Progress;
use super::{Global, Result, output};
use crate::files;

const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Make a cluster: the first server founds it, the others join, workers follow.
    Create {
        /// Its name.
        name: String,
        /// Control-plane nodes; three survive the loss of one.
        #[arg(long, value_delimiter = ',', required = true)]
        servers: Vec<String>,
        /// Workers.
        #[arg(long, value_delimiter = ',')]
        workers: Vec<String>,
        /// The overlay network [default: the first server's].
        #[arg(long)]
        network: Option<String>,
        /// Return at once instead of when all members work.
        #[arg(long)]
        no_wait: bool,
        /// How long to wait.
        #[arg(long, default_value = "15m", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// List clusters.
    Ls,
    /// Show one cluster with its members and what it waits for.
    Show {
        /// Its name.
        name: String,
    },
    /// Say why kubectl hangs: look from this machine at each thing on its way to the API.
    Check {
        /// Its name.
        name: String,
    },
    /// End a cluster: K3s and its data are removed from all members, the VIP is released, the machines stay.
    #[command(alias = "rm")]
    Decommission {
        /// Its name.
        name: String,
        /// Do not ask for the name again.
        #[arg(short, long)]
        yes: bool,
        /// Return at once instead of when it is gone.
        #[arg(long)]
        no_wait: bool,
        /// How long to wait.
        #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
}

pub(super) async fn run(global: &Global, command: ClusterCommand) -> Result {
    let mut client = global.clusters().await?;
    match command {
        ClusterCommand::Create { name, servers, workers, network, no_wait, timeout } => {
            if servers.len() == 2 {
                output::note("note: two servers tolerate no loss; etcd needs three for that");
            }
            let request = proto::CreateClusterRequest {
                name: name.clone(),
                network: network.unwrap_or_default(),
                servers,
                workers,
                request_id: request_id(),
            };
            let cluster = client.create(request).await?.into_inner();
            if no_wait {
                output::show(global, &cluster, || print_cluster(&cluster));
                return Ok(());
            }
            let next = format!("skein cluster show {name}; the same command waits again");
            output::unless_interrupted(&next, wait(global, &name, timeout)).await?;
        }
        ClusterCommand::Ls => {
            let request = proto::ListClustersRequest { read: global.read() };
            let list = client.list(request).await?.into_inner();
            let row = |c: &proto::Cluster| {
                vec![
                    c.name.clone(),
                    c.flavor.clone(),
                    c.status.clone(),
                    c.endpoint.clone(),
                    c.node_count.to_string(),
                    c.tolerates.to_string(),
                ]
            };
            output::show(global, &list, || {
                let rows = list.clusters.iter().map(row).collect();
                output::table(
                    &["cluster", "flavor", "status", "api endpoint", "nodes", "may lose"],
                    rows,
                    "no clusters; make one: skein cluster create NAME --servers NODE",
                );
            });
        }
        ClusterCommand::Show { name } => {
            let request = proto::GetClusterRequest { name, read: global.read() };
            let cluster = client.get(request).await?.into_inner();
            output::show(global, &cluster, || print_cluster(&cluster));
        }
        ClusterCommand::Check { name } => super::check::run(global, &name).await?,
        ClusterCommand::Decommission { name, yes, no_wait, timeout } => {
            output::confirm(
                yes,
                &name,
                &format!("cluster {name} with all that it runs and stores"),
            )?;
            client.decommission(proto::DecommissionRequest { name: name.clone() }).await?;
            if no_wait {
                output::note(format!("{name} is being decommissioned: skein cluster show {name}"));
            } else {
                let next = format!("skein cluster show {name}; the same command waits again");
                output::unless_interrupted(&next, wait_gone(global, &name, timeout)).await?;
            }
        }
    }
    Ok(())
}

/// An answer, or nothing where a quorum is missing for a moment: whoever waits for minutes goes on waiting, and is told.
fn meanwhile<T>(
    answer: std::result::Result<tonic::Response<T>, tonic::Status>,
    started: Instant,
    limit: Duration,
    progress: &mut Progress,
) -> std::result::Result<Option<T>, ApiError> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(e) if e.code() == tonic::Code::Unavailable && started.elapsed() < limit => {
            let e = ApiError::from(e);
            progress.show(&format!("{:>4} s  {}", started.elapsed().as_secs(), e.why));
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

async fn wait_gone(global: &Global, name: &str, limit: Duration) -> Result {
    let mut client = global.clusters().await?;
    let started = Instant::now();
    let mut progress = Progress::default();
    loop {
        let request = proto::ListClustersRequest { read: None };
        let Some(list) = meanwhile(client.list(request).await, started, limit, &mut progress)?
        else {
            sleep(POLL).await;
            continue;
        };
        let Some(cluster) = list.clusters.iter().find(|c| c.name == name) else {
            progress.end();
            output::note(format!(
                "cluster {name} is gone, its VIP is released, its machines are free"
            ));
            return Ok(());
        };
        let waits = cluster.waiting_for.first().cloned().unwrap_or_else(|| cluster.status.clone());
        if started.elapsed() > limit {
            let what = format!("cluster {name} is not gone yet");
            let next =
                format!("skein cluster show {name}; a lost machine: skein node rm NODE --force");
            return Err(ApiError::from(detail("timeout", what, waits, next)));
        }
        progress.show(&format!("{:>4} s  {waits}", started.elapsed().as_secs()));
        sleep(POLL).await;
    }
}

async fn wait(global: &Global, name: &str, limit: Duration) -> Result {
    let mut client = global.clusters().await?;
    let started = Instant::now();
    let mut progress = Progress::default();
    loop {
        let request = proto::GetClusterRequest { name: name.to_owned(), read: None };
        let Some(cluster) = meanwhile(client.get(request).await, started, limit, &mut progress)?
        else {
            sleep(POLL).await;
            continue;
        };
        let all_ready = cluster.servers.iter().chain(&cluster.workers).all(|m| m.status == "ready");
        if cluster.status == "active" && all_ready {
            progress.end();
            output::show(global, &cluster, || print_cluster(&cluster));
            output::note(format!("next: skein kubeconfig {name} --merge"));
            return Ok(());
        }
        let waits = cluster.waiting_for.first().cloned().unwrap_or_else(|| cluster.status.clone());
        let next = format!("skein cluster show {name}");
        if cluster.status == "error" {
            return Err(ApiError::from(detail(
                "failed",
                format!("cluster {name} was not made"),
                waits,
                next,
            )));
        }
        if started.elapsed() > limit {
            return Err(ApiError::from(detail(
                "timeout",
                format!("cluster {name} is not ready yet"),
                waits,
                next,
            )));
        }
        progress.show(&format!("{:>4} s  {waits}", started.elapsed().as_secs()));
        sleep(POLL).await;
    }
}

fn print_cluster(c: &proto::Cluster) {
    output::line(format!(
        "{}   {}   {}   {} {}   may lose {} server(s)\n",
        c.name, c.status, c.endpoint, c.flavor, c.version, c.tolerates
    ));
    let row = |m: &proto::ClusterMember| {
        vec![m.name.clone(), m.role.clone(), m.status.clone(), m.version.clone()]
    };
    let rows = c.servers.iter().chain(&c.workers).map(row).collect();
    output::table(&["node", "role", "status", "version"], rows, "no members");
    if let Some(t) = &c.etcd {
        output::line(format!("\n{}", etcd_line(t, c.servers.len())));
    }
    for wait in &c.waiting_for {
        output::line(format!("waits for {wait}"));
    }
}

/// How patient etcd is, and why.
fn etcd_line(t: &proto::EtcdTimers, servers: usize) -> String {
    let ms = |us: u32| format!("{:.1} ms", f64::from(us) / 1_000.0);
    let trip = match t.rtt_us {
        0 if servers > 1 => "round trip not measured".into(),
        0 => "one server".into(),
        us => format!("round trip {}", ms(us)),
    };
    let disk = if t.sync_us == 0 { "not measured".into() } else { ms(t.sync_us) };
    format!(
        "etcd: heartbeat {} ms, election {} ms ({trip}, durable write {disk})",
        t.heartbeat_ms, t.election_ms
    )
}

/// Options of `skein kubeconfig`.
#[derive(Debug, Args)]
pub(super) struct KubeconfigArgs {
    /// The cluster.
    cluster: String,
    /// Merge it into ~/.kube/config (or $KUBECONFIG) and make it current.
    #[arg(long)]
    merge: bool,
}

pub(super) async fn kubeconfig(global: &Global, args: KubeconfigArgs) -> Result {
    let request = proto::GetKubeconfigRequest { cluster: args.cluster.clone() };
    let answer = global.clusters().await?.get_kubeconfig(request).await?.into_inner();
    if !args.merge {
        output::show(global, &answer, || output::raw(&answer.kubeconfig));
        return Ok(());
    }
    let failed = |why: String| {
        let next = format!("write it elsewhere: skein kubeconfig {} > FILE", args.cluster);
        ApiError::from(detail("failed", "the kubeconfig was not merged", why, next))
    };
    let path =
        kubeconfig_path().ok_or_else(|| failed("neither KUBECONFIG nor HOME is set".into()))?;
    let existing = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(failed(format!("{}: {e}", path.display()))),
    };
    let addition = k3s::Secret::new(answer.kubeconfig);
    let merged = k3s::merge_kubeconfig(&existing, &addition).map_err(|e| failed(e.to_string()))?;
    let write = || -> std::io::Result<()> {
        if let Some(dir) = path.parent() {
            files::private_dir(dir)?;
        }
        files::replace(&path, merged.expose().as_bytes(), 0o600)
    };
    write().map_err(|e| failed(format!("{}: {e}", path.display())))?;
    output::note(format!(
        "{} leads to {} now (context {})",
        path.display(),
        answer.api_endpoint,
        args.cluster
    ));
    Ok(())
}

fn kubeconfig_path() -> Option<PathBuf> {
    let listed = std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty());
    let first = listed.as_deref().and_then(|v| std::env::split_paths(v).next());
    first.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".kube/config")))
}

#[derive(Debug, Subcommand)]
pub(super) enum VipCommand {
    /// List VIPs.
    Ls,
    /// Show one VIP: who holds it, who could, who did.
    Show {
        /// Its name; k3s_api_endpoint means the only one.
        name: String,
    },
    /// Move a VIP to another server.
    Move {
        /// Its name.
        name: String,
        /// The new holder [default: the best candidate].
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Only say what would happen.
        #[arg(long)]
        dry_run: bool,
    },
}

pub(super) async fn vip(global: &Global, command: VipCommand) -> Result {
    let mut client = global.vips().await?;
    match command {
        VipCommand::Ls => {
            let request = proto::ListVipsRequest { read: global.read() };
            let list = client.list(request).await?.into_inner();
            let row = |v: &proto::Vip| {
                vec![
                    v.name.clone(),
                    v.cluster.clone(),
                    v.holder.clone(),
                    v.generation.to_string(),
                    v.addresses.join(" "),
                ]
            };
            output::show(global, &list, || {
                output::table(
                    &["vip", "cluster", "holder", "generation", "addresses"],
                    list.vips.iter().map(row).collect(),
                    "no VIPs; a cluster brings its own",
                );
            });
        }
        VipCommand::Show { name } => {
            let request = proto::GetVipRequest { name, read: global.read() };
            let vip = client.get(request).await?.into_inner();
            output::show(global, &vip, || print_vip(&vip));
        }
        VipCommand::Move { name, to, dry_run } => {
            let request =
                proto::MoveVipRequest { name: name.clone(), to: to.unwrap_or_default(), dry_run };
            let vip = client.r#move(request).await?.into_inner();
            if dry_run {
                output::show(global, &vip, || {
                    output::line(format!(
                        "{} would move from {} to {}",
                        vip.name, vip.holder, vip.next
                    ));
                    print_vip(&vip);
                });
                return Ok(());
            }
            let moved = wait_moved(global, &vip).await?;
            output::show(global, &moved, || {
                output::note(format!(
                    "{} is held by {} (generation {})",
                    moved.name, moved.holder, moved.generation
                ))
            });
        }
    }
    Ok(())
}

async fn wait_moved(
    global: &Global,
    before: &proto::Vip,
) -> std::result::Result<proto::Vip, ApiError> {
    let mut client = global.vips().await?;
    let started = Instant::now();
    loop {
        let request = proto::GetVipRequest { name: before.name.clone(), read: None };
        let vip = client.get(request).await?.into_inner();
        if vip.holder == before.next || vip.generation > before.generation {
            return Ok(vip);
        }
        if started.elapsed() > Duration::from_secs(10) {
            let why = format!("{} has not said that it has the address", before.next);
            let next = format!("skein vip show {}", before.name);
            return Err(ApiError::from(detail(
                "timeout",
                format!("{} has not moved yet", before.name),
                why,
                next,
            )));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn print_vip(v: &proto::Vip) {
    output::line(format!(
        "{}   {}   held by {}   generation {}\n",
        v.name,
        v.addresses.join("  "),
        if v.holder.is_empty() { "nobody" } else { &v.holder },
        v.generation
    ));
    let row = |c: &proto::VipCandidate| {
        vec![c.node.clone(), if c.eligible { "yes" } else { "no" }.into(), c.reason.clone()]
    };
    output::table(
        &["server", "eligible", "why"],
        v.candidates.iter().map(row).collect(),
        "no servers",
    );
    if !v.history.is_empty() {
        output::line("");
        let row = |h: &proto::VipAssumption| {
            vec![h.generation.to_string(), h.holder.clone(), h.reason.clone(), output::time(h.at)]
        };
        output::table(
            &["generation", "holder", "reason", "since"],
            v.history.iter().map(row).collect(),
            "",
        );
    }
}
