//! Packets that are joined and cut again.

use std::net::IpAddr;

use proptest::prelude::*;

use super::checksum::{Sum, pseudo};
use super::*;

/// What one packet of a flow is to be like.
#[derive(Clone, Debug)]
struct Plan {
    v6: bool,
    udp: bool,
    port: u16,
    payload: usize,
    push: bool,
    fin: bool,
    gap: bool,
    ecn: u8,
    broken: bool,
}

/// Makes packets of several flows, as two kernels would send them.
#[derive(Default)]
struct Maker {
    sequence: std::collections::BTreeMap<(bool, u16), u32>,
    id: u16,
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

impl Maker {
    fn packet(&mut self, plan: &Plan) -> Vec<u8> {
        let (ip, protocol) = (if plan.v6 { 40 } else { 20 }, if plan.udp { 17 } else { 6 });
        let transport = if plan.udp { 8 } else { 32 };
        let mut p = vec![0; ip + transport + plan.payload];
        for (i, byte) in p[ip + transport..].iter_mut().enumerate() {
            *byte = (i as u8).wrapping_mul(31).wrapping_add(plan.port as u8);
        }
        let length = p.len();
        if plan.v6 {
            p[0] = 0x60;
            p[1] = plan.ecn << 4;
            put(&mut p, 4, (length - 40) as u16);
            p[6] = protocol;
            p[7] = 64;
            p[8] = 0xfd;
            p[23] = 1;
            p[24] = 0xfd;
            p[39] = 2;
        } else {
            self.id = self.id.wrapping_add(1);
            p[0] = 0x45;
            p[1] = plan.ecn;
            put(&mut p, 2, length as u16);
            put(&mut p, 4, self.id);
            p[6] = 0x40;
            p[8] = 64;
            p[9] = protocol;
            p[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = Sum::default().add(&p[..20]).finish();
            put(&mut p, 10, sum);
        }
        put(&mut p, ip, plan.port);
        put(&mut p, ip + 2, 443);
        if plan.udp {
            put(&mut p, ip + 4, (8 + plan.payload) as u16);
        } else {
            let sequence = self.sequence.entry((plan.v6, plan.port)).or_insert(u32::MAX - 5_000);
            if plan.gap {
                *sequence = sequence.wrapping_add(100);
            }
            p[ip + 4..ip + 8].copy_from_slice(&sequence.to_be_bytes());
            *sequence = sequence.wrapping_add(plan.payload as u32);
            p[ip + 12] = 0x80;
            p[ip + 13] = 0x10 | (u8::from(plan.push) << 3) | u8::from(plan.fin);
            put(&mut p, ip + 14, 500);
        }
        let field = ip + if plan.udp { 6 } else { 16 };
        let sum = pseudo(&p, protocol, length - ip).add(&p[ip..]).finish();
        // Nothing but UDP gives zero a meaning of its own (RFC 768); cut segments have what their protocol wants.
        put(&mut p, field, if sum == 0 && plan.udp { 0xffff } else { sum });
        if plan.broken {
            p[field] ^= 0x40;
        }
        p
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    let size = prop_oneof![4 => Just(1_380usize), 1 => 1usize..1_380, 1 => Just(0usize)];
    let rare = || prop::bool::weighted(0.05);
    let of = (any::<bool>(), prop::bool::weighted(0.3), 1u16..4, size, rare(), rare());
    (of, rare(), prop_oneof![9 => Just(0u8), 1 => Just(3u8)], rare()).prop_map(
        |((v6, udp, port, payload, push, fin), gap, ecn, broken)| Plan {
            v6,
            udp,
            port,
            payload,
            push,
            fin,
            gap,
            ecn,
            broken,
        },
    )
}

/// Joins packets, and cuts what came of it again.
fn there_and_back(packets: &[Vec<u8>], joins: Joins) -> (Vec<Vec<u8>>, usize) {
    let mut arena = Vec::new();
    let mut coalescer = Coalescer::default();
    let mut ranges = Vec::new();
    for packet in packets {
        let start = arena.len();
        arena.extend_from_slice(packet);
        ranges.push(start..arena.len());
    }
    for range in ranges {
        coalescer.push(joins, &arena, range);
    }
    let (mut back, mut pieces) = (Vec::new(), 0);
    coalescer.take(&mut arena, |offload, parts| {
        pieces += 1;
        let mut whole: Vec<u8> = Vec::new();
        parts.for_each(|p| whole.extend_from_slice(p));
        let read = Offload::decode(&offload.encode()).unwrap();
        split(&read, &mut whole, |p| back.push(p.to_vec())).unwrap();
    });
    (back, pieces)
}

/// Whom a packet is of, as far as order matters.
fn flow(p: &[u8]) -> (IpAddr, u8, u16) {
    let ip = if p[0] >> 4 == 4 { 20 } else { 40 };
    let at = crate::packet::addresses(p).unwrap();
    let protocol = if ip == 20 { p[9] } else { p[6] };
    (at.source, protocol, u16::from_be_bytes([p[ip], p[ip + 1]]))
}

const BOTH: Joins = Joins { tcp: true, udp: true };

proptest! {
    #[test]
    fn what_is_joined_is_cut_into_the_same_packets(plans in prop::collection::vec(plan(), 0..200)) {
        let mut maker = Maker::default();
        let packets: Vec<Vec<u8>> = plans.iter().map(|p| maker.packet(p)).collect();
        for joins in [BOTH, Joins { tcp: true, udp: false }, Joins::default()] {
            let (back, pieces) = there_and_back(&packets, joins);
            prop_assert_eq!(back.len(), packets.len());
            prop_assert!(joins != Joins::default() || pieces == packets.len());
            for one in packets.iter().map(|p| flow(p)).collect::<std::collections::BTreeSet<_>>() {
                let of = |all: &[Vec<u8>]| all.iter().filter(|p| flow(p) == one).cloned().collect::<Vec<_>>();
                prop_assert_eq!(of(&back), of(&packets), "each flow keeps its order and bytes");
            }
        }
    }

    #[test]
    fn hostile_bytes_never_panic(
        head in prop::collection::vec(any::<u8>(), 10),
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        version in prop_oneof![Just(0x45u8), Just(0x60u8), any::<u8>()],
        start in prop_oneof![Just(20u16), Just(40u16), any::<u16>()],
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        let mut packets = [bytes.clone(), bytes.clone()];
        if bytes.len() > 40 && version == 0x45 {
            let length = bytes.len() as u16;
            packets[1][2..4].copy_from_slice(&length.to_be_bytes());
            packets[1][9] = 6;
        }
        let ranges = [0..bytes.len(), bytes.len()..2 * bytes.len()];
        let mut arena = packets.concat();
        let mut coalescer = Coalescer::default();
        ranges.into_iter().for_each(|r| coalescer.push(BOTH, &arena, r));
        coalescer.take(&mut arena, |_, parts| parts.for_each(drop));
        let head: [u8; HEADER] = head.try_into().unwrap();
        if let Some(mut offload) = Offload::decode(&head) {
            let _ = split(&offload, &mut bytes.clone(), |_| {});
            offload.checksum = Some((start, 16));
            let _ = split(&offload, &mut bytes, |_| {});
        }
    }
}

pub(crate) fn stream(n: usize, udp: bool) -> Vec<Vec<u8>> {
    let mut maker = Maker::default();
    let plan = Plan {
        v6: false,
        udp,
        port: 7,
        payload: 1_000,
        push: false,
        fin: false,
        gap: false,
        ecn: 0,
        broken: false,
    };
    (0..n).map(|_| maker.packet(&plan)).collect()
}

#[test]
fn a_stream_is_taken_in_few_pieces() {
    for (udp, pieces) in [(false, 2), (true, 2)] {
        let packets = stream(100, udp);
        let (back, got) = there_and_back(&packets, BOTH);
        assert_eq!((back == packets, got), (true, pieces));
    }
}

#[test]
fn two_flows_at_once_are_joined_each() {
    let (a, b) = (stream(20, false), stream(20, true));
    let mixed: Vec<Vec<u8>> = a.into_iter().zip(b).flat_map(|(a, b)| [a, b]).collect();
    // The IPv4 identifications of two makers do not disturb each other.
    assert_eq!(there_and_back(&mixed, BOTH).1, 2);
}

#[test]
fn a_checksum_that_is_left_to_the_card_is_filled_in() {
    let mut packet = stream(1, false).remove(0);
    let right = packet.clone();
    let sum = pseudo(&packet, 6, packet.len() - 20).fold();
    put(&mut packet, 36, sum);
    let offload = Offload { checksum: Some((20, 16)), ..Offload::default() };
    let mut seen = Vec::new();
    split(&offload, &mut packet, |p| seen.push(p.to_vec())).unwrap();
    assert_eq!(seen, [right]);
}

/// A header that claims to be shorter than TCP's least, or longer than the packet, comes from nobody but an attacker.
#[test]
fn a_segment_with_a_false_header_length_is_handed_on_as_it_is() {
    for words in 0..=15u8 {
        let mut packets = stream(2, false);
        for p in &mut packets {
            p[32] = words << 4;
        }
        // The second follows the first by the payload that they claim to have.
        let claimed = packets[0].len() as u32 - 20 - u32::from(words) * 4;
        let begin = u32::from_be_bytes(*packets[0][24..28].first_chunk().unwrap());
        packets[1][24..28].copy_from_slice(&begin.wrapping_add(claimed).to_be_bytes());
        for p in &mut packets {
            put(p, 36, 0);
            let sum = pseudo(p, 6, p.len() - 20).add(&p[20..]).finish();
            put(p, 36, sum);
        }
        let (back, _) = there_and_back(&packets, BOTH);
        assert_eq!(back, packets, "a data offset of {words}");
    }
}
