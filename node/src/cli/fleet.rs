//! Commands about the fleet: status, tickets, networks, devices, events, operators. Shell.

use api::client::{ApiError, ContextFile};
use api::pki::{make_csr, make_key};
use api::proto;
use api::status::detail;
use clap::{Args, Subcommand};

use super::connect::request_id;
use super::{Format, Global, Result, output};

#[derive(Debug, Subcommand)]
pub(super) enum TicketCommand {
    /// Make a ticket; prints the line to run on the machine that joins.
    Create {
        /// voter: preferred when voters are chosen. any: only when no preferred one is left.
        #[arg(long, default_value = "any", value_parser = ["voter", "any"])]
        role: String,
        /// The network to enter [default: the only one, or `default`].
        #[arg(long)]
        network: Option<String>,
        /// How long it is good.
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        expires: std::time::Duration,
        /// How many machines it admits.
        #[arg(long, default_value = "1")]
        uses: u32,
        /// Print the ticket only.
        #[arg(short, long)]
        quiet: bool,
    },
    /// List tickets.
    Ls,
    /// Withdraw a ticket.
    Revoke {
        /// Its number, as `ls` shows it.
        id: u64,
    },
}

pub(super) async fn ticket(global: &Global, command: TicketCommand) -> Result {
    let mut client = global.fleet().await?;
    match command {
        TicketCommand::Create { role, network, expires, uses, quiet } => {
            let request = proto::CreateTicketRequest {
                role,
                network: network.unwrap_or_default(),
                expires_s: expires.as_secs(),
                uses,
                request_id: request_id(),
            };
            let made = client.create_ticket(request).await?.into_inner();
            if quiet {
                output::line(&made.ticket);
                return Ok(());
            }
            output::show(global, &made, || {
                output::line(format!("skein join {}", made.ticket));
                output::note(format!(
                    "run this line as root on the new machine, before {}",
                    output::time(made.expires_at)
                ));
            });
        }
        TicketCommand::Ls => {
            let request = proto::ListTicketsRequest { read: global.read() };
            let list = client.list_tickets(request).await?.into_inner();
            let row = |t: &proto::Ticket| {
                let uses = format!("{}/{}", t.uses_left, t.uses);
                vec![
                    t.id.to_string(),
                    t.standing.clone(),
                    t.role.clone(),
                    t.network.clone(),
                    uses,
                    output::time(t.expires_at),
                    t.by.clone(),
                ]
            };
            output::show(global, &list, || {
                let rows = list.tickets.iter().map(row).collect();
                output::table(
                    &["id", "standing", "role", "network", "uses left", "expires", "made by"],
                    rows,
                    "no tickets; make one: skein ticket create",
                );
            });
        }
        TicketCommand::Revoke { id } => {
            client.revoke_ticket(proto::RevokeTicketRequest { id }).await?;
            output::note(format!("ticket {id} is revoked"));
        }
    }
    Ok(())
}

pub(super) async fn status(global: &Global) -> Result {
    let status = global.fleet().await?.get_status(proto::GetStatusRequest {}).await?.into_inner();
    output::show(global, &status, || print_status(&status));
    Ok(())
}

