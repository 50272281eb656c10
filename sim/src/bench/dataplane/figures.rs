//! From what iperf3, ping and the kernel say to figures, ratios and verdicts. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::stats::median;
use super::super::trial::Verdict;

/// Who carries packets.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// This tree.
    Skein,
    /// WireGuard's own program in user space.
    WireguardGo,
    /// boringtun's program with one thread, which is its fastest here.
    Boringtun,
    /// boringtun's program as it comes, with four threads.
    BoringtunThreads,
}

impl Contender {
    /// What a reader calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Skein => "Skein",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun-cli -t1",
            Self::BoringtunThreads => "boringtun-cli -t4",
        }
    }
}

/// One load's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// What arrived, in Gbit/s of payload.
    pub gbit_s: f64,
    /// What did not, in percent; of UDP only.
    pub lost_percent: f64,
    /// Processor seconds per GB (10^9 bytes) that arrived, of the sender's daemon and of the receiver's.
    pub cpu_s_gb: [f64; 2],
}

impl Flow {
    /// Both daemons' processor seconds per GB.
    pub fn cpu(&self) -> f64 {
        self.cpu_s_gb.iter().sum()
    }
}

/// Round trips, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trips {
    /// On average.
    pub mean_ms: f64,
    /// Half took no longer.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// How many came back.
    pub answered: usize,
}

/// What is measured of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// One TCP connection.
    Tcp1,
    /// Four TCP connections.
    Tcp4,
    /// Datagrams of 1,372 bytes, 200 Mbit/s.
    UdpFixed,
    /// The same, as many as the sender can.
    UdpMax,
}

impl Load {
    /// All of them, in the order in which they are run.
    pub const ALL: [Self; 4] = [Self::Tcp1, Self::Tcp4, Self::UdpFixed, Self::UdpMax];

    /// What a reader calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Tcp1 => "TCP, 1 stream",
            Self::Tcp4 => "TCP, 4 streams",
            Self::UdpFixed => "UDP, 200 Mbit/s",
            Self::UdpMax => "UDP, unlimited",
        }
    }
}

/// What else there is to carry while round trips are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Beside {
    /// Nothing.
    Idle,
    /// A TCP connection of 200 Mbit/s.
    Paced,
    /// A TCP connection as fast as it goes.
    Bulk,
}

impl Beside {
    /// All of them, in the order in which they are run.
    pub const ALL: [Self; 3] = [Self::Idle, Self::Paced, Self::Bulk];

    /// What a reader calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Paced => "beside TCP of 200 Mbit/s",
            Self::Bulk => "beside TCP at full rate",
        }
    }
}

/// One contender's turn in a round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// The loads.
    pub flows: BTreeMap<Load, Flow>,
    /// The round trips.
    pub trips: BTreeMap<Beside, Trips>,
    /// Resident memory of the sender's daemon and of the receiver's after all that, in MB (10^6 bytes).
    pub resident_mb: [f64; 2],
    /// How many MiB were sent as content and arrived as they were.
    pub intact_mib: u64,
    /// The machine's load average over one minute before the turn.
    pub load_before: f64,
}

/// Every contender's turn, one right after the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Its number, from 1 on.
    pub number: u32,
    /// In which order they had their turns.
    pub order: Vec<Contender>,
    /// What they came to.
    pub turns: BTreeMap<Contender, Turn>,
}

/// What passes through a third host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    /// What arrived, in Gbit/s of payload.
    pub gbit_s: f64,
    /// Processor seconds per GB of the sender's daemon, of the one between, and of the receiver's.
    pub cpu_s_gb: [f64; 3],
}

/// Only of Skein.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Alone {
    /// One TCP connection over a third host that forwards.
    pub relay: Option<Relay>,
    /// How long a change of one peer among 1,000 took, in milliseconds.
    pub change_ms: Vec<f64>,
}

/// What was measured where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// When.
    pub date: String,
    /// Skein's commit.
    pub commit: String,
    /// On what.
    pub machine: String,
    /// Whether Skein was built with optimisations.
    pub optimised: bool,
    /// The others' versions.
    pub peers: Vec<String>,
    /// How many rounds were wanted.
    pub rounds: u32,
    /// How long each load ran, in seconds.
    pub seconds: u64,
    /// How many more peers each end had, that are never heard.
    pub silent: u32,
}

