//! What is known of the way to a peer: how long it takes, how much gets lost, how large packets may be. Pure.
//!
//! In rounds a small echo request goes through the tunnel, and beside it a large one where the way's MTU is sought or confirmed
//! (Packetization Layer Path MTU Discovery, RFC 8899). A large one counts as lost only if its small companion was answered:
//! so no outage is taken for a small MTU.

use std::time::{Duration, Instant};

/// Between two rounds while nothing is sought.
const PERIOD: Duration = Duration::from_secs(15);
/// An answer that takes longer counts as lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// A large request's answer may come later than its companion's by this, and by four round trips.
const SLACK: Duration = Duration::from_millis(200);
/// A size does not pass once this many in a row were lost (MAX_PROBES of RFC 8899, section 5.1.2).
const TRIES: u8 = 3;
/// Known to be closer than this, the search is over; in bytes.
const STEP: u16 = 4;
/// What every way carries, if need be in fragments: the least MTU of IPv6 (RFC 8200, section 5), in bytes.
const FLOOR: u16 = 1_280;
/// After this a way that was found narrow is tried anew (PMTU_RAISE_TIMER of RFC 8899, section 5.1.1).
const RAISE: Duration = Duration::from_secs(600);
/// A way that carried this much since the last round is worth a large request, in bytes.
const BUSY: u64 = 64 * 1024;
/// How many of the last rounds losses are counted in.
const REMEMBERED: u32 = 32;

/// The search for a way's MTU.
#[derive(Clone, Debug)]
struct Search {
    /// The network's own MTU: more is never sent.
    ceiling: u16,
    /// The largest that passed.
    known: u16,
    /// The smallest that did not.
    bad: Option<u16>,
    /// Whether anything did not, so that only what is known to pass counts.
    narrow: bool,
    proven: bool,
    failures: u8,
    settled: Option<Instant>,
}

impl Search {
    fn new(ceiling: u16) -> Self {
        let known = FLOOR.min(ceiling);
        let (bad, settled) = (None, None);
        Self { ceiling, known, bad, narrow: false, proven: false, failures: 0, settled }
    }

    /// What may be sent now.
    fn limit(&self) -> u16 {
        if self.narrow { self.known } else { self.ceiling }
    }

    /// The size to be tried next, if there is one.
    fn next(&mut self, busy: bool, now: Instant) -> Option<u16> {
        // A loss is looked into at once, even if nothing is sent any more.
        let busy = busy || self.failures > 0;
        if let Some(bad) = self.bad {
            if bad - self.known > STEP {
                return Some(u16::midpoint(self.known, bad));
            }
            let settled = *self.settled.get_or_insert(now);
            if now.saturating_duration_since(settled) < RAISE {
                return busy.then_some(self.known).filter(|known| *known > FLOOR);
            }
            self.bad = None;
            self.settled = None;
        }
        let sought = !self.proven || self.known < self.ceiling;
        (sought || busy).then_some(self.ceiling)
    }

    /// Whether a size is being sought rather than confirmed.
    fn seeks(&self) -> bool {
        match self.bad {
            Some(bad) => bad - self.known > STEP,
            None => !self.proven || self.known < self.ceiling,
        }
    }

    fn passed(&mut self, size: u16) {
        self.failures = 0;
        self.proven = true;
        self.known = self.known.max(size);
        self.bad = self.bad.filter(|bad| *bad > size);
        if size == self.ceiling {
            self.narrow = false;
        }
    }

    fn failed(&mut self, size: u16) {
        self.failures += 1;
        if self.failures < TRIES {
            return;
        }
        self.failures = 0;
        self.narrow = true;
        self.proven = true;
        self.settled = None;
        if size <= self.known {
            self.known = FLOOR.min(self.ceiling);
        }
        self.bad = (size > self.known).then_some(size);
    }
}

/// One round that is under way.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// The small request's number; the large one has the next.
    sequence: u16,
    at: Instant,
    until: Instant,
    small: Option<Duration>,
    large: Option<(u16, bool)>,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Requests {
    /// The small one's number; the large one has the next.
    pub(super) sequence: u16,
    /// The large one's size, in bytes.
    pub(super) large: Option<u16>,
}

/// What is known of the way to one peer.
#[derive(Clone, Debug)]
pub(super) struct Probes {
    next: Option<Instant>,
    round: Option<Round>,
    sequence: u16,
    smoothed: Option<Duration>,
    /// The last rounds, newest in the lowest bit: whether they were answered.
    outcomes: u32,
    rounds: u32,
    carried: u64,
    search: Search,
    finished: Option<Option<Duration>>,
}

