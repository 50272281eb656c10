//! A comparison of consensus as Markdown. Pure.

use std::fmt::Write as _;

use super::super::stats::{median, worst};
use super::super::table::bounds_if_judged;
use super::super::verdict::seconds;
use super::figures::{Figures, Load, Outcome, System};

/// Renders everything.
pub fn markdown(outcome: &Outcome) -> String {
    let setting = &outcome.setting;
    let mut text = String::from("# Consensus, measured\n\n");
    let built = if setting.optimised { "optimised" } else { "without optimisations: not judged" };
    let _ = writeln!(text, "- date: {}", setting.date);
    let _ = writeln!(text, "- commit: {} ({built})", setting.commit);
    let _ = writeln!(text, "- machine: {}", setting.machine);
    let _ = writeln!(text, "- peer: {}", setting.etcd);
    let _ = writeln!(text, "- data: {}", setting.disk);
    let _ = writeln!(
        text,
        "- three processes each on loopback, mutual TLS to clients and peers, every write synced to the disk; clients are \
         Rust over gRPC at the leader, 64 of them on 8 connections; values of {} bytes; {} rounds, in which the systems \
         take turns, each on fresh folders; {} s for each load",
        setting.value_bytes, setting.rounds, setting.seconds
    );
    text.push_str(
        "- Skein: its daemon with log, state machine, loops and wire, without K3s and overlay; a put is an event in replicated \
         state, proposed as a follower forwards it; a read is the API's newest event, linearizable\n",
    );
    if let Some(why) = &outcome.broken_off {
        let _ = writeln!(text, "\n**Broken off: {why}**");
    }
    loads(&mut text, outcome);
    gaps(&mut text, outcome);
    rounds(&mut text, outcome);
    bounds_if_judged(&mut text, "load", &outcome.verdicts);
    text
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |v| format!("{v:.digits$}"))
}

fn loads(text: &mut String, outcome: &Outcome) {
    text.push_str(
        "\n## Load\n\nMedians of the rounds; worst of all rounds. Share: Skein's per second over etcd's, of the medians \
         (least to greatest of the rounds).\n\n\
         | load | system | per second | p50 ms | p99 ms | worst ms | failed | share |\n|---|---|---|---|---|---|---|---|\n",
    );
    for load in Load::ALL {
        for system in [System::Etcd, System::Skein] {
            let middle = |of: fn(&Figures) -> f64| median(&outcome.values(system, load, of));
            #[expect(clippy::cast_precision_loss, reason = "failures are few")]
            // From 0.0 on, as the sum of nothing is -0.0.
            let failed =
                outcome.values(system, load, |f| f.failed as f64).iter().fold(0.0, |a, b| a + b);
            let share = match (system, outcome.share(load)) {
                (System::Skein, Some((of_medians, each))) => {
                    format!("{of_medians:.2} ({})", span(&each))
                }
                _ => String::new(),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {failed:.0} | {share} |",
                load.title(),
                system.title(),
                number(middle(|f| f.per_second), 0),
                number(middle(|f| f.p50_ms), 2),
                number(middle(|f| f.p99_ms), 2),
                number(worst(&outcome.values(system, load, |f| f.worst_ms)), 1),
            );
        }
    }
}

fn span(values: &[f64]) -> String {
    let least = values.iter().copied().min_by(f64::total_cmp);
    format!("{} to {}", number(least, 2), number(worst(values), 2))
}

fn gaps(text: &mut String, outcome: &Outcome) {
    text.push_str(
        "\n## Loss of the leader\n\nFrom SIGKILL of the leader to the next acknowledged put at another member, tried each 20 ms.\n\n\
         | system | trials | least | median | worst |\n|---|---|---|---|---|\n",
    );
    for system in System::ALL {
        let gaps = outcome.gaps(system);
        let least = gaps.iter().copied().min_by(f64::total_cmp);
        if let (Some(least), Some(middle), Some(worst)) = (least, median(&gaps), worst(&gaps)) {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                system.title(),
                gaps.len(),
                seconds(least),
                seconds(middle),
                seconds(worst)
            );
        }
    }
}

fn rounds(text: &mut String, outcome: &Outcome) {
    text.push_str("\n## Rounds\n\n| round | first | system | load average before |");
    for load in Load::ALL {
        let _ = write!(text, " {} /s |", load.title());
    }
    text.push_str("\n|---|---|---|---|---|---|---|\n");
    for round in &outcome.rounds {
        let first = round.order.first().map_or("", |s| s.title());
        for system in [System::Etcd, System::Skein] {
            let Some(turn) = round.turns.get(&system) else {
                continue;
            };
            let _ = write!(
                text,
                "| {} | {first} | {} | {:.2} |",
                round.number,
                system.title(),
                turn.load_before
            );
            for load in Load::ALL {
                let _ =
                    write!(text, " {} |", number(turn.loads.get(&load).map(|f| f.per_second), 0));
            }
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::judge;
    use super::super::figures::tests::outcome;
    use super::*;

    #[test]
    fn a_report_has_figures_shares_and_bounds() {
        let mut found = outcome(&[(1_000.0, 950.0), (2_000.0, 1_000.0)]);
        found.verdicts = judge(&found);
        let text = markdown(&found);
        for line in [
            "| puts, 64 clients | etcd | 1500 | 0.00 | 0.00 | 0.0 | 0 |  |",
            "| puts, 64 clients | Skein | 975 | 0.00 | 0.00 | 0.0 | 0 | 0.65 (0.50 to 0.95) |",
            "| linearizable reads, 64 clients | Skein | - | - | - | - | 0 |  |",
            "| Skein | 2 | 950 ms | 975 ms | 1.00 s |",
            "| 2 | Skein | etcd | 0.50 | 2000 | 2000 | - |",
            "| puts, 64 clients | at least 0.9 of etcd's per second | 0.65 | **no** |",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn what_is_not_judged_is_said() {
        let mut slow = outcome(&[(1_000.0, 10.0)]);
        slow.setting.optimised = false;
        assert!(markdown(&slow).contains("Nothing was judged."));
    }
}
