//! Commands about nodes: roles, drains, removal. Shell.

use std::time::Duration;

use api::client::{ApiError, connect_local};
use api::proto;
use api::proto::fleet_client::FleetClient;
use api::proto::nodes_client::NodesClient;
use api::status::detail;
use clap::{Args, Subcommand};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::connect::request_id;
use super::output::Progress;
use super::{Global, Result, output};

const POLL: Duration = Duration::from_millis(250);

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// List nodes.
    Ls,
    /// Show one node with everything it waits for.
    Show {
        /// The node.
        node: String,
    },
    /// Remove a node from the fleet for good.
    Rm {
        /// The node.
        node: String,
        /// Also if it has a role still: for machines that are lost.
        #[arg(long)]
        force: bool,
    },
    /// Take a node out of the fleet, its role first: VIPs move, K3s is removed, its identity ends.
    Terminate {
        /// The node.
        node: String,
        /// Do not ask for the name again.
        #[arg(short, long)]
        yes: bool,
        /// Return at once instead of when it is out.
        #[arg(long)]
        no_wait: bool,
        /// How long to wait.
        #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Take this very machine out of the fleet.
    Leave {
        /// Also if it has a role still.
        #[arg(long)]
        force: bool,
    },
    /// Give a node a role; its daemon does the rest.
    Assign {
        /// The node.
        node: String,
        /// k3s-server or k3s-agent.
        role: String,
        /// The cluster; a server's unknown one is created.
        #[arg(long)]
        cluster: Option<String>,
    },
    /// Take a node's role away; its daemon removes K3s.
    Unassign {
        /// The node.
        node: String,
        /// Also where a guard says no.
        #[arg(long)]
        force: bool,
    },
}

pub(super) async fn run(global: &Global, command: NodeCommand) -> Result {
    let mut client = global.nodes().await?;
    match command {
        NodeCommand::Ls => {
            let request = proto::ListNodesRequest { read: global.read() };
            let list = client.list(request).await?.into_inner();
            let row = |n: &proto::NodeStatus| {
                vec![
                    n.name.clone(),
                    n.state.clone(),
                    n.role.clone(),
                    n.cluster.clone(),
                    n.raft.clone(),
                    n.overlay.join(" "),
                ]
            };
            output::show(global, &list, || {
                output::table(
                    &["node", "state", "role", "cluster", "raft", "overlay"],
                    list.nodes.iter().map(row).collect(),
                    "no nodes",
                );
            });
        }
        NodeCommand::Show { node } => {
            let request = proto::GetNodeRequest { name: node, read: global.read() };
            let node = client.get(request).await?.into_inner();
            output::show(global, &node, || print_node(&node));
        }
        NodeCommand::Rm { node, force } => {
            client.remove(proto::RemoveNodeRequest { name: node.clone(), force }).await?;
            output::note(format!("{node} is removed; its identity stays refused"));
        }
        NodeCommand::Terminate { node, yes, no_wait, timeout } => {
            output::confirm(yes, &node, &format!("node {node} from the fleet, and its K3s"))?;
            client.terminate(proto::TerminateNodeRequest { name: node.clone() }).await?;
            if no_wait {
                output::note(format!("{node} is being terminated: skein node show {node}"));
            } else {
                let next = format!("skein node show {node}; the same command waits again");
                output::unless_interrupted(&next, wait_out(global, &node, timeout)).await?;
            }
        }
        NodeCommand::Leave { force } => leave(global, force).await?,
        NodeCommand::Assign { node, role, cluster } => {
            let request = proto::AssignRoleRequest {
                node: node.clone(),
                role: role.clone(),
                cluster: cluster.unwrap_or_default(),
                request_id: request_id(),
            };
            client.assign_role(request).await?;
            output::note(format!(
                "{node} is to be a {role}; follow it with: skein node show {node}"
            ));
        }
        NodeCommand::Unassign { node, force } => {
            client.unassign_role(proto::UnassignRoleRequest { node: node.clone(), force }).await?;
            output::note(format!(
                "{node} gives up its role; follow it with: skein node show {node}"
            ));
        }
    }
    Ok(())
}

