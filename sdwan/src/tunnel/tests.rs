//! Tunnels that talk over a wire in memory, with real sessions.

use super::*;
use crate::offload::split;
use crate::packet::addresses;
use crate::session::BoringSession;
use crate::spec::PrivateKey;
use ipnet::IpNet;
use proptest::prelude::*;

mod shards;
mod way;

type T = Tunnel<BoringSession>;

fn key(n: u8) -> PrivateKey {
    PrivateKey::new([n; 32])
}

fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 51820))
}

fn overlay(n: u8) -> IpAddr {
    IpAddr::from([10, 90, 0, n])
}

fn peer(n: u8) -> PeerSpec {
    PeerSpec {
        name: format!("n{n}"),
        public_key: key(n).public(),
        endpoints: vec![at(n)],
        allowed_ips: vec![IpNet::from(overlay(n))],
        keepalive: Some(25),
    }
}

fn spec(me: u8, generation: u64, peers: Vec<PeerSpec>) -> MeshSpec {
    MeshSpec {
        generation,
        network: "test".into(),
        interface: "wg-sdwan-test".into(),
        private_key: key(me),
        listen_port: 51820,
        mtu: 1420,
        addresses: vec![overlay(me)],
        prefixes: Vec::new(),
        held: Vec::new(),
        handovers: Vec::new(),
        peers: peers.into(),
    }
}

fn packet(from: IpAddr, to: IpAddr, body: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else { panic!("IPv4 is meant") };
    let total = u16::try_from(20 + body.len()).unwrap().to_be_bytes();
    let mut p = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 17, 0, 0];
    p.extend(from.octets());
    p.extend(to.octets());
    p.extend(body);
    p
}

/// Where something produced must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Udp(Path),
    Tun,
}

/// Takes what a tunnel produced, in single packets and datagrams.
fn produced(tunnel: &mut T) -> Vec<(Target, Vec<u8>)> {
    let mut all = Vec::new();
    tunnel.take_output(|output| match output {
        Output::Tun(offload, parts) => {
            let mut whole = parts.collect::<Vec<_>>().concat();
            split(&offload, &mut whole, |p| all.push((Target::Tun, p.to_vec()))).unwrap();
        }
        Output::Wire(train) => {
            all.extend(train.datagrams().map(|d| (Target::Udp(train.path), d.to_vec())));
        }
    });
    all
}

/// Carries datagrams between tunnels until nothing moves; returns what was delivered to whom.
fn settle(tunnels: &mut [(u8, &mut T)], now: Instant) -> Vec<(u8, Vec<u8>)> {
    let mut delivered = Vec::new();
    for _ in 0..20 {
        let mut wire: Vec<(u8, SocketAddr, Vec<u8>)> = Vec::new();
        for (n, tunnel) in tunnels.iter_mut() {
            for (target, bytes) in produced(tunnel) {
                match target {
                    Target::Tun => delivered.push((*n, bytes)),
                    Target::Udp(to) => wire.push((*n, to.remote, bytes)),
                }
            }
        }
        if wire.is_empty() {
            break;
        }
        for (from, to, bytes) in wire {
            if let Some((_, tunnel)) = tunnels.iter_mut().find(|(n, _)| at(*n) == to) {
                tunnel.handle_udp(Train::one(at(from), bytes.as_slice()), now);
            }
        }
    }
    delivered
}

