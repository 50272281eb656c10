//! A comparison of tunnels as Markdown. Pure.

use std::fmt::Write as _;

use super::super::stats::{median, worst};
use super::super::table::bounds_if_judged;
use super::figures::{self, Beside, Contender, Load, Outcome, Turn};

/// Renders everything.
pub fn markdown(outcome: &Outcome) -> String {
    let setting = &outcome.setting;
    let mut text = String::from("# Data plane, measured\n\n");
    let built = if setting.optimised { "optimised" } else { "without optimisations: not judged" };
    let _ = writeln!(text, "- date: {}", setting.date);
    let _ = writeln!(text, "- commit: {} ({built})", setting.commit);
    let _ = writeln!(text, "- machine: {}", setting.machine);
    for peer in &setting.peers {
        let _ = writeln!(text, "- peer: {peer}");
    }
    let _ = writeln!(
        text,
        "- two hosts in namespaces on one bridge, with all programs on the same cores, so that throughput is the machine's \
         divided by what everything costs; MTU 1420 in an underlay of 1500; {} silent peers besides; {} rounds in drawn orders, \
         {} s for each load; IPv4 in the tunnel and outside; medians of the rounds (least to greatest)",
        setting.silent, setting.rounds, setting.seconds
    );
    if let Some(why) = &outcome.broken_off {
        let _ = writeln!(text, "\n**Broken off: {why}**");
    }
    let contenders = contenders(outcome);
    flows(&mut text, outcome, &contenders);
    trips(&mut text, outcome, &contenders);
    memory(&mut text, outcome, &contenders);
    ratios(&mut text, outcome, &contenders);
    alone(&mut text, outcome);
    bounds_if_judged(&mut text, "figure", &outcome.verdicts);
    text
}

