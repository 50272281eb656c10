//! A comparison of tunnels as a picture: bars for what counts, as SVG. Pure.

use std::fmt::Write as _;

use super::super::stats::{median, worst};
use super::figures::{self, Beside, Contender, Load, Outcome, Turn};
use super::table::contenders;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 130.0;
const BAR: f64 = 18.0;
const GAP: f64 = 6.0;
const HEAD: f64 = 56.0;
const TITLE: f64 = 24.0;
const COLOURS: [&str; 4] = ["#0b6e4f", "#1f77b4", "#d35400", "#c0a000"];

type Figure = (&'static str, fn(&Turn) -> Option<f64>);

const FIGURES: [Figure; 5] = [
    ("TCP, 1 stream: Gbit/s (more is better)", figures::rate),
    ("TCP, 4 streams: Gbit/s (more is better)", |t| t.flows.get(&Load::Tcp4).map(|f| f.gbit_s)),
    ("Processor seconds per GB, both daemons, TCP (less is better)", figures::cpu),
    ("Ping beside TCP of 200 Mbit/s: ms (less is better)", |t| {
        t.trips.get(&Beside::Paced).map(|t| t.mean_ms)
    }),
    ("Resident memory of the receiver's daemon: MB (less is better)", |t| Some(t.resident_mb[1])),
];

/// Renders everything.
pub fn svg(outcome: &Outcome) -> String {
    let contenders = contenders(outcome);
    let panel = TITLE + (BAR + GAP) * to_f64(contenders.len()) + 14.0;
    let height = HEAD + panel * to_f64(FIGURES.len());
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    label(
        &mut text,
        (12.0, 20.0),
        "Tunnels in user space: medians of the rounds, with the least and the greatest",
    );
    let setting = &outcome.setting;
    let about = format!("{}, commit {}, {} rounds", setting.date, setting.commit, setting.rounds);
    label(&mut text, (12.0, 38.0), &about);
    for (i, (title, of)) in FIGURES.into_iter().enumerate() {
        bars(&mut text, HEAD + panel * to_f64(i), title, outcome, &contenders, of);
    }
    text.push_str("</svg>\n");
    text
}

#[expect(clippy::cast_precision_loss, reason = "bars are few")]
fn to_f64(n: usize) -> f64 {
    n as f64
}

fn bars(
    text: &mut String,
    top: f64,
    title: &str,
    outcome: &Outcome,
    contenders: &[Contender],
    of: fn(&Turn) -> Option<f64>,
) {
    label(text, (12.0, top + 14.0), title);
    let all: Vec<Vec<f64>> = contenders.iter().map(|c| outcome.values(*c, of)).collect();
    let most = worst(&all.concat()).filter(|m| *m > 0.0).unwrap_or(1.0);
    let scale = (WIDTH - LEFT - 90.0) / most;
    for (i, (who, values)) in contenders.iter().zip(&all).enumerate() {
        let y = top + TITLE + (BAR + GAP) * to_f64(i);
        let colour = COLOURS[i % COLOURS.len()];
        label(text, (12.0, y + 13.0), who.title());
        let (Some(middle), Some(most)) = (median(values), worst(values)) else { continue };
        let least = values.iter().copied().fold(most, f64::min);
        let _ = writeln!(
            text,
            "<rect x=\"{LEFT:.0}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR:.0}\" fill=\"{colour}\"/>\n\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{3:.1}\" y2=\"{3:.1}\" stroke=\"#222222\" stroke-width=\"2\"/>",
            (middle * scale).max(1.0),
            LEFT + least * scale,
            LEFT + most * scale,
            y + BAR / 2.0,
        );
        label(text, (LEFT + most * scale + 8.0, y + 13.0), &format!("{middle:.2}"));
    }
}

fn label(text: &mut String, (x, y): (f64, f64), words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::outcome;
    use super::*;

    #[test]
    fn a_picture_has_a_bar_for_everybody_in_every_panel() {
        let found = outcome(&[[(4.0, 2.0), (2.0, 4.0), (1.0, 8.0)]]);
        let svg = svg(&found);
        assert_eq!(svg.matches("<rect x=").count(), FIGURES.len() * 3 - 3, "TCP4 was not measured");
        assert!(svg.contains(">boringtun-cli -t1<") && svg.ends_with("</svg>\n"));
    }
}