impl Probes {
    /// Knows nothing yet of a way in a network with this MTU.
    pub(super) fn new(mtu: u16) -> Self {
        Self {
            next: None,
            round: None,
            sequence: 0,
            smoothed: None,
            outcomes: 0,
            rounds: 0,
            carried: 0,
            search: Search::new(mtu),
            finished: None,
        }
    }

    /// Takes over the network's MTU; another one begins the search anew.
    pub(super) fn set_mtu(&mut self, mtu: u16) {
        if self.search.ceiling != mtu {
            self.search = Search::new(mtu);
            self.next = None;
            self.forget_large();
        }
    }

    /// What was sent for another search is no answer to this one.
    fn forget_large(&mut self) {
        if let Some(round) = &mut self.round {
            round.large = None;
        }
    }

    /// Forgets what held for another way.
    pub(super) fn begin_anew(&mut self) {
        self.search = Search::new(self.search.ceiling);
        self.smoothed = None;
        self.next = None;
        self.forget_large();
    }

    /// The largest packet that may be sent, in bytes.
    pub(super) fn limit(&self) -> u16 {
        self.search.limit()
    }

    /// The MTU that was found, in bytes.
    pub(super) fn path_mtu(&self) -> Option<u16> {
        self.search.proven.then(|| self.search.limit())
    }

