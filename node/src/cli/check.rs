//! `skein cluster check`: why kubectl hangs. Looks from this machine at each thing on its way to a cluster's API.
//! Pure judgement over a shell that asks and probes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use api::client::ApiError;
use api::proto;
use api::status::detail;
use serde::Serialize;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use super::{Global, Result, output};

/// A connect that takes longer than this hangs, to whoever waits for it.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// An API that answers no simple question within this is called silent.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What was found on the way to the API; later parts are absent where an earlier one already failed.
struct Facts {
    cluster: proto::Cluster,
    holder: Option<proto::NodeStatus>,
    /// The daemon that was asked.
    here: Option<proto::NodeStatus>,
    /// Whether that daemon is this machine's own.
    local: bool,
    /// The address that packets to the endpoint leave from.
    source: std::result::Result<IpAddr, String>,
    connect: Option<std::result::Result<Duration, Refusal>>,
    answer: Option<std::result::Result<Duration, String>>,
}

/// How a connect failed.
enum Refusal {
    /// Nobody listens.
    Refused,
    /// Nobody answers.
    Silent,
    /// Something else, in words.
    Other(String),
}

/// One part of the way.
#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    ok: bool,
    detail: String,
    /// What to do where it is not.
    next: String,
}

fn fine(check: &'static str, detail: impl Into<String>) -> Check {
    Check { check, ok: true, detail: detail.into(), next: String::new() }
}

fn wrong(check: &'static str, detail: impl Into<String>, next: impl Into<String>) -> Check {
    Check { check, ok: false, detail: detail.into(), next: next.into() }
}

/// Judges the parts in the order in which a packet meets them.
fn judge(f: &Facts) -> Vec<Check> {
    let mut checks = vec![cluster(f)];
    checks.extend(f.holder.as_ref().map(holder));
    checks.extend((!f.cluster.endpoint.is_empty()).then(|| route(f)));
    checks.extend(f.connect.as_ref().map(|c| connect(f, c)));
    checks.extend(f.answer.as_ref().map(|answer| match answer {
        Ok(took) => {
            fine("api", format!("it answers as an administrator, in {} ms", took.as_millis()))
        }
        Err(why) => wrong("api", why.clone(), format!("skein cluster show {}", f.cluster.name)),
    }));
    checks
}

fn cluster(f: &Facts) -> Check {
    let c = &f.cluster;
    let waits = c.waiting_for.first().map(|w| format!(", waits for {w}")).unwrap_or_default();
    if c.endpoint.is_empty() {
        let next = format!("wait until it is active: skein cluster show {}", c.name);
        return wrong(
            "cluster",
            format!("{} has no endpoint yet: it is {}{waits}", c.name, c.status),
            next,
        );
    }
    match c.status.as_str() {
        "active" | "degraded" => fine("cluster", format!("{} is {}{waits}", c.name, c.status)),
        other => {
            let next = format!("skein cluster show {}", c.name);
            wrong("cluster", format!("{} is {other}{waits}", c.name), next)
        }
    }
}

fn holder(n: &proto::NodeStatus) -> Check {
    match n.state.as_str() {
        "down" => wrong(
            "holder",
            format!(
                "{} holds the VIP and is down, and no other server can take it: {}",
                n.name, n.waiting_for
            ),
            format!("start {}, or add servers: three survive the loss of one", n.name),
        ),
        state => fine("holder", format!("{} holds the VIP, and is {state}", n.name)),
    }
}

/// Where a cluster's API is, once that is decided.
fn address(c: &proto::Cluster) -> Option<SocketAddr> {
    c.endpoint.trim_start_matches("https://").parse().ok()
}

fn route(f: &Facts) -> Check {
    let endpoint = &f.cluster.endpoint;
    let network = &f.cluster.network;
    let ours = f
        .here
        .iter()
        .flat_map(|n| &n.overlay)
        .any(|a| f.source.as_ref().is_ok_and(|s| a.parse::<IpAddr>().is_ok_and(|a| a == *s)));
    if address(&f.cluster).is_some_and(|to| f.source.as_ref() == Ok(&to.ip())) {
        return fine("route", format!("{endpoint} is an address of this very machine"));
    }
    match (&f.source, f.local) {
        (Ok(source), true) if ours => {
            fine("route", format!("packets to {endpoint} go into the overlay, from {source}"))
        }
        (Ok(source), false) => fine(
            "route",
            format!(
                "packets to {endpoint} leave from {source}; whether that is the overlay only this machine's own daemon could say"
            ),
        ),
        (Ok(source), true) => wrong(
            "route",
            format!(
                "packets to {endpoint} leave from {source}, which is no overlay address of this machine"
            ),
            format!(
                "let this machine into the network (skein net attach {network} NODE); if it is in it, another route is in the way: ip route get ADDRESS"
            ),
        ),
        (Err(why), _) => wrong(
            "route",
            format!("there is no way to {endpoint} from here: {why}"),
            format!(
                "this machine must be a member (skein join TICKET) or a device of network {network}, and its daemon must run: skein status"
            ),
        ),
    }
}

