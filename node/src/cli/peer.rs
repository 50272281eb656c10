//! Peers of overlays: list, admit, remove, ping, and what passes between them. Shell.

use std::io::Write;
use std::time::Duration;

use api::client::ApiError;
use api::proto;
use api::status::detail;
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Format, Global, Result, output};

#[derive(Debug, Subcommand)]
pub(super) enum PeerCommand {
    /// List the peers of this node's overlays: where each is reached, how far away it is, what gets lost.
    Ls {
        /// This network only.
        #[arg(long)]
        network: Option<String>,
    },
    /// Admit a plain WireGuard device and print its configuration.
    Add {
        /// A name for it.
        name: String,
        /// The network.
        #[arg(long)]
        network: String,
        /// Its public key (`wg pubkey`); the private one stays on the device.
        #[arg(long, value_name = "K")]
        public_key: String,
    },
    /// Remove a device.
    Rm {
        /// Its name.
        name: String,
        /// The network.
        #[arg(long)]
        network: String,
    },
}

pub(super) async fn peer(global: &Global, command: PeerCommand) -> Result {
    let mut client = global.networks().await?;
    match command {
        PeerCommand::Ls { network } => {
            let request = proto::ListPeersRequest { network: network.unwrap_or_default() };
            let found = client.list_peers(request).await?.into_inner();
            output::show(global, &found, || table(&found));
        }
        PeerCommand::Add { name, network, public_key } => {
            let request = proto::AddPeerRequest { network, name, public_key };
            let config = client.add_peer(request).await?.into_inner();
            output::show(global, &config, || output::raw(&wireguard_config(&config)));
        }
        PeerCommand::Rm { name, network } => {
            client.remove_peer(proto::RemovePeerRequest { network, name: name.clone() }).await?;
            output::note(format!("{name} is removed"));
        }
    }
    Ok(())
}

/// Writes the configuration as wg-quick(8) reads it.
fn wireguard_config(c: &proto::PeerConfig) -> String {
    let mut text = format!(
        "[Interface]\n# PrivateKey = the private key of the device\nAddress = {}\nMTU = {}\n",
        c.addresses.join(", "),
        c.mtu
    );
    for p in &c.peers {
        text += &format!(
            "\n[Peer]\n# {}\nPublicKey = {}\nAllowedIPs = {}\n",
            p.name,
            p.public_key,
            p.allowed_ips.join(", ")
        );
        if !p.endpoint.is_empty() {
            text += &format!("Endpoint = {}\n", p.endpoint);
        }
        for other in &p.other_endpoints {
            text += &format!("# or: Endpoint = {other}\n");
        }
        text += "PersistentKeepalive = 25\n";
    }
    text
}

fn millis(us: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a round trip takes seconds, not centuries")]
    let ms = us as f64 / 1e3;
    format!("{ms:.2} ms")
}

/// A number of bytes as people say it.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if n < 1_000 {
        return format!("{n} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = n as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn table(found: &proto::ListPeersResponse) {
    let row = |p: &proto::PeerState| {
        vec![
            p.network.clone(),
            p.name.clone(),
            p.endpoint.clone(),
            p.handshake_age_s.map(|s| format!("{s} s ago")).unwrap_or_default(),
            p.round_trip_us.map(millis).unwrap_or_default(),
            if p.asked > 0 { format!("{} of {}", p.lost, p.asked) } else { String::new() },
            p.path_mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
            bytes(p.received_bytes),
            bytes(p.sent_bytes),
        ]
    };
    let header = ["network", "peer", "endpoint", "keys", "rtt", "lost", "mtu", "received", "sent"];
    let rows = found.peers.iter().map(row).collect();
    output::table(&header, rows, "no peers: this node is alone in its networks, or in none");
}

/// Options of `skein ping`.
#[derive(Debug, Args)]
pub(super) struct PingArgs {
    /// A node or a device, by its name.
    peer: String,
    /// The network; needed only if there are several that both are in.
    #[arg(long)]
    network: Option<String>,
    /// How many round trips.
    #[arg(short, long, default_value = "4", value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

/// What came of all round trips.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Pinged {
    node: String,
    network: String,
    peer: String,
    /// In microseconds; null for one that was not answered.
    round_trips_us: Vec<Option<u64>>,
}

impl Pinged {
    fn summary(&self) -> String {
        let times: Vec<u64> = self.round_trips_us.iter().flatten().copied().collect();
        let counted = format!("{} of {} answered", times.len(), self.round_trips_us.len());
        let (Some(least), Some(most)) = (times.iter().min(), times.iter().max()) else {
            return counted;
        };
        let mean = times.iter().sum::<u64>() / times.len().max(1) as u64;
        let [least, mean, most] = [*least, mean, *most].map(millis);
        format!("{counted}; least {least}, mean {mean}, most {most}")
    }
}