    /// The smoothed round trip (RFC 6298, section 2).
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.smoothed
    }

    /// How many of how many requests were not answered, lately; nothing of a peer that never answers any.
    pub(super) fn lost(&self) -> Option<(u32, u32)> {
        let answered = self.outcomes.count_ones();
        (answered > 0).then(|| (self.rounds - answered, self.rounds))
    }

    /// Lets the next round begin at once.
    pub(super) fn hasten(&mut self) {
        self.next = None;
    }

    /// Ends a round whose time is over and says what to send if the next one is due. `carried` is all that went to the peer so
    /// far, in bytes; an MTU is sought only where `seek`.
    pub(super) fn tick(&mut self, carried: u64, seek: bool, now: Instant) -> Option<Requests> {
        if let Some(round) = self.round {
            if now < round.until {
                return None;
            }
            self.end(round, now);
        }
        if self.next.is_some_and(|at| now < at) {
            return None;
        }
        let busy = carried.wrapping_sub(self.carried) >= BUSY;
        self.carried = carried;
        let large = if seek { self.search.next(busy, now) } else { None };
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(2);
        let until = now + PATIENCE;
        let large_pending = large.map(|size| (size, false));
        self.round = Some(Round { sequence, at: now, until, small: None, large: large_pending });
        Some(Requests { sequence, large })
    }

    /// Takes in an answer.
    pub(super) fn heard(&mut self, sequence: u16, now: Instant) {
        let Some(round) = &mut self.round else {
            return;
        };
        let took = now.saturating_duration_since(round.at);
        if sequence == round.sequence && round.small.is_none() {
            round.small = Some(took);
            round.until = round.until.min(now + took * 4 + SLACK);
        } else if sequence == round.sequence.wrapping_add(1)
            && let Some((_, answered)) = &mut round.large
        {
            *answered = true;
        }
        let round = *round;
        if round.small.is_some() && round.large.is_none_or(|(_, answered)| answered) {
            self.end(round, now);
        }
    }

    fn end(&mut self, round: Round, now: Instant) {
        self.round = None;
        self.finished = Some(round.small);
        self.rounds = (self.rounds + 1).min(REMEMBERED);
        self.outcomes = self.outcomes << 1 | u32::from(round.small.is_some());
        if let Some(took) = round.small {
            self.smoothed = Some(self.smoothed.map_or(took, |before| (before * 7 + took) / 8));
        }
        match round.large {
            Some((size, true)) => self.search.passed(size),
            Some((size, false)) if round.small.is_some() => self.search.failed(size),
            _ => {}
        }
        // While nobody answers there is nothing to be found.
        let soon = self.search.seeks() && round.small.is_some();
        self.next = Some(if soon || self.search.failures > 0 { now } else { now + PERIOD });
    }

    /// Returns how the last round ended, once: the round trip, or nothing if it was not answered.
    pub(super) fn take_finished(&mut self) -> Option<Option<Duration>> {
        self.finished.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MTU: u16 = 1_420;
    const TICK: Duration = Duration::from_millis(250);

    /// Lives through `rounds` with a way of this MTU; without one nothing is answered.
    fn live(probes: &mut Probes, now: &mut Instant, rounds: usize, way: Option<u16>) -> Vec<u16> {
        let mut tried = Vec::new();
        let mut carried = 0;
        for _ in 0..rounds {
            let requests = loop {
                *now += TICK;
                carried += BUSY;
                if let Some(requests) = probes.tick(carried, true, *now) {
                    break requests;
                }
            };
            tried.extend(requests.large);
            let trip = Duration::from_millis(20);
            if let Some(way) = way {
                probes.heard(requests.sequence, *now + trip);
                if requests.large.is_some_and(|size| size <= way) {
                    probes.heard(requests.sequence.wrapping_add(1), *now + trip);
                }
            }
        }
        tried
    }

    fn begin() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[test]
    fn a_wide_way_is_confirmed_by_one_request() {
        let (mut probes, mut now) = (Probes::new(MTU), begin());
        assert_eq!((probes.limit(), probes.path_mtu()), (MTU, None));
        assert_eq!(live(&mut probes, &mut now, 1, Some(1_500)), [MTU]);
        assert_eq!((probes.limit(), probes.path_mtu()), (MTU, Some(MTU)));
        assert_eq!(probes.round_trip(), Some(Duration::from_millis(20)));
        assert_eq!(probes.lost(), Some((0, 1)));
        let mut idle = probes.clone();
        idle.carried = 0;
        assert_eq!(
            idle.tick(0, true, now + PERIOD * 2).unwrap().large,
            None,
            "an idle way is left alone"
        );
    }

    #[test]
    fn silence_is_no_small_mtu() {
        let (mut probes, mut now) = (Probes::new(MTU), begin());
        live(&mut probes, &mut now, 20, None);
        assert_eq!((probes.limit(), probes.path_mtu(), probes.lost()), (MTU, None, None));
        live(&mut probes, &mut now, 1, Some(MTU));
        live(&mut probes, &mut now, 40, None);
        assert_eq!((probes.limit(), probes.path_mtu()), (MTU, Some(MTU)));
        assert_eq!(probes.lost(), None, "what was answered long ago is forgotten");
    }

    #[test]
    fn a_way_that_becomes_narrow_is_noticed_and_one_that_becomes_wide_again_too() {
        let (mut probes, mut now) = (Probes::new(MTU), begin());
        live(&mut probes, &mut now, 3, Some(MTU));
        live(&mut probes, &mut now, 30, Some(1_340));
        assert!((1_336..=1_340).contains(&probes.limit()), "{}", probes.limit());
        live(&mut probes, &mut now, 60, Some(1_300));
        assert!((1_296..=1_300).contains(&probes.limit()), "{}", probes.limit());
        let before = now;
        live(&mut probes, &mut now, 200, Some(MTU));
        assert!(now.duration_since(before) > RAISE);
        assert_eq!(probes.limit(), MTU);
    }

    #[test]
    fn a_loss_is_looked_into_although_traffic_has_stopped() {
        let (mut probes, mut now) = (Probes::new(MTU), begin());
        live(&mut probes, &mut now, 3, Some(MTU));
        // Busy once, and silent from then on.
        let (carried, mut larges) = (probes.carried + BUSY, Vec::new());
        let until = now + PERIOD * 3;
        while now < until {
            now += TICK;
            let Some(requests) = probes.tick(carried, true, now) else { continue };
            probes.heard(requests.sequence, now + Duration::from_millis(1));
            larges.extend(requests.large);
            if requests.large.is_some_and(|size| size <= 1_320) {
                probes.heard(requests.sequence.wrapping_add(1), now + Duration::from_millis(1));
            }
        }
        assert!((1_316..=1_320).contains(&probes.limit()), "{} after {larges:?}", probes.limit());
        assert!(larges.len() < 40, "{larges:?}");
    }

    #[test]
    fn another_mtu_of_the_network_begins_anew() {
        let (mut probes, mut now) = (Probes::new(MTU), begin());
        live(&mut probes, &mut now, 30, Some(1_300));
        probes.set_mtu(MTU);
        assert!(probes.limit() <= 1_300, "nothing changed");
        probes.set_mtu(1_380);
        assert_eq!((probes.limit(), probes.path_mtu()), (1_380, None));
    }

    proptest! {
        #[test]
        fn the_mtu_is_found(mtu in 1_280u16..9_000, way in 1_280u16..9_000) {
            let (mut probes, mut now) = (Probes::new(mtu), begin());
            let sent = live(&mut probes, &mut now, 60, Some(way));
            let (limit, wanted) = (probes.limit(), way.min(mtu));
            prop_assert!(limit <= wanted && wanted - limit <= STEP, "{} of {}", limit, wanted);
            prop_assert!(sent.iter().all(|size| (FLOOR..=mtu).contains(size)));
            prop_assert_eq!(probes.path_mtu(), Some(limit));
        }
    }
}