fn connect(f: &Facts, result: &std::result::Result<Duration, Refusal>) -> Check {
    let (name, endpoint) = (&f.cluster.name, &f.cluster.endpoint);
    match result {
        Ok(took) => {
            fine("connect", format!("{endpoint} takes a connection, in {} ms", took.as_millis()))
        }
        Err(Refusal::Refused) => wrong(
            "connect",
            format!("{endpoint} is reached, but no API server listens there"),
            format!("skein cluster show {name}: is K3s up on the holder?"),
        ),
        Err(Refusal::Silent) => wrong(
            "connect",
            format!("{endpoint} does not answer within {} s", CONNECT_MAX.as_secs()),
            "the underlay between this machine and the holder does not carry WireGuard: is its UDP port open (skein net ls), and is the holder up (skein status)?",
        ),
        Err(Refusal::Other(why)) => wrong("connect", format!("{endpoint}: {why}"), "skein status"),
    }
}

/// Runs the command: all is well, or the first thing that is not is the failure.
pub(super) async fn run(global: &Global, name: &str) -> Result {
    let facts = look(global, name).await?;
    let checks = judge(&facts);
    output::show(global, &serde_json::json!({ "cluster": name, "checks": checks }), || {
        for c in &checks {
            output::line(format!(
                "{}  {:<8} {}",
                if c.ok { "ok  " } else { "FAIL" },
                c.check,
                c.detail
            ));
        }
    });
    match checks.into_iter().find(|c| !c.ok) {
        Some(c) => {
            let what = format!("the API of {name} is not reached from here");
            Err(ApiError::from(detail(
                "unreachable",
                what,
                format!("{}: {}", c.check, c.detail),
                c.next,
            )))
        }
        None => Ok(()),
    }
}

async fn look(global: &Global, name: &str) -> std::result::Result<Facts, ApiError> {
    let request = proto::GetClusterRequest { name: name.to_owned(), read: global.read() };
    let cluster = global.clusters().await?.get(request).await?.into_inner();
    let status = global.fleet().await?.get_status(proto::GetStatusRequest {}).await?.into_inner();
    let node = |name: &str| status.nodes.iter().find(|n| n.name == name).cloned();
    let vip = status.vips.iter().find(|v| v.name == cluster.vip);
    let mut facts = Facts {
        holder: vip.and_then(|v| node(&v.holder)),
        here: node(&status.served_by),
        local: global.context.is_none(),
        source: Err("the cluster has no endpoint yet".into()),
        connect: None,
        answer: None,
        cluster,
    };
    let Some(address) = address(&facts.cluster) else { return Ok(facts) };
    facts.source = source(address).await;
    if facts.source.is_err() {
        return Ok(facts);
    }
    let connected = connects(address).await;
    let answers = connected.is_ok();
    facts.connect = Some(connected);
    if answers {
        facts.answer = Some(answer(global, name).await?);
    }
    Ok(facts)
}

