//! Several tunnels that carry one overlay together: wherever something arrives, it goes the one right way.

use super::*;
use crate::packet::tests::tcp;

const VIP: &str = "10.90.15.254";

/// Host 1 with several tunnels, and its peers with one each. What arrives at host 1 reaches its tunnels in turn.
struct Fleet {
    hosts: Vec<(u8, T)>,
    shards: Vec<T>,
    turn: usize,
    now: Instant,
}

impl Fleet {
    fn new(shards: u32, peers: impl Iterator<Item = u8>) -> Self {
        let now = now();
        let host = |n: u8| {
            let mut tunnel = T::new(u32::from(n) * 100);
            tunnel.set_spec(&spec(n, 1, vec![peer(1)]), now);
            (n, tunnel)
        };
        let shards = Shard::all(shards).map(|shard| T::of(shard, 1)).collect();
        let mut fleet = Self { hosts: peers.map(host).collect(), shards, turn: 0, now };
        let everybody: Vec<PeerSpec> = fleet.hosts.iter().map(|(n, _)| peer(*n)).collect();
        fleet.set(&spec(1, 1, everybody));
        fleet
    }

    fn set(&mut self, spec: &MeshSpec) {
        let limiter = BoringSession::limiter(&spec.private_key);
        self.shards.iter_mut().for_each(|s| s.set_spec_with(spec, || limiter.clone(), self.now));
    }

    fn next(&mut self) -> &mut T {
        self.turn += 1;
        let count = self.shards.len();
        &mut self.shards[self.turn % count]
    }

    fn send(&mut self, mut bytes: Vec<u8>) {
        let now = self.now;
        self.next().handle_tun(bytes.as_mut_slice(), now);
    }

    /// Carries everything until nothing moves; returns what was delivered to whom.
    fn settle(&mut self) -> Vec<(u8, Vec<u8>)> {
        let mut delivered = Vec::new();
        for _ in 0..40 {
            let strays: Vec<Stray> = self.shards.iter_mut().flat_map(|s| s.take_strays()).collect();
            for stray in strays {
                self.shards[stray.to as usize].handle_stray(stray, self.now);
            }
            let ours = self.shards.iter_mut().map(|t| (1, t));
            let all = ours.chain(self.hosts.iter_mut().map(|(n, t)| (*n, t)));
            let mut wire = Vec::new();
            for (n, (target, bytes)) in
                all.flat_map(|(n, t)| produced(t).into_iter().map(move |p| (n, p)))
            {
                match target {
                    Target::Tun => delivered.push((n, bytes)),
                    Target::Udp(to) => wire.push((n, to.remote, bytes)),
                }
            }
            let now = self.now;
            for (from, to, bytes) in wire {
                let train = Train::one(at(from), bytes.as_slice());
                match self.hosts.iter_mut().find(|(n, _)| at(*n) == to) {
                    Some((_, tunnel)) => tunnel.handle_udp(train, now),
                    None => self.next().handle_udp(train, now),
                }
            }
        }
        delivered
    }

    /// Two peers whose sessions different tunnels have.
    fn apart(&self) -> (u8, u8) {
        let shard = |n: u8| self.shards[0].shard.of_key(&key(n).public());
        let first = self.hosts[0].0;
        let other = self.hosts.iter().map(|(n, _)| *n).find(|n| shard(*n) != shard(first));
        (first, other.unwrap())
    }
}

fn hello(from: u8, to: u8, word: &[u8]) -> Vec<u8> {
    packet(overlay(from), overlay(to), word)
}

#[test]
fn packets_cross_whichever_tunnel_they_reach() {
    for shards in [1, 2, 4] {
        let mut fleet = Fleet::new(shards, 2..10);
        fleet.apart_or_alone();
        for round in 0..3u8 {
            for n in 2..10 {
                fleet.send(hello(1, n, &[round]));
            }
            let mut there = fleet.settle();
            there.sort();
            assert_eq!(there, (2..10).map(|n| (n, hello(1, n, &[round]))).collect::<Vec<_>>());
            let now = fleet.now;
            for (n, tunnel) in &mut fleet.hosts {
                tunnel.handle_tun(hello(*n, 1, &[round]).as_mut_slice(), now);
            }
            let mut back = fleet.settle();
            back.sort();
            assert_eq!(back, (2..10).map(|n| (1, hello(n, 1, &[round]))).collect::<Vec<_>>());
        }
        let peers: Vec<usize> = fleet.shards.iter().map(|s| s.peers().len()).collect();
        assert_eq!(peers.iter().sum::<usize>(), 8, "each has one session: {peers:?}");
        let drops = fleet.shards.iter().fold(Drops::default(), |all, s| all.plus(s.drops()));
        assert_eq!(drops, Drops::default());
    }
}

