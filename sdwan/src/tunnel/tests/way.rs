//! What tunnels find out about the way between them.

use super::*;
use crate::icmp::{may_be_fragmented, read_echo};
use crate::offload::Offload;

/// What a datagram has around a packet: WireGuard's header and tag.
const AROUND: usize = 32;

/// Answers an echo request as a host does.
fn answered(packet: &[u8]) -> Option<Vec<u8>> {
    let mut answer = packet.to_vec();
    if packet[0] != 0x45 || packet[9] != 1 || packet[20] != 8 {
        return None;
    }
    answer[20] = 0;
    answer[12..16].copy_from_slice(&packet[16..20]);
    answer[16..20].copy_from_slice(&packet[12..16]);
    Some(answer)
}

/// Lives `ticks` long with a way that loses what is larger than `mtu` and may not be fragmented; hosts answer echo requests.
/// Returns what the first host was given.
fn live((a, b): (&mut T, &mut T), start: &mut Instant, ticks: usize, mtu: usize) -> Vec<Vec<u8>> {
    let mut delivered = Vec::new();
    for _ in 0..ticks {
        *start += TICK;
        a.handle_timeout(*start);
        b.handle_timeout(*start);
        for _ in 0..10 {
            for from in [1, 2] {
                let (tunnel, other) =
                    if from == 1 { (&mut *a, &mut *b) } else { (&mut *b, &mut *a) };
                let (mut wire, mut up) = (Vec::new(), Vec::new());
                tunnel.take_output(|output| match output {
                    Output::Tun(_, parts) => up.push(parts.collect::<Vec<_>>().concat()),
                    Output::Wire(train) => {
                        wire.extend(train.datagrams().map(|d| (train.kind.whole, d.to_vec())))
                    }
                });
                for (_, bytes) in wire.iter().filter(|(whole, d)| !whole || d.len() <= mtu + AROUND)
                {
                    other.handle_udp(Train::one(at(from), bytes.as_slice()), *start);
                }
                for packet in up {
                    match answered(&packet) {
                        Some(mut answer) => tunnel.handle_tun(answer.as_mut_slice(), *start),
                        None if from == 1 => delivered.push(packet),
                        None => {}
                    }
                }
            }
        }
    }
    delivered
}

#[test]
fn how_long_the_way_takes_and_what_it_carries_is_known() {
    let mut now = now();
    let (mut a, mut b) = pair(now);
    let seen = live((&mut a, &mut b), &mut now, 8, 1_500);
    assert!(seen.is_empty(), "answers to our own requests are not the host's business: {seen:?}");
    let peer = &a.peers()[0];
    assert!(peer.round_trip.is_some());
    assert_eq!((peer.lost, peer.path_mtu), (Some((0, 1)), Some(1420)));
    assert_eq!(b.peers()[0].path_mtu, Some(1420));
}

/// A stock WireGuard leaves the answer to its host, at full length.
#[test]
fn a_host_answers_where_its_tunnel_does_not() {
    let mut now = now();
    let (mut a, mut b) = pair(now);
    b.set_spec(&MeshSpec { addresses: Vec::new(), ..spec(2, 2, vec![peer(1)]) }, now);
    live((&mut a, &mut b), &mut now, 200, 1_400);
    let found = a.peers()[0].path_mtu.unwrap();
    assert!((1_396..=1_400).contains(&found), "{found}");
    assert_eq!(b.peers()[0].path_mtu, None, "it has no address to ask from");
}

#[test]
fn a_narrow_way_is_found_and_told_to_who_sends_too_much() {
    let mut now = now();
    let (mut a, mut b) = pair(now);
    live((&mut a, &mut b), &mut now, 200, 1_340);
    let found = a.peers()[0].path_mtu.unwrap();
    assert!((1_336..=1_340).contains(&found), "{found}");
    let mut large = packet(overlay(1), overlay(2), &[7; 1_380]);
    large[6] = 0x40;
    assert!(!may_be_fragmented(&large));
    a.handle_tun(large.clone().as_mut_slice(), now);
    let told = live((&mut a, &mut b), &mut now, 1, 1_340);
    let [told] = told.as_slice() else { panic!("one message: {told:?}") };
    assert_eq!((told[9], &told[20..22]), (1, &[3, 4][..]), "fragmentation needed");
    assert_eq!(u16::from_be_bytes([told[26], told[27]]), found);
    assert_eq!(addresses(told).map(|at| at.destination), Some(overlay(1)));
    assert_eq!(a.drops().too_big, 1);
    // Where it may be fragmented, it goes on, and its sender is told now and then.
    large[6] = 0;
    a.take_output(|_| {});
    let mut sent = |a: &mut T, at: Instant| {
        a.handle_tun(large.as_mut_slice(), at);
        let whither = produced(a).into_iter().map(|(target, _)| target == Target::Tun);
        whither.collect::<Vec<_>>()
    };
    assert_eq!(sent(&mut a, now), [false], "it was told just now");
    assert_eq!(sent(&mut a, now + TELL), [true, false]);
    assert_eq!(a.drops().too_big, 1);
}

#[test]
fn a_peer_is_asked_when_somebody_wants_to_know() {
    let mut now = now();
    let (mut a, mut b) = pair(now);
    live((&mut a, &mut b), &mut now, 8, 1_500);
    let whom = key(2).public();
    a.take_answer(&whom);
    assert!(a.ask(&whom, now) && !a.ask(&key(9).public(), now));
    live((&mut a, &mut b), &mut now, 1, 1_500);
    assert!(matches!(a.take_answer(&whom), Some(Some(_))));
    assert_eq!(a.take_answer(&whom), None, "it is told once");
    assert!(a.ask(&whom, now));
    let mut nobody = T::new(500);
    live((&mut a, &mut nobody), &mut now, 6, 1_500);
    assert_eq!(a.take_answer(&whom), Some(None), "no answer is an answer, too");
}

#[test]
fn another_programs_echo_is_the_hosts_own() {
    let mut now = now();
    let (mut a, mut b) = pair(now);
    live((&mut a, &mut b), &mut now, 8, 1_500);
    let mut reply = packet(overlay(2), overlay(1), &[0; 64]);
    reply[9] = 1;
    assert_eq!(read_echo(&reply), None);
    b.handle_tun(Superpacket { offload: Offload::default(), bytes: &mut reply.clone() }, now);
    assert_eq!(live((&mut a, &mut b), &mut now, 1, 1_500), [reply]);
}

#[test]
fn keys_are_renewed_early_where_that_is_wanted() {
    let now = now();
    let (mut a, mut b) = pair(now);
    a.handle_timeout(now);
    settle(&mut [(1, &mut a), (2, &mut b)], now);
    let calls = |a: &mut T, at: Instant| {
        a.handle_timeout(at);
        produced(a).iter().filter(|(_, bytes)| bytes[0] == INITIATION).count()
    };
    assert_eq!(calls(&mut a, now + TICK), 0, "keys are fresh");
    a.set_rekey(Duration::ZERO);
    assert_eq!(calls(&mut a, now + TICK * 2), 1);
    settle(&mut [(1, &mut a), (2, &mut b)], now);
    let hello = packet(overlay(1), overlay(2), b"hello");
    a.handle_tun(hello.clone().as_mut_slice(), now);
    let delivered = settle(&mut [(1, &mut a), (2, &mut b)], now);
    assert_eq!(delivered, vec![(2, hello)]);
}