/// Everything that a run found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The format of this record.
    pub schema: u32,
    /// What was measured where.
    pub setting: Setting,
    /// Every round.
    pub rounds: Vec<Round>,
    /// Only of Skein.
    pub alone: Alone,
    /// What was promised, and whether it was kept; empty where nothing is judged.
    pub verdicts: Vec<Verdict>,
    /// Why the run ended early, if it did.
    pub broken_off: Option<String>,
}

impl Outcome {
    /// One figure of one contender, from each round that has it.
    pub fn values(&self, who: Contender, of: impl Fn(&Turn) -> Option<f64>) -> Vec<f64> {
        self.rounds.iter().filter_map(|r| of(r.turns.get(&who)?)).collect()
    }

    /// Skein's figure over another's: of the medians, and of each round.
    pub fn ratio(
        &self,
        other: Contender,
        of: impl Fn(&Turn) -> Option<f64>,
    ) -> Option<(f64, Vec<f64>)> {
        let middle = |who| median(&self.values(who, &of));
        let share = |ours: f64, theirs: f64| (theirs > 0.0).then(|| ours / theirs);
        let of_medians = share(middle(Contender::Skein)?, middle(other)?)?;
        let each =
            |r: &Round| share(of(r.turns.get(&Contender::Skein)?)?, of(r.turns.get(&other)?)?);
        Some((of_medians, self.rounds.iter().filter_map(each).collect()))
    }

    /// Whether everything was measured and kept.
    pub fn passed(&self) -> bool {
        self.broken_off.is_none() && self.verdicts.iter().all(|v| v.held)
    }
}

/// In another order each round, drawn from its number: nobody always follows the same one.
pub fn order(number: u32, contenders: &[Contender]) -> Vec<Contender> {
    let mut rest = contenders.to_vec();
    let mut order = Vec::with_capacity(rest.len());
    // The step of a linear congruential generator (Knuth, TAOCP volume 2, section 3.3.4).
    let mut draw = u64::from(number).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    while !rest.is_empty() {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = usize::try_from(draw >> 33).unwrap_or(0) % rest.len();
        order.push(rest.remove(at));
    }
    order
}

/// Reads iperf3's JSON: bits per second that arrived, bytes that arrived, percent lost.
///
/// # Errors
/// What iperf3 says went wrong, or that it was not understood.
pub fn iperf(text: &str) -> Result<(f64, f64, f64), String> {
    let all: Value = serde_json::from_str(text).map_err(|e| format!("iperf3: {e}"))?;
    if let Some(why) = all["error"].as_str() {
        return Err(format!("iperf3: {why}"));
    }
    let end = &all["end"];
    let sum = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
    let lost = end["sum"]["lost_percent"].as_f64().unwrap_or(0.0);
    match (sum["bits_per_second"].as_f64(), sum["bytes"].as_f64()) {
        // Of UDP, old releases count what was sent.
        (Some(bits), Some(bytes)) if end["sum_received"].is_object() => Ok((bits, bytes, lost)),
        (Some(bits), Some(bytes)) => {
            Ok((bits * (1.0 - lost / 100.0), bytes * (1.0 - lost / 100.0), lost))
        }
        _ => Err("iperf3: its answer was not understood".into()),
    }
}

/// Reads the round trips that ping(8) printed.
pub fn trips(text: &str) -> Trips {
    let times = text.split("time=").skip(1);
    let times = times.filter_map(|t| t.split_whitespace().next()?.parse::<f64>().ok());
    let mut times: Vec<f64> = times.collect();
    times.sort_unstable_by(f64::total_cmp);
    let at = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1);
        times.get(rank - 1).copied().unwrap_or(0.0)
    };
    #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
    let mean = times.iter().sum::<f64>() / times.len().max(1) as f64;
    Trips { mean_ms: mean, p50_ms: at(50), p99_ms: at(99), answered: times.len() }
}