fn pair(now: Instant) -> (T, T) {
    let (mut a, mut b) = (T::new(1), T::new(100));
    a.set_spec(&spec(1, 1, vec![peer(2)]), now);
    b.set_spec(&spec(2, 1, vec![peer(1)]), now);
    (a, b)
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[test]
fn a_packet_crosses_and_its_first_one_is_not_lost() {
    let now = now();
    let (mut a, mut b) = pair(now);
    let hello = packet(overlay(1), overlay(2), b"hello");
    a.handle_tun(hello.clone().as_mut_slice(), now);
    let delivered = settle(&mut [(1, &mut a), (2, &mut b)], now);
    assert_eq!(delivered, vec![(2, hello)]);
    let back = packet(overlay(2), overlay(1), b"back");
    b.handle_tun(back.clone().as_mut_slice(), now);
    assert_eq!(settle(&mut [(1, &mut a), (2, &mut b)], now), vec![(1, back)]);
}

/// A VIP moves from 2 to 3 while 1 talks to it.
#[test]
fn a_planned_move_leaves_connections_where_they_were_begun() {
    let now = now();
    let vip = "10.90.15.254";
    let held = |n: u8, holds: bool| {
        let mut p = peer(n);
        p.allowed_ips.extend(holds.then(|| IpNet::from(vip.parse::<IpAddr>().unwrap())));
        p
    };
    let (mut a, mut b, mut c) = (T::new(1), T::new(100), T::new(200));
    a.set_spec(&spec(1, 1, vec![held(2, true), held(3, false)]), now);
    b.set_spec(&spec(2, 1, vec![peer(1), held(3, false)]), now);
    c.set_spec(&spec(3, 1, vec![peer(1), held(2, true)]), now);
    let tcp = |port, flags| crate::packet::tests::tcp("10.90.0.1", port, vip, 6443, flags);
    a.handle_tun(tcp(1000, 0x02).as_mut_slice(), now);
    assert_eq!(settle(&mut [(1, &mut a), (2, &mut b), (3, &mut c)], now)[0].0, 2);

    let mut moved = spec(1, 2, vec![held(2, false), held(3, true)]);
    moved.handovers =
        vec![crate::Handover { address: vip.parse().unwrap(), from: key(2).public() }];
    a.set_spec(&moved, now);
    let answer = crate::packet::tests::tcp(vip, 6443, "10.90.0.1", 1000, 0x12);
    b.handle_tun(answer.clone().as_mut_slice(), now);
    let delivered = settle(&mut [(1, &mut a), (2, &mut b), (3, &mut c)], now);
    assert_eq!(delivered, vec![(1, answer.clone())], "the answer of the former holder counts");
    a.handle_tun(tcp(1000, 0x10).as_mut_slice(), now);
    a.handle_tun(tcp(2000, 0x02).as_mut_slice(), now);
    a.handle_tun(tcp(2000, 0x10).as_mut_slice(), now);
    let delivered = settle(&mut [(1, &mut a), (2, &mut b), (3, &mut c)], now);
    let whom: Vec<u8> = delivered.iter().map(|(n, _)| *n).collect();
    assert_eq!(whom, [2, 3, 3], "what is new goes to the new holder");

    moved.handovers.clear();
    a.set_spec(&moved, now);
    b.handle_tun(answer.clone().as_mut_slice(), now);
    a.handle_tun(tcp(1000, 0x10).as_mut_slice(), now);
    let delivered = settle(&mut [(1, &mut a), (2, &mut b), (3, &mut c)], now);
    assert_eq!(delivered.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [3], "then it is over");
    assert_eq!(a.drops().spoofed, 1);
}

#[test]
fn a_mesh_is_warm_before_anybody_sends() {
    let now = now();
    let (mut a, mut b) = pair(now);
    a.handle_timeout(now);
    settle(&mut [(1, &mut a), (2, &mut b)], now);
    assert!(a.peers()[0].handshake_age.is_some());
}

#[test]
fn a_foreign_source_is_dropped() {
    let now = now();
    let (mut a, mut b) = pair(now);
    let forged = packet(overlay(9), overlay(2), b"x");
    a.handle_tun(forged.clone().as_mut_slice(), now);
    assert!(settle(&mut [(1, &mut a), (2, &mut b)], now).is_empty());
    assert_eq!(b.drops().spoofed, 1);
}

#[test]
fn a_new_spec_keeps_sessions_and_a_stale_one_is_ignored() {
    let now = now();
    let (mut a, mut b) = pair(now);
    let hello = packet(overlay(1), overlay(2), b"hello");
    a.handle_tun(hello.clone().as_mut_slice(), now);
    settle(&mut [(1, &mut a), (2, &mut b)], now);
    a.set_spec(&spec(1, 5, vec![peer(2), peer(3)]), now);
    a.set_spec(&spec(1, 4, vec![]), now);
    a.handle_tun(hello.clone().as_mut_slice(), now);
    let sent: Vec<_> = produced(&mut a).into_iter().map(|(t, b)| (t, b[0])).collect();
    // 4 is transport data (WireGuard paper, section 5.4.6): no new handshake was needed.
    assert_eq!(sent, vec![(Target::Udp(at(2).into()), 4)]);
}

#[test]
fn a_vip_moves_with_the_spec() {
    let now = now();
    let vip: IpAddr = overlay(200);
    let holder = |n: u8, generation| {
        let mut peers = vec![peer(2), peer(3)];
        peers[usize::from(n - 2)].allowed_ips.push(IpNet::from(vip));
        spec(1, generation, peers)
    };
    let (mut a, mut b, mut c) = (T::new(1), T::new(100), T::new(200));
    b.set_spec(&spec(2, 1, vec![peer(1)]), now);
    c.set_spec(&spec(3, 1, vec![peer(1)]), now);
    let to_vip = packet(overlay(1), vip, b"api");
    let mut reached = Vec::new();
    for (n, generation) in [(2, 1), (3, 2)] {
        a.set_spec(&holder(n, generation), now);
        assert_eq!(a.peer_for(vip), Some(format!("n{n}").as_str()));
        a.handle_tun(to_vip.clone().as_mut_slice(), now);
        let got = settle(&mut [(1, &mut a), (2, &mut b), (3, &mut c)], now);
        reached.extend(got.into_iter().map(|(n, _)| n));
    }
    assert_eq!(reached, vec![2, 3]);
    // The old holder may not speak for the VIP any more.
    let late = packet(vip, overlay(1), b"late");
    b.handle_tun(late.clone().as_mut_slice(), now);
    assert!(settle(&mut [(1, &mut a), (2, &mut b), (3, &mut c)], now).is_empty());
    assert_eq!(a.drops().spoofed, 1);
}

#[test]
fn a_peer_is_followed_to_a_new_address() {
    let now = now();
    let (mut a, mut b) = pair(now);
    let hello = packet(overlay(2), overlay(1), b"hello");
    b.handle_tun(hello.clone().as_mut_slice(), now);
    settle(&mut [(1, &mut a), (2, &mut b)], now);
    b.handle_tun(hello.clone().as_mut_slice(), now);
    let datagrams: Vec<Vec<u8>> = produced(&mut b).into_iter().map(|(_, b)| b).collect();
    for d in &datagrams {
        a.handle_udp(Train::one(at(77), d.as_slice()), now);
    }
    assert_eq!(a.peers()[0].endpoint, Some(at(77)));
    // A replay from elsewhere is no reason to follow.
    for d in &datagrams {
        a.handle_udp(Train::one(at(66), d.as_slice()), now);
    }
    assert_eq!(a.peers()[0].endpoint, Some(at(77)));
}

#[test]
fn a_peer_is_answered_from_the_address_that_it_spoke_to() {
    let now = now();
    let (mut a, mut b) = pair(now);
    let hello = packet(overlay(2), overlay(1), b"hello");
    b.handle_tun(hello.clone().as_mut_slice(), now);
    settle(&mut [(1, &mut a), (2, &mut b)], now);
    b.handle_tun(hello.clone().as_mut_slice(), now);
    let spoken_to = Path { remote: at(2), local: Some(at(101).ip()) };
    let datagrams: Vec<Vec<u8>> = produced(&mut b).into_iter().map(|(_, b)| b).collect();
    for d in &datagrams {
        a.handle_udp(Train::one(spoken_to, d), now);
    }
    a.take_output(|_| {});
    let back = packet(overlay(1), overlay(2), b"back");
    let answer = |a: &mut T| {
        a.handle_tun(back.clone().as_mut_slice(), now);
        produced(a).into_iter().map(|(target, _)| target).collect::<Vec<_>>()
    };
    assert_eq!(answer(&mut a), [Target::Udp(spoken_to)]);
    a.forget_local(at(101).ip());
    assert_eq!(answer(&mut a), [Target::Udp(at(2).into())]);
}

/// What a tunnel sends to begin a handshake.
fn initiation(tunnel: &mut T, now: Instant) -> Vec<u8> {
    tunnel.handle_timeout(now);
    let sent = produced(tunnel).into_iter().map(|(_, b)| b);
    sent.into_iter().find(|b| b[0] == INITIATION).expect("a cold mesh calls")
}

#[test]
fn a_cookie_that_comes_in_is_no_reason_to_follow() {
    let now = now();
    let (mut a, mut b) = pair(now);
    let call = initiation(&mut a, now);
    // As many as bring b under load: it answers with cookies then.
    for _ in 0..300 {
        b.handle_udp(Train::one(at(1), call.as_slice()), now);
    }
    let cookies: Vec<Vec<u8>> = produced(&mut b).into_iter().map(|(_, b)| b).collect();
    let cookie = cookies.into_iter().find(|c| c[0] == COOKIE).expect("a cookie under load");
    a.handle_udp(Train::one(at(66), cookie.as_slice()), now);
    assert_eq!(a.peers()[0].endpoint, Some(at(2)));
}

#[test]
fn an_initiation_is_answered_and_not_followed_whatever_the_load() {
    let now = now();
    let (mut a, mut b) = pair(now);
    let mut stranger = T::new(300);
    stranger.set_spec(&spec(9, 1, vec![peer(2)]), now);
    let (call, foreign) = (initiation(&mut a, now), initiation(&mut stranger, now));
    // One that only the shared check counts, so that the load may be reached within a session's own check.
    b.handle_udp(Train::one(at(9), foreign.as_slice()), now);
    for _ in 0..300 {
        b.handle_udp(Train::one(at(66), call.as_slice()), now);
    }
    let answers: Vec<_> = produced(&mut b).into_iter().map(|(t, bytes)| (t, bytes[0])).collect();
    assert!(answers.contains(&(Target::Udp(at(66).into()), RESPONSE)), "{answers:?}");
    assert!(answers.contains(&(Target::Udp(at(66).into()), COOKIE)), "{answers:?}");
    assert_eq!(b.peers()[0].endpoint, Some(at(1)));
}

/// A machine without a clock chip comes back with an older time: what it calls with is stale, as a repeated call is.
#[test]
fn who_calls_with_an_old_time_is_called_back_and_not_too_often() {
    let now = now();
    let (mut a, mut b) = pair(now);
    let call = initiation(&mut a, now);
    b.handle_udp(Train::one(at(1), call.as_slice()), now);
    let first: Vec<_> = produced(&mut b).into_iter().map(|(_, bytes)| bytes[0]).collect();
    assert_eq!(first, [RESPONSE]);
    b.handle_udp(Train::one(at(77), call.as_slice()), now);
    assert!(
        produced(&mut b).is_empty(),
        "the same call over another of our addresses is no old one"
    );
    // The answer is lost, and so is all that a knew: only a call from b can help it now.
    let mut back = T::new(500);
    let now = now + CALL;
    back.set_spec(&spec(1, 1, vec![PeerSpec { endpoints: Vec::new(), ..peer(2) }]), now);
    for _ in 0..3 {
        b.handle_udp(Train::one(at(66), call.as_slice()), now);
    }
    let calls = produced(&mut b);
    let whom: Vec<_> = calls.iter().map(|(to, bytes)| (*to, bytes[0])).collect();
    assert_eq!(whom, [(Target::Udp(at(1).into()), INITIATION)], "where it is known to be, once");
    back.handle_udp(Train::one(at(2), calls[0].1.as_slice()), now);
    let hello = packet(overlay(1), overlay(2), b"hello");
    settle(&mut [(1, &mut back), (2, &mut b)], now);
    back.handle_tun(hello.clone().as_mut_slice(), now);
    assert_eq!(settle(&mut [(1, &mut back), (2, &mut b)], now), vec![(2, hello)]);
}

#[test]
fn a_device_without_an_endpoint_is_reached_once_it_has_called() {
    let now = now();
    let (mut a, mut b) = (T::new(1), T::new(100));
    a.set_spec(&spec(1, 1, vec![peer(2)]), now);
    b.set_spec(&spec(2, 1, vec![PeerSpec { endpoints: Vec::new(), ..peer(1) }]), now);
    a.handle_timeout(now);
    settle(&mut [(1, &mut a), (2, &mut b)], now);
    let hello = packet(overlay(2), overlay(1), b"hello");
    b.handle_tun(hello.clone().as_mut_slice(), now);
    assert_eq!(settle(&mut [(1, &mut a), (2, &mut b)], now), vec![(1, hello)]);
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(inputs in proptest::collection::vec((any::<bool>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..200)), 0..30)) {
        let now = now();
        let (mut a, _) = pair(now);
        for (tun, kind, mut bytes) in inputs {
            if let Some(first) = bytes.first_mut() {
                *first = if tun { kind } else { kind % 5 };
            }
            if tun {
                a.handle_tun(bytes.clone().as_mut_slice(), now);
            } else {
                for byte in bytes.iter_mut().skip(1).take(3) {
                    *byte = 0;
                }
                a.handle_udp(Train::one(at(2), bytes.as_slice()), now);
            }
        }
        a.take_output(|_| {});
    }
}