async fn wait_out(global: &Global, name: &str, limit: Duration) -> Result {
    let mut client = global.nodes().await?;
    let until = Instant::now() + limit;
    let mut progress = Progress::default();
    loop {
        let list = client.list(proto::ListNodesRequest { read: None }).await?.into_inner();
        let Some(node) = list.nodes.iter().find(|n| n.name == name) else {
            progress.end();
            output::note(format!("{name} is out of the fleet; its identity stays refused"));
            return Ok(());
        };
        if Instant::now() > until {
            let what = format!("{name} is not out yet");
            let next =
                format!("skein node show {name}; a lost machine: skein node rm {name} --force");
            return Err(ApiError::from(detail("timeout", what, node.waiting_for.clone(), next)));
        }
        progress.show(&format!("{name}: {}", node.waiting_for));
        sleep(POLL).await;
    }
}

async fn leave(global: &Global, force: bool) -> Result {
    // Always the daemon of this machine: a context would name the node that happens to answer.
    let channel = connect_local(&global.socket).await?;
    let mut fleet = FleetClient::new(channel.clone());
    let name = fleet.get_status(proto::GetStatusRequest {}).await?.into_inner().served_by;
    let mut client = NodesClient::new(channel);
    client.remove(proto::RemoveNodeRequest { name: name.clone(), force }).await?;
    output::note(format!(
        "{name} has left; stop the daemon (systemctl disable --now skein) and empty /var/lib/skein"
    ));
    Ok(())
}

fn print_node(n: &proto::Node) {
    let rows = [
        ("state", n.state.clone()),
        ("role", n.role.clone()),
        ("cluster", n.cluster.clone()),
        ("phase", n.phase.clone()),
        ("drain", n.drain.clone()),
        ("version", n.version.clone()),
        ("overlay", n.overlay.join(" ")),
        ("endpoints", n.endpoints.join(" ")),
        ("pods", n.pod_cidrs.join(" ")),
        ("raft", n.raft.clone()),
        ("skein", n.skein_version.clone()),
        ("uuid", n.uuid.clone()),
    ];
    output::line(&n.name);
    for (key, value) in rows.iter().filter(|(_, v)| !v.is_empty()) {
        output::line(format!("  {key:<10} {value}"));
    }
    for wait in &n.waiting_for {
        output::line(format!("  waits for  {wait}"));
    }
}

/// Options of `skein drain`.
#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// The node.
    node: String,
    /// Stop K3s at the end.
    #[arg(long)]
    stop: bool,
    /// How long eviction may take.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Also if the API would be gone or etcd would lose its quorum.
    #[arg(long)]
    force: bool,
    /// Return at once instead of when it is done.
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn drain(global: &Global, args: DrainArgs) -> Result {
    let mut client = global.nodes().await?;
    let request = proto::DrainRequest {
        node: args.node.clone(),
        stop: args.stop,
        timeout_s: args.timeout.as_secs(),
        force: args.force,
    };
    client.drain(request).await?;
    if args.no_wait {
        output::note(format!(
            "{} is being drained; follow it with: skein node show {}",
            args.node, args.node
        ));
        return Ok(());
    }
    let limit = args.timeout + Duration::from_secs(60);
    let next = format!("skein node show {}; the same command waits again", args.node);
    output::unless_interrupted(&next, wait_drained(client, &args.node, limit)).await
}

async fn wait_drained(mut client: NodesClient<Channel>, name: &str, limit: Duration) -> Result {
    let until = Instant::now() + limit;
    let mut progress = Progress::default();
    loop {
        let request = proto::GetNodeRequest { name: name.to_owned(), read: None };
        let node = client.get(request).await?.into_inner();
        if node.drain == "done" {
            break;
        }
        let waits = node.waiting_for.first().cloned().unwrap_or_default();
        if Instant::now() > until {
            let next = format!("skein node show {}", name);
            return Err(ApiError::from(detail(
                "timeout",
                format!("{} is not drained yet", name),
                waits,
                next,
            )));
        }
        progress.show(&format!("{}: {waits}", name));
        sleep(POLL).await;
    }
    progress.end();
    output::note(format!("{} is drained; to take it back: skein undrain {}", name, name));
    Ok(())
}

pub(super) async fn undrain(global: &Global, node: String) -> Result {
    global.nodes().await?.undrain(proto::UndrainRequest { node: node.clone() }).await?;
    output::note(format!("{node} is back in service; VIPs stay where they are"));
    Ok(())
}
