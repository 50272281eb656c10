//! What the overlays counted, in the text format of Prometheus. Pure.

/// Writes what the overlays counted, each metric's lines together, as Prometheus' text format 0.0.4 wants it.
pub fn overlay(meshes: &[sdwan::MeshStatus]) -> String {
    let mut text = String::new();
    let peers = || meshes.iter().flat_map(|m| m.peers.iter().map(move |p| (m, p)));
    let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
        use std::fmt::Write as _;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
    };
    let of_peers = |value: fn(&sdwan::PeerStatus) -> Option<u64>| -> Vec<(String, u64)> {
        let labels = |m: &sdwan::MeshStatus, p: &sdwan::PeerStatus| {
            format!("network=\"{}\",peer=\"{}\"", m.network, p.name)
        };
        peers().filter_map(|(m, p)| Some((labels(m, p), value(p)?))).collect()
    };
    let received = of_peers(|p| Some(p.rx_bytes));
    family("skein_peer_received_bytes", "counter", "Bytes received from a peer.", received);
    let sent = of_peers(|p| Some(p.tx_bytes));
    family("skein_peer_sent_bytes", "counter", "Bytes sent to a peer.", sent);
    let ages = of_peers(|p| p.handshake_age.map(|age| age.as_secs()));
    let help = "Seconds since the last handshake with a peer.";
    family("skein_peer_handshake_age_seconds", "gauge", help, ages);
    let trips = of_peers(|p| Some(u64::try_from(p.round_trip?.as_micros()).unwrap_or(u64::MAX)));
    let help = "The smoothed round trip through the tunnel, in microseconds.";
    family("skein_peer_round_trip_microseconds", "gauge", help, trips);
    let lost = of_peers(|p| p.lost.map(|(lost, of)| u64::from(lost * 1_000 / of.max(1))));
    let help = "Echo requests of the last 32 that a peer did not answer, per thousand.";
    family("skein_peer_lost_per_mille", "gauge", help, lost);
    let mtus = of_peers(|p| p.path_mtu.map(u64::from));
    let help = "The largest packet that passes to a peer without fragments, in bytes.";
    family("skein_peer_path_mtu_bytes", "gauge", help, mtus);
    let drops = meshes.iter().flat_map(|m| {
        let d = &m.drops;
        let all = [
            ("unroutable", d.unroutable),
            ("no_endpoint", d.no_endpoint),
            ("refused", d.refused),
            ("spoofed", d.spoofed),
            ("malformed", d.malformed),
            ("too_big", d.too_big),
            ("congested", d.congested),
            ("overrun", d.overrun),
        ];
        all.map(|(why, n)| (format!("network=\"{}\",reason=\"{why}\"", m.network), n))
    });
    let offloads = meshes.iter().flat_map(|m| {
        let sdwan::Offloads { device, trains_sent, trains_received } = m.offloads;
        let all = [
            ("tso", device.tcp),
            ("uso", device.udp),
            ("gso", trains_sent),
            ("gro", trains_received),
        ];
        all.map(|(what, on)| (format!("network=\"{}\",offload=\"{what}\"", m.network), on.into()))
    });
    let help = "Whether packets change hands with the kernel in one piece, by the way of doing it.";
    family("skein_overlay_offload", "gauge", help, offloads.collect());
    let help = "Packets that the overlay dropped, by reason.";
    family("skein_overlay_dropped_packets", "counter", help, drops.collect());
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_figure_of_a_peer_has_its_family() {
        let peer = sdwan::PeerStatus {
            name: "n2".into(),
            key: sdwan::PublicKey([1; 32]),
            endpoint: None,
            handshake_age: Some(Duration::from_secs(7)),
            rx_bytes: 1,
            tx_bytes: 2,
            round_trip: Some(Duration::from_micros(420)),
            lost: Some((1, 8)),
            path_mtu: Some(1_400),
        };
        let mesh = sdwan::MeshStatus {
            network: "default".into(),
            interface: "wg-sdwan-abc".into(),
            peers: vec![peer],
            drops: sdwan::Drops { too_big: 3, ..sdwan::Drops::default() },
            offloads: sdwan::Offloads { trains_sent: true, ..sdwan::Offloads::default() },
        };
        let text = overlay(&[mesh]);
        for line in [
            "skein_peer_received_bytes{network=\"default\",peer=\"n2\"} 1",
            "skein_peer_handshake_age_seconds{network=\"default\",peer=\"n2\"} 7",
            "skein_peer_round_trip_microseconds{network=\"default\",peer=\"n2\"} 420",
            "skein_peer_lost_per_mille{network=\"default\",peer=\"n2\"} 125",
            "skein_peer_path_mtu_bytes{network=\"default\",peer=\"n2\"} 1400",
            "skein_overlay_dropped_packets{network=\"default\",reason=\"too_big\"} 3",
            "skein_overlay_offload{network=\"default\",offload=\"gso\"} 1",
            "skein_overlay_offload{network=\"default\",offload=\"tso\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
        }
    }
}