impl Fleet {
    fn apart_or_alone(&self) {
        if self.shards.len() > 1 {
            self.apart();
        }
    }
}

#[test]
fn who_calls_is_answered_by_the_tunnel_that_has_it() {
    let mut fleet = Fleet::new(4, 2..10);
    let now = fleet.now;
    fleet.hosts.iter_mut().for_each(|(_, tunnel)| tunnel.handle_timeout(now));
    fleet.settle();
    let ages = fleet.shards.iter().flat_map(|s| s.peers()).map(|p| p.handshake_age);
    assert_eq!(ages.filter(Option::is_some).count(), 8);
}

#[test]
fn a_planned_move_between_peers_of_different_tunnels_leaves_connections_where_they_were() {
    let mut fleet = Fleet::new(2, 2..10);
    let (former, new) = fleet.apart();
    let vip: IpAddr = VIP.parse().unwrap();
    let peers = |holder: u8| {
        let held = |n: u8| {
            let mut p = peer(n);
            p.allowed_ips.extend((n == holder).then(|| IpNet::from(vip)));
            p
        };
        (2..10).map(held).collect::<Vec<_>>()
    };
    fleet.set(&spec(1, 2, peers(former)));
    let to_vip = |port, flags| tcp("10.90.0.1", port, VIP, 6443, flags);
    fleet.send(to_vip(1000, 0x02));
    assert_eq!(fleet.settle()[0].0, former);

    let mut moved = spec(1, 3, peers(new));
    moved.handovers = vec![crate::Handover { address: vip, from: key(former).public() }];
    fleet.set(&moved);
    // Each twice, so that both tunnels read one.
    for _ in 0..2 {
        fleet.send(to_vip(1000, 0x10));
        assert_eq!(fleet.settle().iter().map(|(n, _)| *n).collect::<Vec<_>>(), [former]);
    }
    for flags in [0x02, 0x10, 0x10, 0x10] {
        fleet.send(to_vip(2000, flags));
        assert_eq!(fleet.settle().iter().map(|(n, _)| *n).collect::<Vec<_>>(), [new]);
    }
    // A tunnel that has not heard of the move yet gives the packet to the former holder's, which has.
    let other = fleet.shards[0].shard.of_key(&key(new).public()) as usize;
    fleet.shards[other] = T::of(Shard::all(2).nth(other).unwrap(), 1);
    let now = fleet.now;
    fleet.shards[other].set_spec(&spec(1, 2, peers(former)), now);
    fleet.shards[other].handle_tun(to_vip(1000, 0x10).as_mut_slice(), now);
    assert_eq!(fleet.settle().iter().map(|(n, _)| *n).collect::<Vec<_>>(), [former]);

    let answer = tcp(VIP, 6443, "10.90.0.1", 1000, 0x10);
    let sends = fleet.hosts.iter_mut().find(|(n, _)| *n == former).unwrap();
    sends.1.handle_tun(answer.clone().as_mut_slice(), now);
    assert_eq!(fleet.settle(), [(1, answer)]);
}

#[test]
fn tunnels_whose_specs_differ_for_a_moment_do_not_pass_a_packet_to_and_fro() {
    let mut fleet = Fleet::new(2, 2..10);
    let (one, other) = fleet.apart();
    let with = |generation, n: u8| {
        let mut p = peer(n);
        p.allowed_ips = vec![IpNet::from(overlay(77))];
        spec(1, generation, vec![p])
    };
    // Each takes the address for a peer of the other's.
    let shard = |n: u8| fleet.shards[0].shard.of_key(&key(n).public()) as usize;
    let (a, b) = (shard(one), shard(other));
    let now = fleet.now;
    fleet.shards[a].set_spec(&with(2, other), now);
    fleet.shards[b].set_spec(&with(2, one), now);
    fleet.send(hello(1, 77, b"x"));
    assert!(fleet.settle().is_empty());
    assert_eq!(fleet.shards[a].drops().unroutable + fleet.shards[b].drops().unroutable, 1);
}

proptest! {
    #[test]
    fn indexes_stay_with_their_tunnel_when_they_wrap_around(wanted in 0u32..20, from in any::<u32>(), steps in 0u32..5) {
        for shard in Shard::all(wanted) {
            let mut index = shard.index_from(from & INDEX_MAX);
            for _ in 0..steps {
                index = (index + shard.count()) & INDEX_MAX;
            }
            prop_assert!(shard.has_index(index) && index <= INDEX_MAX);
            // As the kernel's program has it: the lowest bits of what is behind the counter.
            prop_assert_eq!(shard.of_index(index), index & (shard.count() - 1));
        }
    }
}