/// Takes round trips through the tunnel, one each second.
pub(super) async fn ping(global: &Global, args: PingArgs) -> Result {
    let mut client = global.networks().await?;
    let mut all = Pinged { peer: args.peer.clone(), ..Pinged::default() };
    for n in 0..args.count {
        let next = Instant::now() + Duration::from_secs(1);
        let network = args.network.clone().unwrap_or_default();
        let request = proto::PingRequest { peer: args.peer.clone(), network };
        let answer = client.ping(request).await?.into_inner();
        if global.output == Format::Table {
            let took = answer.round_trip_us.map_or_else(|| "no answer".into(), millis);
            output::line(format!(
                "{} from {} in {}: {took}",
                args.peer, answer.node, answer.network
            ));
        }
        all.round_trips_us.push(answer.round_trip_us);
        (all.node, all.network) = (answer.node, answer.network);
        if n + 1 < args.count {
            sleep_until(next).await;
        }
    }
    output::show(global, &all, || output::line(all.summary()));
    if all.round_trips_us.iter().any(Option::is_some) {
        return Ok(());
    }
    let why = format!("none of {} echo requests through the tunnel was answered", args.count);
    let next = format!("skein peer ls --network {}; skein node show {}", all.network, args.peer);
    Err(detail("timeout", format!("{} does not answer", args.peer), why, next).into())
}

/// Options of `skein capture`.
#[derive(Debug, Args)]
pub(super) struct CaptureArgs {
    /// The network.
    network: String,
    /// Where to write the packets, in pcap's format; - is standard output.
    #[arg(short, long, value_name = "FILE")]
    write: std::path::PathBuf,
    /// End after so many seconds; otherwise Ctrl-C does.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// End after so many packets.
    #[arg(long, value_name = "N")]
    packets: Option<u64>,
}

/// The head of a file of bare IP packets with times in microseconds (draft-ietf-opsawg-pcap, section 4; LINKTYPE_RAW).
fn pcap_head() -> [u8; 24] {
    let mut head = [0; 24];
    head[..4].copy_from_slice(&0xa1b2_c3d4u32.to_le_bytes());
    head[4..6].copy_from_slice(&2u16.to_le_bytes());
    head[6..8].copy_from_slice(&4u16.to_le_bytes());
    head[16..20].copy_from_slice(&(1u32 << 18).to_le_bytes());
    head[20..24].copy_from_slice(&101u32.to_le_bytes());
    head
}

/// The head of one packet (section 5 of the same).
fn pcap_record(at_us: u64, length: usize) -> [u8; 16] {
    let fields = [at_us / 1_000_000, at_us % 1_000_000, length as u64, length as u64];
    let mut head = [0; 16];
    for (to, field) in head.chunks_exact_mut(4).zip(fields) {
        to.copy_from_slice(&u32::try_from(field).unwrap_or(u32::MAX).to_le_bytes());
    }
    head
}

/// Writes what passes through a network on the asked node.
pub(super) async fn capture(global: &Global, args: CaptureArgs) -> Result {
    let failed = |e: std::io::Error| {
        let what = format!("{} was not captured", args.network);
        let why = format!("{}: {e}", args.write.display());
        ApiError::from(detail("file", what, why, "name another file: --write FILE"))
    };
    let mut client = global.networks().await?;
    let request = proto::CaptureRequest { network: args.network.clone() };
    let mut packets = client.capture(request).await?.into_inner();
    let mut out: Box<dyn Write> = if args.write.as_os_str() == "-" {
        Box::new(std::io::stdout())
    } else {
        Box::new(std::fs::File::create(&args.write).map_err(failed)?)
    };
    out.write_all(&pcap_head()).and_then(|()| out.flush()).map_err(failed)?;
    let until = args.seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let far = Instant::now() + Duration::from_secs(86_400 * 365);
    let (mut written, mut missed) = (0u64, 0);
    output::note(format!("capturing {}: Ctrl-C ends it", args.network));
    while args.packets.is_none_or(|most| written < most) {
        let packet = tokio::select! {
            packet = timeout_at(until.unwrap_or(far), packets.message()) => packet,
            _ = tokio::signal::ctrl_c() => break,
        };
        let Ok(packet) = packet else { break };
        let Some(packet) = packet? else { break };
        let head = pcap_record(packet.at_us, packet.packet.len());
        let wrote = out.write_all(&head).and_then(|()| out.write_all(&packet.packet));
        wrote.and_then(|()| out.flush()).map_err(failed)?;
        written += 1;
        missed = packet.missed;
    }
    let lost =
        if missed > 0 { format!(", {missed} missed: they came too fast") } else { String::new() };
    output::note(format!("{written} packets{lost}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_as_people_say_them() {
        let said = [0, 999, 1_000, 999_949, 999_950, 12_345_678, 5_000_000_000].map(bytes);
        assert_eq!(said, ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "12.3 MB", "5.0 GB"]);
    }

    #[test]
    fn a_series_is_summed_up_with_what_was_lost() {
        let with = |round_trips_us| Pinged { round_trips_us, ..Pinged::default() }.summary();
        assert_eq!(
            with(vec![Some(400), None, Some(600)]),
            "2 of 3 answered; least 0.40 ms, mean 0.50 ms, most 0.60 ms"
        );
        assert_eq!(with(vec![None]), "0 of 1 answered");
    }

    #[test]
    fn a_capture_is_what_others_read() {
        let head = pcap_head();
        assert_eq!(head[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(head[20..], [101, 0, 0, 0]);
        let record = pcap_record(3_000_007, 258);
        assert_eq!(record, [3, 0, 0, 0, 7, 0, 0, 0, 2, 1, 0, 0, 2, 1, 0, 0]);
    }
}