fn print_status(s: &proto::Status) {
    let quorum = if s.quorum { "quorum" } else { "NO QUORUM" };
    let leader = if s.leader.is_empty() { "none" } else { &s.leader };
    output::line(format!(
        "{quorum}   leader {leader}   term {}   applied {}   voters {}   served by {}\n",
        s.term,
        s.applied,
        s.voters.join(","),
        s.served_by
    ));
    let node = |n: &proto::NodeStatus| {
        vec![
            n.name.clone(),
            n.state.clone(),
            n.role.clone(),
            n.cluster.clone(),
            n.raft.clone(),
            n.overlay.join(" "),
            n.waiting_for.clone(),
        ]
    };
    output::table(
        &["node", "state", "role", "cluster", "raft", "overlay", "waits for"],
        s.nodes.iter().map(node).collect(),
        "no nodes",
    );
    if !s.clusters.is_empty() {
        output::line("");
        let cluster = |c: &proto::ClusterStatus| {
            let servers = format!("{}/{}", c.servers_ready, c.servers);
            let workers = format!("{}/{}", c.workers_ready, c.workers);
            let lose = if c.servers < 3 {
                format!("{} (not HA: 3 servers are)", c.tolerates)
            } else {
                c.tolerates.to_string()
            };
            vec![c.name.clone(), c.status.clone(), servers, workers, lose]
        };
        output::table(
            &["cluster", "status", "servers", "workers", "may lose"],
            s.clusters.iter().map(cluster).collect(),
            "",
        );
        output::line("");
        let vip = |v: &proto::VipStatus| {
            vec![v.name.clone(), v.holder.clone(), v.generation.to_string(), v.addresses.join(" ")]
        };
        output::table(
            &["vip", "holder", "generation", "addresses"],
            s.vips.iter().map(vip).collect(),
            "",
        );
    }
    output::line("");
    if s.healthy {
        output::line("healthy");
    }
    for problem in s.problems.iter().take(5) {
        output::line(format!("! {problem}"));
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum NetCommand {
    /// Make a network.
    Create {
        /// Its name.
        name: String,
        /// Its slice of the fleet's IPv4 pool [default: a free one].
        #[arg(long, value_name = "CIDR")]
        ipv4: Option<String>,
        /// The tunnel's MTU in bytes [default: 1420].
        #[arg(long)]
        mtu: Option<u32>,
    },
    /// List networks.
    Ls,
    /// Show one network with its members.
    Show {
        /// Its name.
        name: String,
    },
    /// Let a node into a network.
    Attach {
        /// The network.
        network: String,
        /// The node.
        node: String,
    },
}

pub(super) async fn net(global: &Global, command: NetCommand) -> Result {
    let mut client = global.networks().await?;
    match command {
        NetCommand::Create { name, ipv4, mtu } => {
            let ipv4 = ipv4.unwrap_or_default();
            let request = proto::CreateNetworkRequest { name, ipv4, mtu: mtu.unwrap_or(0) };
            let net = client.create(request).await?.into_inner();
            output::show(global, &net, || print_network(&net));
        }
        NetCommand::Ls => {
            let request = proto::ListNetworksRequest { read: global.read() };
            let list = client.list(request).await?.into_inner();
            let row = |n: &proto::Network| {
                vec![
                    n.name.clone(),
                    n.ipv6.clone(),
                    n.ipv4.clone(),
                    n.port.to_string(),
                    n.interface.clone(),
                    n.members.len().to_string(),
                ]
            };
            output::show(global, &list, || {
                output::table(
                    &["network", "ipv6", "ipv4", "udp", "device", "members"],
                    list.networks.iter().map(row).collect(),
                    "no networks",
                );
            });
        }
        NetCommand::Show { name } => {
            let request = proto::GetNetworkRequest { name, read: global.read() };
            let net = client.get(request).await?.into_inner();
            output::show(global, &net, || print_network(&net));
        }
        NetCommand::Attach { network, node } => {
            client
                .attach(proto::AttachRequest { network: network.clone(), node: node.clone() })
                .await?;
            output::note(format!("{node} is in network {network}"));
        }
    }
    Ok(())
}

fn print_network(n: &proto::Network) {
    output::line(format!(
        "{}   {}   {}   UDP {}   MTU {}   device {}\n",
        n.name, n.ipv6, n.ipv4, n.port, n.mtu, n.interface
    ));
    let row = |m: &proto::NetworkMember| {
        vec![m.name.clone(), m.kind.clone(), m.addresses.join(" "), m.public_key.clone()]
    };
    output::table(
        &["member", "kind", "addresses", "key"],
        n.members.iter().map(row).collect(),
        "no members",
    );
}

/// Options of `skein events`.
#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Only kinds that begin so, such as system.k3s.
    #[arg(long, default_value = "", value_name = "KIND")]
    prefix: String,
    /// At most so many.
    #[arg(long, default_value = "50")]
    limit: u32,
    /// Go on with what happens from now on.
    #[arg(long)]
    watch: bool,
}

pub(super) async fn events(global: &Global, args: EventsArgs) -> Result {
    let mut client = global.fleet().await?;
    let request = proto::ListEventsRequest {
        kind_prefix: args.prefix.clone(),
        limit: args.limit,
        read: global.read(),
    };
    let list = client.list_events(request).await?.into_inner();
    let mut last = 0;
    for event in list.events.iter().rev() {
        last = last.max(event.index);
        print_event(global, event);
    }
    if args.watch {
        let request = proto::WatchEventsRequest { kind_prefix: args.prefix, after: last };
        let mut stream = client.watch_events(request).await?.into_inner();
        while let Some(event) = stream.message().await? {
            print_event(global, &event);
        }
    }
    Ok(())
}

fn print_event(global: &Global, e: &proto::Event) {
    let payload: serde_json::Value = serde_json::from_str(&e.payload).unwrap_or_default();
    if global.output == Format::Json {
        let value = serde_json::json!({
            "index": e.index, "at": e.at, "kind": e.kind, "severity": e.severity,
            "node": e.node, "cluster": e.cluster, "payload": payload,
        });
        output::line(value);
        return;
    }
    let facts = payload.as_object().into_iter().flatten();
    let facts: Vec<String> = facts
        .map(|(k, v)| format!("{k}={}", v.as_str().map_or_else(|| v.to_string(), str::to_owned)))
        .collect();
    output::line(format!(
        "{}  {:<8} {:<48} {}",
        output::time(e.at),
        e.severity,
        e.kind,
        facts.join(" ")
    ));
}

#[derive(Debug, Subcommand)]
pub(super) enum EndpointCommand {
    /// Add an address to try, for a fleet whose addresses all changed.
    Add {
        /// host:port of a member's API, as 10.0.0.1:7443.
        address: String,
    },
}

pub(super) async fn endpoint(global: &Global, command: EndpointCommand) -> Result {
    let EndpointCommand::Add { address } = command;
    let request = proto::AddEndpointRequest { address: address.clone() };
    global.fleet().await?.add_endpoint(request).await?;
    output::note(format!("{address} will be tried"));
    Ok(())
}

#[derive(Debug, Subcommand)]
pub(super) enum OperatorCommand {
    /// Admit an operator and print a context file for a workstation.
    Add {
        /// The operator's name.
        name: String,
    },
    /// List operators.
    Ls,
    /// Void an operator's certificate.
    Rm {
        /// The operator's name.
        name: String,
    },
}

pub(super) async fn operator(global: &Global, command: OperatorCommand) -> Result {
    let mut client = global.fleet().await?;
    match command {
        OperatorCommand::Add { name } => {
            let failed = |why: String| {
                ApiError::from(detail(
                    "failed",
                    "no operator was admitted",
                    why,
                    "run the command again",
                ))
            };
            // The key is made here and shown once; the fleet sees the request alone.
            let key = make_key().map_err(|e| failed(e.to_string()))?;
            let csr_pem = make_csr(&key).map_err(|e| failed(e.to_string()))?;
            let request = proto::AdmitOperatorRequest { name: name.clone(), csr_pem };
            let answer = client.admit_operator(request).await?.into_inner();
            let context = ContextFile {
                schema: 1,
                fleet: answer.fleet_id.parse().map_err(|e| failed(format!("{e}")))?,
                endpoints: answer.endpoints.iter().filter_map(|e| e.parse().ok()).collect(),
                certificate: answer.certificate_pem,
                key: key.to_string(),
                authority: answer.ca_pem,
            };
            output::line(
                serde_json::to_string_pretty(&context).map_err(|e| failed(e.to_string()))?,
            );
            output::note(format!(
                "keep this file secret (chmod 600); use it with: skein --context FILE status   (operator {name})"
            ));
        }
        OperatorCommand::Ls => {
            let request = proto::ListOperatorsRequest { read: global.read() };
            let list = client.list_operators(request).await?.into_inner();
            let row = |o: &proto::Operator| vec![o.name.clone(), output::time(o.admitted_at)];
            output::show(global, &list, || {
                output::table(
                    &["operator", "since"],
                    list.operators.iter().map(row).collect(),
                    "no operators; admit one: skein operator add NAME",
                );
            });
        }
        OperatorCommand::Rm { name } => {
            client.remove_operator(proto::RemoveOperatorRequest { name: name.clone() }).await?;
            output::note(format!("operator {name} is removed"));
        }
    }
    Ok(())
}