/// Reads resident memory from `/proc/PID/status`, in MB (10^6 bytes).
pub fn resident_mb(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

/// Skein's figure over another's must be within this.
struct Bound {
    case: &'static str,
    other: Contender,
    limit: f64,
    at_least: bool,
    of: fn(&Turn) -> Option<f64>,
}

const BOUNDS: [Bound; 5] = [
    Bound {
        case: "processor time per GB, TCP",
        other: Contender::WireguardGo,
        limit: 0.55,
        at_least: false,
        of: cpu,
    },
    Bound {
        case: "processor time per GB, TCP",
        other: Contender::Boringtun,
        limit: 0.35,
        at_least: false,
        of: cpu,
    },
    Bound {
        case: "TCP, 1 stream",
        other: Contender::WireguardGo,
        limit: 1.8,
        at_least: true,
        of: rate,
    },
    Bound {
        case: "TCP, 1 stream",
        other: Contender::Boringtun,
        limit: 3.5,
        at_least: true,
        of: rate,
    },
    Bound {
        case: "ping beside TCP of 200 Mbit/s",
        other: Contender::Boringtun,
        limit: 1.0,
        at_least: false,
        of: paced,
    },
];

/// Resident memory with 100 peers, after load, in MB.
const RESIDENT_MAX: f64 = 15.0;
/// A change of one peer among 1,000, in milliseconds.
const CHANGE_MAX: f64 = 50.0;

/// Both daemons' processor seconds per GB of one TCP connection.
pub fn cpu(turn: &Turn) -> Option<f64> {
    turn.flows.get(&Load::Tcp1).map(Flow::cpu)
}

/// Gbit/s of one TCP connection.
pub fn rate(turn: &Turn) -> Option<f64> {
    turn.flows.get(&Load::Tcp1).map(|f| f.gbit_s)
}

fn paced(turn: &Turn) -> Option<f64> {
    turn.trips.get(&Beside::Paced).map(|t| t.mean_ms)
}

/// Judges a run; without optimisations it would be the compiler that is judged, so nothing is.
pub fn judge(outcome: &Outcome) -> Vec<Verdict> {
    if !outcome.setting.optimised {
        return Vec::new();
    }
    let there = |c: Contender| outcome.rounds.iter().any(|r| r.order.contains(&c));
    let ratios = BOUNDS.iter().filter(|b| there(b.other)).map(|b| {
        let ratio = outcome.ratio(b.other, b.of).map(|(of_medians, _)| of_medians);
        let words = if b.at_least { "at least" } else { "at most" };
        let held = ratio.is_some_and(|r| if b.at_least { r >= b.limit } else { r <= b.limit });
        let measured = ratio.map_or_else(|| "nothing".into(), |r| format!("{r:.2}"));
        let bound = format!("{words} {} times that of {}", b.limit, b.other.title());
        Verdict { case: b.case.into(), bound, measured, held }
    });
    let memory = outcome.values(Contender::Skein, |t| Some(t.resident_mb[0].max(t.resident_mb[1])));
    let absolute = |case: &str, limit: f64, unit: &str, values: &[f64]| {
        let worst = super::super::stats::worst(values);
        Verdict {
            case: case.into(),
            bound: format!("at most {limit} {unit}"),
            measured: worst.map_or_else(|| "nothing".into(), |w| format!("{w:.1} {unit}")),
            held: worst.is_some_and(|w| w <= limit),
        }
    };
    let alone = [
        absolute("resident memory after load", RESIDENT_MAX, "MB", &memory),
        absolute("change of one peer among 1,000", CHANGE_MAX, "ms", &outcome.alone.change_ms),
    ];
    ratios.chain(alone).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn turn(gbit_s: f64, cpu: f64) -> Turn {
        let flow = Flow { gbit_s, lost_percent: 0.0, cpu_s_gb: [cpu / 2.0, cpu / 2.0] };
        let trips = Trips { mean_ms: cpu, p50_ms: cpu, p99_ms: cpu, answered: 9 };
        Turn {
            flows: [(Load::Tcp1, flow)].into(),
            trips: [(Beside::Paced, trips)].into(),
            resident_mb: [8.0, 9.0],
            intact_mib: 100,
            load_before: 0.1,
        }
    }

    /// An outcome with these Gbit/s and processor times of Skein, wireguard-go and boringtun, for each round.
    pub(crate) fn outcome(rounds: &[[(f64, f64); 3]]) -> Outcome {
        let all = [Contender::Skein, Contender::WireguardGo, Contender::Boringtun];
        let round = |(number, figures): (u32, &[(f64, f64); 3])| Round {
            number,
            order: order(number, &all),
            turns: all.into_iter().zip(figures.iter().map(|(g, c)| turn(*g, *c))).collect(),
        };
        let setting = Setting { optimised: true, silent: 99, ..Setting::default() };
        let alone = Alone { relay: None, change_ms: vec![4.0, 3.0] };
        let rounds = (1..).zip(rounds).map(round).collect();
        Outcome { setting, rounds, alone, ..Outcome::default() }
    }

    #[test]
    fn ratios_are_of_medians_and_of_each_round() {
        let found = outcome(&[
            [(4.0, 2.0), (2.0, 4.0), (1.0, 8.0)],
            [(6.0, 1.0), (2.0, 4.0), (1.0, 8.0)],
            [(5.0, 3.0), (2.5, 4.0), (1.0, 8.0)],
        ]);
        let (of_medians, each) = found.ratio(Contender::WireguardGo, rate).unwrap();
        assert!((of_medians - 2.5).abs() < 1e-9);
        assert_eq!(each, [2.0, 3.0, 2.0]);
        assert_eq!(found.ratio(Contender::BoringtunThreads, rate), None);
    }

    #[test]
    fn bounds_hold_and_break_at_their_limits() {
        let held =
            |figures| -> Vec<bool> { judge(&outcome(&[figures])).iter().map(|v| v.held).collect() };
        let good = [(3.5, 0.35), (1.9, 0.64), (1.0, 1.0)];
        assert_eq!(held(good), [true; 7]);
        let slow = [(3.4, 0.36), (1.9, 0.64), (1.0, 1.0)];
        assert_eq!(held(slow), [false, false, false, false, true, true, true]);
        let mut unmeasured = outcome(&[]);
        unmeasured.alone.change_ms.clear();
        assert!(
            judge(&unmeasured).iter().all(|v| !v.held),
            "what was not measured was not reached"
        );
        let mut plain = outcome(&[slow]);
        plain.setting.optimised = false;
        assert_eq!(judge(&plain), []);
    }

    #[test]
    fn every_round_has_everybody_and_orders_differ() {
        let all = [
            Contender::Skein,
            Contender::WireguardGo,
            Contender::Boringtun,
            Contender::BoringtunThreads,
        ];
        let mut firsts = std::collections::BTreeSet::new();
        for number in 1..=8 {
            let drawn = order(number, &all);
            let mut sorted = drawn.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, all);
            firsts.insert(drawn[0]);
        }
        assert!(firsts.len() > 1, "{firsts:?}");
    }

    #[test]
    fn others_words_are_understood() {
        let tcp = r#"{"end":{"sum_received":{"bits_per_second":2e9,"bytes":1e9}}}"#;
        assert_eq!(iperf(tcp), Ok((2e9, 1e9, 0.0)));
        let udp = r#"{"end":{"sum":{"bits_per_second":2e8,"bytes":1e8,"lost_percent":25.0}}}"#;
        assert_eq!(iperf(udp), Ok((1.5e8, 7.5e7, 25.0)));
        assert!(iperf(r#"{"error":"no route"}"#).unwrap_err().contains("no route"));
        assert!(iperf("{}").is_err() && iperf("x").is_err());
        let text = "64 bytes: icmp_seq=1 time=0.5 ms\n64 bytes: icmp_seq=2 time=1.5 ms\n";
        assert_eq!(trips(text), Trips { mean_ms: 1.0, p50_ms: 0.5, p99_ms: 1.5, answered: 2 });
        assert_eq!(trips("nobody"), Trips::default());
        assert_eq!(resident_mb("VmRSS:\t 1000 kB\n"), Some(1.024));
    }
}