/// Who was measured.
pub(super) fn contenders(outcome: &Outcome) -> Vec<Contender> {
    let mut found: Vec<Contender> =
        outcome.rounds.iter().flat_map(|r| r.turns.keys().copied()).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn span(values: &[f64], digits: usize) -> String {
    let least = values.iter().copied().min_by(f64::total_cmp);
    match (median(values), least, worst(values)) {
        (Some(middle), Some(least), Some(most)) => {
            format!("{middle:.digits$} ({least:.digits$} to {most:.digits$})")
        }
        _ => "-".into(),
    }
}

fn flows(text: &mut String, outcome: &Outcome, contenders: &[Contender]) {
    text.push_str(
        "\n## Throughput\n\nProcessor seconds per GB that arrived, of the sender's daemon and of the receiver's.\n\n\
         | load | | Gbit/s | sender s/GB | receiver s/GB | lost % |\n|---|---|---|---|---|---|\n",
    );
    for load in Load::ALL {
        for who in contenders {
            let of = |figure: fn(&figures::Flow) -> f64| {
                outcome.values(*who, |t| t.flows.get(&load).map(figure))
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                load.title(),
                who.title(),
                span(&of(|f| f.gbit_s), 2),
                span(&of(|f| f.cpu_s_gb[0]), 2),
                span(&of(|f| f.cpu_s_gb[1]), 2),
                median(&of(|f| f.lost_percent)).map_or_else(|| "-".into(), |l| format!("{l:.0}")),
            );
        }
    }
}

fn trips(text: &mut String, outcome: &Outcome, contenders: &[Contender]) {
    text.push_str(
        "\n## Round trips\n\nOf pings each 10 ms, in milliseconds.\n\n| | | mean | p99 |\n|---|---|---|---|\n",
    );
    for beside in Beside::ALL {
        for who in contenders {
            let of = |figure: fn(&figures::Trips) -> f64| {
                outcome.values(*who, |t| t.trips.get(&beside).map(figure))
            };
            let (mean, p99) = (span(&of(|t| t.mean_ms), 2), span(&of(|t| t.p99_ms), 2));
            let _ = writeln!(text, "| {} | {} | {mean} | {p99} |", beside.title(), who.title());
        }
    }
}

fn memory(text: &mut String, outcome: &Outcome, contenders: &[Contender]) {
    text.push_str(
        "\n## Memory and content\n\nResident memory after all loads, in MB; content that arrived as it was sent, by SHA-256.\n\n\
         | | sender's daemon | receiver's | MiB intact |\n|---|---|---|---|\n",
    );
    for who in contenders {
        let of = |at: usize| span(&outcome.values(*who, |t| Some(t.resident_mb[at])), 1);
        let intact: u64 =
            outcome.rounds.iter().filter_map(|r| Some(r.turns.get(who)?.intact_mib)).sum();
        let _ = writeln!(text, "| {} | {} | {} | {intact} |", who.title(), of(0), of(1));
    }
}

type Figure = (&'static str, fn(&Turn) -> Option<f64>);

fn ratios(text: &mut String, outcome: &Outcome, contenders: &[Contender]) {
    let figures: [Figure; 4] = [
        ("TCP, 1 stream, Gbit/s", figures::rate),
        ("TCP, 4 streams, Gbit/s", |t| t.flows.get(&Load::Tcp4).map(|f| f.gbit_s)),
        ("TCP, 1 stream, processor time per GB", figures::cpu),
        ("UDP at 200 Mbit/s, processor time per GB", |t| {
            t.flows.get(&Load::UdpFixed).map(figures::Flow::cpu)
        }),
    ];
    text.push_str(
        "\n## Skein over others\n\nOf the medians (least to greatest of the rounds).\n\n| figure |",
    );
    let others = || contenders.iter().filter(|c| **c != Contender::Skein);
    for who in others() {
        let _ = write!(text, " {} |", who.title());
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(others().count()));
    text.push('\n');
    for (name, of) in figures {
        let _ = write!(text, "| {name} |");
        for who in others() {
            let ratio = outcome.ratio(*who, of).map(|(of_medians, each)| {
                let least = each.iter().copied().min_by(f64::total_cmp).unwrap_or(of_medians);
                format!("{of_medians:.2} ({least:.2} to {:.2})", worst(&each).unwrap_or(of_medians))
            });
            let _ = write!(text, " {} |", ratio.unwrap_or_else(|| "-".into()));
        }
        text.push('\n');
    }
}

fn alone(text: &mut String, outcome: &Outcome) {
    let alone = &outcome.alone;
    if let Some(relay) = &alone.relay {
        let [from, between, to] = relay.cpu_s_gb;
        let _ = writeln!(
            text,
            "\n## Skein over a third host\n\nOne TCP connection, forwarded by a host between two tunnels: {:.2} Gbit/s; processor \
             seconds per GB: sender {from:.2}, between {between:.2}, receiver {to:.2}.",
            relay.gbit_s
        );
    }
    if !alone.change_ms.is_empty() {
        let _ = writeln!(
            text,
            "\n## A change among 1,000 peers\n\nOne more prefix of one peer, until the packet thread has it: {} ms.",
            span(&alone.change_ms, 2)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::outcome;
    use super::super::figures::{Relay, judge};
    use super::*;

    #[test]
    fn a_report_has_figures_ratios_and_bounds() {
        let mut found =
            outcome(&[[(4.0, 2.0), (2.0, 4.0), (1.0, 8.0)], [(6.0, 1.0), (2.0, 4.0), (1.0, 8.0)]]);
        found.verdicts = judge(&found);
        found.alone.relay = Some(Relay { gbit_s: 1.5, cpu_s_gb: [1.0, 2.0, 3.0] });
        let text = markdown(&found);
        for line in [
            "| TCP, 1 stream | Skein | 5.00 (4.00 to 6.00) | 0.75 (0.50 to 1.00) | 0.75 (0.50 to 1.00) | 0 |",
            "| UDP, unlimited | Skein | - | - | - | - |",
            "| beside TCP of 200 Mbit/s | wireguard-go | 4.00 (4.00 to 4.00) | 4.00 (4.00 to 4.00) |",
            "| boringtun-cli -t1 | 8.0 (8.0 to 8.0) | 9.0 (9.0 to 9.0) | 200 |",
            "| TCP, 1 stream, Gbit/s | 2.50 (2.00 to 3.00) | 5.00 (4.00 to 6.00) |",
            "1.50 Gbit/s; processor seconds per GB: sender 1.00, between 2.00, receiver 3.00.",
            "| TCP, 1 stream | at least 1.8 times that of wireguard-go | 2.50 | yes |",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
    }
}
