//! A recording as one SVG that moves without a script, and shows its end where nothing moves. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::film::{Film, Strip};
use super::screen::{Ink, Line, Size};

const CELL: (f64, f64) = (8.4, 18.0);
const PAD: f64 = 16.0;
const BAR: f64 = 36.0;
const FOOT: f64 = 30.0;
/// Of a line's height, what lies above the foot of its letters.
const ASCENT: f64 = 13.5;
/// Readable on the terminal's own ground, whatever the page behind has.
const STYLE: &str = "\
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace;fill:#d1d7e0;white-space:pre}\
.b{font-weight:700;fill:#f0f6fc}.d{fill:#8b949e}.c{font-size:12px;fill:#8b949e}\
.k{animation:k 0s}.o{visibility:hidden;animation:o 0s}\
@keyframes k{from,to{visibility:hidden}}@keyframes o{from,to{visibility:visible}}";
/// Who asked for less motion gets the end at once.
const STILL: &str = "@media(prefers-reduced-motion:reduce){.k,.o,.r{animation:none}}";

/// What stands around a recording.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// In the bar above.
    pub title: &'a str,
    /// Below the screen.
    pub caption: &'a str,
}

/// Draws it: a screen that plays once and holds its end.
#[must_use]
pub fn svg(film: &Film, size: Size, labels: Labels<'_>) -> String {
    let (columns, rows) = (f64::from(size.columns.get()), f64::from(size.rows.get()));
    let (width, height) = (columns * CELL.0, rows * CELL.1);
    let (all, tall) = (width + 2.0 * PAD, BAR + height + FOOT + PAD);
    let title = escape(labels.title);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {all:.0} {tall:.0}\" width=\"{all:.0}\" \
         height=\"{tall:.0}\" xml:space=\"preserve\" role=\"img\">\n<title>{title}</title>\n\
         <style>{STYLE}{}{STILL}</style>\n\
         <rect x=\".5\" y=\".5\" width=\"{:.0}\" height=\"{:.0}\" rx=\"8\" fill=\"#0d1117\" stroke=\"#57606a\"/>\n\
         <path d=\"M1 {BAR}h{:.0}\" stroke=\"#30363d\"/>\n",
        roll(film),
        all - 1.0,
        tall - 1.0,
        all - 2.0,
    );
    for (i, colour) in ["#ff5f57", "#febc2e", "#28c840"].iter().enumerate() {
        let x = 20.0 + 20.0 * f64::from(u8::try_from(i).unwrap_or_default());
        let _ = writeln!(out, "<circle cx=\"{x:.0}\" cy=\"18.5\" r=\"6\" fill=\"{colour}\"/>");
    }
    let (middle, foot) = (all / 2.0, tall - 14.0);
    let _ = write!(
        out,
        "<text x=\"{middle:.0}\" y=\"23\" text-anchor=\"middle\" class=\"d\">{title}</text>\n\
         <text x=\"{middle:.0}\" y=\"{foot:.0}\" text-anchor=\"middle\" class=\"c\">{}</text>\n\
         <svg x=\"{PAD:.0}\" y=\"{:.0}\" width=\"{width:.0}\" height=\"{height:.0}\">\n",
        escape(labels.caption),
        BAR + PAD / 2.0,
    );
    let last = film.rolls.last().map_or(0, |(_, top)| *top);
    let _ = writeln!(out, "<g class=\"r\" transform=\"translate(0 -{:.0})\">", below(last));
    strips(&mut out, film);
    out.push_str("</g>\n</svg>\n</svg>\n");
    out
}

/// Writes lines that stand for the same time as one group.
fn strips(out: &mut String, film: &Film) {
    let mut groups: BTreeMap<(Duration, Option<Duration>), Vec<&Strip>> = BTreeMap::new();
    for strip in &film.strips {
        groups.entry((strip.from, strip.until)).or_default().push(strip);
    }
    for ((from, until), strips) in groups {
        let start = seconds(from);
        let _ = match until {
            None if from.is_zero() => write!(out, "<g>"),
            None => write!(out, "<g class=\"k\" style=\"animation-duration:{start}\">"),
            Some(until) => {
                let stands = seconds(until.saturating_sub(from));
                write!(
                    out,
                    "<g class=\"o\" style=\"animation-delay:{start};animation-duration:{stands}\">"
                )
            }
        };
        for strip in strips {
            text(out, strip.row, &strip.line);
        }
        out.push_str("</g>\n");
    }
}

/// Writes a line; its length is given, so that columns stand below each other in any font.
fn text(out: &mut String, row: usize, line: &Line) {
    let whole: String = line.iter().map(|run| run.text.as_str()).collect();
    let body = whole.trim_start_matches(' ');
    let indent = whole.len() - body.len();
    let (x, y) = (float(indent) * CELL.0, below(row) + ASCENT);
    let _ = write!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\"");
    let cells = body.chars().count();
    if cells > 1 {
        let _ = write!(out, " textLength=\"{:.1}\"", float(cells) * CELL.0);
    }
    if let [run] = line.as_slice() {
        let _ = write!(out, "{}>{}</text>", look(run.ink), escape(body));
        return;
    }
    out.push('>');
    let mut skip = indent;
    for run in line {
        // What is blank in front is in the place already.
        let shown = run.text.get(skip.min(run.text.len())..).unwrap_or_default();
        skip = skip.saturating_sub(run.text.len());
        let look = look(run.ink);
        let _ = if look.is_empty() {
            write!(out, "{}", escape(shown))
        } else {
            write!(out, "<tspan{look}>{}</tspan>", escape(shown))
        };
    }
    out.push_str("</text>");
}

