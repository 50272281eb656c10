//! A run as a picture: for each case, the cumulative distribution of gaps, as SVG. Pure.

use std::fmt::Write as _;

use super::record::Clock;
use super::stats::distribution;
use super::trial::{Case, Outcome};

const PANEL: (f64, f64) = (380.0, 250.0);
const MARGIN: (f64, f64, f64, f64) = (46.0, 16.0, 34.0, 34.0);
const COLUMNS: usize = 2;
const HEAD: f64 = 80.0;
/// The axis is logarithmic between these, in milliseconds; what is below stands at its left end.
const AXIS: (f64, f64) = (10.0, 100_000.0);
const TICKS: [(f64, &str); 5] = [
    (10.0, "≤ 10 ms"),
    (100.0, "100 ms"),
    (1_000.0, "1 s"),
    (10_000.0, "10 s"),
    (100_000.0, "100 s"),
];
const COLOURS: [&str; 6] = ["#0b6e4f", "#1f77b4", "#8e44ad", "#d35400", "#c0a000", "#7f8c8d"];

/// One curve of a panel.
struct Curve {
    name: String,
    gaps: Vec<f64>,
}

/// Renders everything.
pub fn svg(outcome: &Outcome) -> String {
    let mut cases: Vec<Case> =
        outcome.systems.iter().flat_map(|s| s.cases.iter().map(|c| c.case)).collect();
    cases.sort_unstable();
    cases.dedup();
    let names = names(outcome);
    let rows = cases.len().div_ceil(COLUMNS).max(1);
    let (width, height) = (PANEL.0 * to_f64(COLUMNS), HEAD + PANEL.1 * to_f64(rows));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let setting = &outcome.setting;
    let title = "Time without an answer: share of trials that were back by then";
    label(&mut text, (12.0, 18.0), "start", title);
    let about = format!("{}, commit {}, K3s {}", setting.date, setting.commit, setting.k3s);
    label(&mut text, (12.0, 34.0), "start", &about);
    for (i, name) in names.iter().enumerate() {
        let x = 12.0 + 248.0 * to_f64(i % 3);
        let y = 52.0 + 16.0 * to_f64(i / 3);
        let _ = writeln!(
            text,
            "<line x1=\"{x:.0}\" y1=\"{0:.0}\" x2=\"{1:.0}\" y2=\"{0:.0}\" stroke=\"{2}\" stroke-width=\"{3:.1}\"/>",
            y - 4.0,
            x + 20.0,
            colour(i),
            breadth(i)
        );
        label(&mut text, (x + 26.0, y), "start", name);
    }
    for (i, case) in cases.iter().enumerate() {
        let at = (PANEL.0 * to_f64(i % COLUMNS), HEAD + PANEL.1 * to_f64(i / COLUMNS));
        panel(&mut text, at, *case, &curves(outcome, *case), &names);
    }
    text.push_str("</svg>\n");
    text
}

#[expect(clippy::cast_precision_loss, reason = "panels are few")]
fn to_f64(n: usize) -> f64 {
    n as f64
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// The later a curve is drawn, the narrower, so that what lies below equal ones shows.
fn breadth(index: usize) -> f64 {
    (6.0 - 1.1 * to_f64(index)).max(1.2)
}

fn name(system: &str, clock: Clock) -> String {
    format!("{system}, {}", clock.title())
}

/// Every curve's name once, in the order in which they come.
fn names(outcome: &Outcome) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for system in &outcome.systems {
        for clock in Clock::ALL {
            let new = name(&system.name, clock);
            let there = system.cases.iter().any(|c| !c.gaps(clock).is_empty());
            if there && !names.contains(&new) {
                names.push(new);
            }
        }
    }
    names
}

fn curves(outcome: &Outcome, case: Case) -> Vec<Curve> {
    let mut curves = Vec::new();
    for system in &outcome.systems {
        let Some(result) = system.case(case) else { continue };
        for clock in Clock::ALL {
            let gaps = result.gaps(clock);
            if !gaps.is_empty() {
                curves.push(Curve { name: name(&system.name, clock), gaps });
            }
        }
    }
    curves
}

fn label(text: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        text,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222222\">{words}</text>"
    );
}

/// Where a gap stands on a panel's axis, as a share of its width.
fn along(gap_ms: f64) -> f64 {
    let clamped = gap_ms.clamp(AXIS.0, AXIS.1);
    (clamped / AXIS.0).log10() / (AXIS.1 / AXIS.0).log10()
}

fn panel(text: &mut String, at: (f64, f64), case: Case, curves: &[Curve], names: &[String]) {
    let (left, right, top, bottom) = MARGIN;
    let (x0, y0) = (at.0 + left, at.1 + top);
    let (w, h) = (PANEL.0 - left - right, PANEL.1 - top - bottom);
    label(text, (x0, y0 - 8.0), "start", case.title());
    for (gap, words) in TICKS {
        let x = x0 + w * along(gap);
        grid(text, (x, y0), (x, y0 + h));
        label(text, (x, y0 + h + 15.0), "middle", words);
    }
    for share in [0.0, 0.5, 1.0] {
        let y = y0 + h * (1.0 - share);
        grid(text, (x0, y), (x0 + w, y));
        label(text, (x0 - 6.0, y + 4.0), "end", &format!("{:.0} %", share * 100.0));
    }
    for curve in curves {
        let index = names.iter().position(|n| *n == curve.name).unwrap_or_default();
        let mut path = String::new();
        let mut before = 0.0;
        for (gap, share) in distribution(&curve.gaps) {
            let x = x0 + w * along(gap);
            let verb = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{verb}{x:.1} {:.1} ", y0 + h * (1.0 - before));
            let _ = write!(path, "L{x:.1} {:.1} ", y0 + h * (1.0 - share));
            before = share;
        }
        let _ = writeln!(
            text,
            "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{:.1}\"/>",
            path.trim_end(),
            colour(index),
            breadth(index)
        );
    }
}

fn grid(text: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        text,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#dddddd\"/>",
        from.0, from.1, to.0, to.1
    );
}

#[cfg(test)]
mod tests {
    use super::super::trial::Setting;
    use super::*;

    #[test]
    fn the_axis_is_logarithmic_and_ends() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(along(0.0), 0.0) && near(along(10.0), 0.0));
        assert!(near(along(1_000.0), 0.5));
        assert!(near(along(1e9), 1.0));
    }

    #[test]
    fn an_empty_run_is_a_picture_all_the_same() {
        let setting = Setting {
            date: "today".into(),
            commit: "a<b".into(),
            machine: String::new(),
            k3s: "rehearsal".into(),
            trials: 0,
            every_ms: 20,
        };
        let outcome =
            Outcome { schema: 1, setting, systems: vec![], verdicts: vec![], broken_off: None };
        let text = svg(&outcome);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert!(text.contains("a&lt;b"));
    }
}