/// Asks the kernel which address packets would leave from; nothing is sent.
async fn source(to: SocketAddr) -> std::result::Result<IpAddr, String> {
    let any: SocketAddr = if to.is_ipv6() { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let socket = UdpSocket::bind(any).await.map_err(|e| e.to_string())?;
    socket.connect(to).await.map_err(|e| e.to_string())?;
    socket.local_addr().map(|a| a.ip()).map_err(|e| e.to_string())
}

async fn connects(to: SocketAddr) -> std::result::Result<Duration, Refusal> {
    let began = Instant::now();
    match timeout(CONNECT_MAX, TcpStream::connect(to)).await {
        Ok(Ok(_)) => Ok(began.elapsed()),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => Err(Refusal::Refused),
        Ok(Err(e)) => Err(Refusal::Other(e.to_string())),
        Err(_) => Err(Refusal::Silent),
    }
}

/// Asks the API with the cluster's own kubeconfig.
async fn answer(
    global: &Global,
    name: &str,
) -> std::result::Result<std::result::Result<Duration, String>, ApiError> {
    let request = proto::GetKubeconfigRequest { cluster: name.to_owned() };
    let config = global.clusters().await?.get_kubeconfig(request).await?.into_inner();
    let began = Instant::now();
    let kube = k3s::Kube::with_deadline(&k3s::Secret::new(config.kubeconfig), None, ANSWER_MAX);
    let asked = match kube {
        Ok(kube) => kube.readyz().await,
        Err(e) => Err(e),
    };
    Ok(asked.map(|()| began.elapsed()).map_err(|e| e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, state: &str, overlay: &str) -> proto::NodeStatus {
        let (name, state) = (name.to_owned(), state.to_owned());
        proto::NodeStatus {
            name,
            state,
            overlay: vec![overlay.into()],
            ..proto::NodeStatus::default()
        }
    }

    fn well() -> Facts {
        Facts {
            cluster: proto::Cluster {
                name: "lab".into(),
                status: "active".into(),
                endpoint: "https://10.90.15.240:6443".into(),
                network: "default".into(),
                ..proto::Cluster::default()
            },
            holder: Some(node("n1", "ready", "10.90.0.1")),
            here: Some(node("n4", "ready", "10.90.0.4")),
            local: true,
            source: Ok([10, 90, 0, 4].into()),
            connect: Some(Ok(Duration::from_millis(3))),
            answer: Some(Ok(Duration::from_millis(12))),
        }
    }

    fn failing(change: impl FnOnce(&mut Facts)) -> (&'static str, String, String) {
        let mut facts = well();
        change(&mut facts);
        let bad: Vec<Check> = judge(&facts).into_iter().filter(|c| !c.ok).collect();
        assert_eq!(bad.len(), 1, "{bad:?}");
        let c = bad.into_iter().next().unwrap();
        assert!(!c.next.is_empty());
        (c.check, c.detail, c.next)
    }

    #[test]
    fn each_part_of_the_way_is_told_apart() {
        assert!(judge(&well()).iter().all(|c| c.ok));
        let (check, why, _) = failing(|f| f.cluster.status = "bootstrapping".into());
        assert!(check == "cluster" && why.contains("bootstrapping"), "{why}");
        let (check, _, next) = failing(|f| f.holder = Some(node("n1", "down", "")));
        assert!(check == "holder" && next.contains("n1"), "{next}");
        let (check, why, next) = failing(|f| f.source = Ok([192, 0, 2, 7].into()));
        assert!(check == "route" && why.contains("192.0.2.7") && next.contains("attach"), "{why}");
        let (check, _, next) = failing(|f| {
            f.source = Err("Network is unreachable".into());
            (f.connect, f.answer) = (None, None);
        });
        assert!(check == "route" && next.contains("skein join"), "{next}");
        let (check, why, _) =
            failing(|f| (f.connect, f.answer) = (Some(Err(Refusal::Refused)), None));
        assert!(check == "connect" && why.contains("no API server listens"), "{why}");
        let (check, _, next) =
            failing(|f| (f.connect, f.answer) = (Some(Err(Refusal::Silent)), None));
        assert!(check == "connect" && next.contains("UDP"), "{next}");
        let (check, why, _) = failing(|f| f.answer = Some(Err("/readyz: 500".into())));
        assert!(check == "api" && why.contains("500"), "{why}");
    }

    #[test]
    fn the_holder_itself_and_a_cluster_without_an_endpoint_are_told_right() {
        let mut facts = well();
        facts.source = Ok([10, 90, 15, 240].into());
        assert!(judge(&facts).iter().all(|c| c.ok), "the kernel answers with the VIP itself");
        facts.cluster.endpoint = String::new();
        (facts.source, facts.connect, facts.answer) = (Err("none".into()), None, None);
        let checks = judge(&facts);
        assert!(!checks[0].ok && checks.iter().all(|c| c.check != "route"), "{checks:?}");
    }

    #[test]
    fn a_remote_daemon_cannot_judge_this_machines_routes() {
        let mut facts = well();
        (facts.local, facts.source) = (false, Ok([192, 0, 2, 7].into()));
        assert!(judge(&facts).iter().all(|c| c.ok));
    }
}