fn look(ink: Ink) -> String {
    let class = match (ink.bold, ink.dim) {
        (true, _) => " class=\"b\"",
        (_, true) => " class=\"d\"",
        _ => "",
    };
    // A style, as a class's colour would win over an attribute.
    let colour = ink.colour.map(|[r, g, b]| format!(" style=\"fill:#{r:02x}{g:02x}{b:02x}\""));
    format!("{class}{}", colour.unwrap_or_default())
}

/// The screen's rolling as key frames, in steps.
fn roll(film: &Film) -> String {
    let Some((end, _)) = film.rolls.last().filter(|(end, _)| !end.is_zero()) else {
        return String::new();
    };
    let mut frames = String::new();
    for (at, top) in &film.rolls {
        let share = 100.0 * at.as_secs_f64() / end.as_secs_f64();
        let _ = write!(frames, "{share:.3}%{{transform:translate(0,-{:.0}px)}}", below(*top));
    }
    format!("@keyframes r{{{frames}}}.r{{animation:r {} step-end}}", seconds(*end))
}

fn below(row: usize) -> f64 {
    float(row) * CELL.1
}

#[expect(clippy::cast_precision_loss, reason = "lines and columns are few")]
fn float(n: usize) -> f64 {
    n as f64
}

fn seconds(d: Duration) -> String {
    format!("{:.3}s", d.as_secs_f64())
}

/// Makes text harmless in XML; characters that XML does not have are left out.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::super::screen::Run;
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn run(text: &str, ink: Ink) -> Run {
        Run { ink, text: text.into() }
    }

    fn drawn(film: &Film) -> String {
        let size = |n| NonZeroU16::new(n).unwrap();
        let labels = Labels { title: "a <b>", caption: "c & d" };
        svg(film, Size { rows: size(2), columns: size(10) }, labels)
    }

    #[test]
    fn text_is_escaped_everywhere() {
        assert_eq!(escape("a<b>&\"c\"\x07\u{ffff}é"), "a&lt;b&gt;&amp;&quot;c&quot;é");
        let line = vec![run("</text><script>", Ink::default())];
        let strip = Strip { row: 0, from: ms(0), until: None, line };
        let out = drawn(&Film { strips: vec![strip], rolls: vec![(ms(0), 0)] });
        assert!(out.contains("&lt;/text&gt;&lt;script&gt;"), "{out}");
        assert!(out.contains("a &lt;b&gt;") && out.contains("c &amp; d"), "{out}");
        assert!(!out.contains("<script"), "{out}");
    }

    #[test]
    fn the_end_is_what_shows_without_motion() {
        let strip = |row, from, until, text: &str| Strip {
            row,
            from: ms(from),
            until,
            line: vec![run(text, Ink::default())],
        };
        let strips = vec![
            strip(0, 0, None, "first"),
            strip(1, 100, Some(ms(250)), "gone"),
            strip(1, 250, None, "stays"),
        ];
        let out = drawn(&Film { strips, rolls: vec![(ms(0), 0), (ms(200), 1), (ms(400), 3)] });
        assert!(out.contains("<g><text x=\"0.0\" y=\"13.5\""), "{out}");
        assert!(
            out.contains(
                "<g class=\"o\" style=\"animation-delay:0.100s;animation-duration:0.150s\">"
            ),
            "{out}"
        );
        assert!(out.contains("<g class=\"k\" style=\"animation-duration:0.250s\">"), "{out}");
        assert!(out.contains("<g class=\"r\" transform=\"translate(0 -54)\">"), "{out}");
        assert!(out.contains("50.000%{transform:translate(0,-18px)}"), "{out}");
        assert!(out.contains(".r{animation:r 0.400s step-end}"), "{out}");
    }

    #[test]
    fn inks_become_classes_and_colours_and_blanks_in_front_a_place() {
        let red = Ink { colour: Some([255, 0, 16]), ..Ink::default() };
        let bold = Ink { bold: true, ..Ink::default() };
        let mut out = String::new();
        text(&mut out, 1, &vec![run("  error", red), run(": ", Ink::default()), run("x", bold)]);
        assert_eq!(
            out,
            "<text x=\"16.8\" y=\"31.5\" textLength=\"67.2\"><tspan style=\"fill:#ff0010\">error</tspan>: \
             <tspan class=\"b\">x</tspan></text>"
        );
        let mut one = String::new();
        text(&mut one, 0, &vec![run(" y", Ink { dim: true, ..Ink::default() })]);
        assert_eq!(one, "<text x=\"8.4\" y=\"13.5\" class=\"d\">y</text>");
    }
}
