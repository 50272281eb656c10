//! What idle daemons cost, as Markdown. Pure.

use std::fmt::Write as _;

use super::super::stats::{median, worst};
use super::super::table::bounds_if_judged;
use super::figures::{Outcome, Usage};

/// What is shown of each daemon: a title, and the figure.
type Column = (&'static str, fn(&Usage) -> f64, usize);

const COLUMNS: [Column; 6] = [
    ("resident MB", |u| u.resident_mb, 1),
    ("proportional MB", |u| u.proportional_mb, 1),
    ("CPU %", |u| u.cpu_percent, 2),
    ("CPU % of its children", |u| u.children_percent, 2),
    ("received B/s", |u| u.received_per_s, 0),
    ("sent B/s", |u| u.sent_per_s, 0),
];

/// Renders everything.
pub fn markdown(outcome: &Outcome) -> String {
    let setting = &outcome.setting;
    let mut text = String::from("# Footprint, measured\n\n");
    let built = if setting.optimised { "optimised" } else { "without optimisations: not judged" };
    let _ = writeln!(text, "- date: {}", setting.date);
    let _ = writeln!(text, "- commit: {} ({built})", setting.commit);
    let _ = writeln!(text, "- machine: {}", setting.machine);
    let _ = writeln!(
        text,
        "- real daemons in the lab's hosts, members of one cluster of the rehearsal, measured over {} s in which nothing \
         happens; MB are 10^6 bytes, CPU is of one core, bytes are those of the host's underlay device, the rehearsal's own \
         included; joins are made one after the other",
        setting.seconds
    );
    if let Some(why) = &outcome.broken_off {
        let _ = writeln!(text, "\n**Broken off: {why}**");
    }
    text.push_str(
        "\n## Joining\n\n| daemons | first start to last ready | load average before |\n|---|---|---|\n",
    );
    for fleet in &outcome.fleets {
        let _ = writeln!(
            text,
            "| {} | {:.1} s | {:.2} |",
            fleet.daemons, fleet.join_s, fleet.load_before
        );
    }
    costs(&mut text, outcome);
    bounds_if_judged(&mut text, "who", &outcome.verdicts);
    text
}

fn costs(text: &mut String, outcome: &Outcome) {
    text.push_str("\n## Idle\n\nFollowers: median (worst).\n\n| daemons | who |");
    for (title, ..) in COLUMNS {
        let _ = write!(text, " {title} |");
    }
    text.push_str("\n|---|---|---|---|---|---|---|---|\n");
    for fleet in &outcome.fleets {
        for (leader, who) in [(true, "leader"), (false, "follower")] {
            let _ = write!(text, "| {} | {who} |", fleet.daemons);
            for (_, of, digits) in COLUMNS {
                let values = fleet.values(leader, of);
                let _ = match (median(&values), worst(&values)) {
                    (Some(middle), Some(worst)) if values.len() > 1 => {
                        write!(text, " {middle:.digits$} ({worst:.digits$}) |")
                    }
                    (Some(middle), _) => write!(text, " {middle:.digits$} |"),
                    _ => write!(text, " - |"),
                };
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
    fn a_report_has_both_roles_and_bounds() {
        let mut found = outcome(&[(0.5, 20.0), (1.5, 40.0)]);
        found.verdicts = judge(&found);
        let text = markdown(&found);
        for line in [
            "| 5 | 1.5 s | 0.50 |",
            "| 5 | leader | 90.0 | 0.0 | 9.00 | 0.00 | 0 | 0 |",
            "| 5 | follower | 30.0 (40.0) | 0.0 (0.0) | 1.00 (1.50) | 0.00 (0.00) | 0 (0) | 0 (0) |",
            "| 20 | leader | - | - | - | - | - | - |",
            "| follower of 5 | resident at most 30 MB | 40.00 MB | **no** |",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
    }
}
