//! What a terminal shows of what was written to it, as runs of text. Pure.

use std::num::NonZeroU16;
use std::time::Duration;

use vt100::{Cell, Color, Parser};

/// Lines that are kept above the screen; more are forgotten, so that a story has to be shorter.
const SCROLLBACK: usize = 2000;

/// The sixteen colours of a terminal, chosen for a dark ground.
const PALETTE: [Rgb; 16] = [
    [0x48, 0x4f, 0x58],
    [0xff, 0x7b, 0x72],
    [0x3f, 0xb9, 0x50],
    [0xd2, 0x99, 0x22],
    [0x58, 0xa6, 0xff],
    [0xbc, 0x8c, 0xff],
    [0x39, 0xc5, 0xcf],
    [0xb1, 0xba, 0xc4],
    [0x6e, 0x76, 0x81],
    [0xff, 0xa1, 0x98],
    [0x56, 0xd3, 0x64],
    [0xe3, 0xb3, 0x41],
    [0x79, 0xc0, 0xff],
    [0xd2, 0xa8, 0xff],
    [0x56, 0xd4, 0xdd],
    [0xf0, 0xf6, 0xfc],
];

/// Red, green, blue.
pub type Rgb = [u8; 3];

/// How text is drawn. Backgrounds are not, since nothing that is recorded has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ink {
    /// Its colour; the terminal's own if there is none.
    pub colour: Option<Rgb>,
    /// Whether it is bold.
    pub bold: bool,
    /// Whether it is dim.
    pub dim: bool,
}

/// Text of one ink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// How it is drawn.
    pub ink: Ink,
    /// What is drawn.
    pub text: String,
}

/// A line from the left edge on, without what is blank at its end.
pub type Line = Vec<Run>;

/// What is written at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// When, from the recording's start.
    pub at: Duration,
    /// What, as a terminal gets it.
    pub bytes: Vec<u8>,
}

/// What the screen shows from a moment on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The moment.
    pub at: Duration,
    /// How many lines have left the screen at its top.
    pub top: usize,
    /// The screen's lines.
    pub lines: Vec<Line>,
}

/// A terminal's size.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Its lines.
    pub rows: NonZeroU16,
    /// Its columns.
    pub columns: NonZeroU16,
}

/// Makes frames of what was written, each at least `step` after the one before and none like the one before.
#[must_use]
pub fn frames(written: &[Written], size: Size, step: Duration) -> Vec<Frame> {
    let mut parser = Parser::new(size.rows, size.columns, SCROLLBACK);
    let mut frames: Vec<Frame> = Vec::new();
    let mut rest = written.iter().peekable();
    while let Some(first) = rest.next() {
        parser.process(&first.bytes);
        while let Some(more) = rest.next_if(|w| w.at < first.at + step) {
            parser.process(&more.bytes);
        }
        let frame = frame(&parser, size, first.at);
        let same = |last: &Frame| last.top == frame.top && last.lines == frame.lines;
        if !frames.last().is_some_and(same) {
            frames.push(frame);
        }
    }
    frames
}

fn frame(parser: &Parser, size: Size, at: Duration) -> Frame {
    let screen = parser.screen();
    let cells = |row| (0..size.columns.get()).map(move |column| screen.cell(row, column));
    let lines = (0..size.rows.get()).map(|row| line(cells(row).flatten())).collect();
    Frame { at, top: screen.scrollback_len(), lines }
}

fn line<'a>(cells: impl Iterator<Item = &'a Cell>) -> Line {
    let mut line = Line::new();
    let mut blanks = 0;
    for cell in cells.filter(|cell| !cell.is_wide_continuation()) {
        let text = cell.contents();
        if text.trim().is_empty() {
            blanks += 1;
            continue;
        }
        let gap = " ".repeat(std::mem::take(&mut blanks));
        let ink = ink(cell);
        match line.last_mut() {
            Some(run) if run.ink == ink => run.text.push_str(&(gap + text)),
            Some(run) => {
                run.text.push_str(&gap);
                line.push(Run { ink, text: text.to_owned() });
            }
            None => line.push(Run { ink, text: gap + text }),
        }
    }
    line
}

fn ink(cell: &Cell) -> Ink {
    let colour = match cell.fgcolor() {
        Color::Default => None,
        Color::Idx(index) => Some(indexed(index)),
        Color::Rgb(r, g, b) => Some([r, g, b]),
    };
    Ink { colour, bold: cell.bold(), dim: cell.dim() }
}

/// A colour of xterm's 256: sixteen, a cube of six to the third, and greys.
fn indexed(index: u8) -> Rgb {
    match index {
        0..16 => PALETTE[usize::from(index)],
        16..232 => {
            let level = |n: u8| if n == 0 { 0 } else { 55 + 40 * n };
            let n = index - 16;
            [level(n / 36), level(n / 6 % 6), level(n % 6)]
        }
        232.. => [8 + 10 * (index - 232); 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    fn shown(written: &[(u64, &str)]) -> Vec<Frame> {
        let of = |(at, text): &(u64, &str)| Written {
            at: Duration::from_millis(*at),
            bytes: text.as_bytes().to_vec(),
        };
        let written: Vec<Written> = written.iter().map(of).collect();
        let size = |n| NonZeroU16::new(n).unwrap();
        frames(&written, Size { rows: size(3), columns: size(20) }, STEP)
    }

    fn text(line: &Line) -> String {
        line.iter().map(|run| run.text.as_str()).collect()
    }

    #[test]
    fn what_is_written_within_a_step_is_one_frame_and_what_changes_nothing_is_none() {
        let frames = shown(&[(0, "a"), (99, "b"), (100, "c"), (300, "\x1b[0m"), (500, "d")]);
        let seen: Vec<(u128, String)> =
            frames.iter().map(|f| (f.at.as_millis(), text(&f.lines[0]))).collect();
        assert_eq!(seen, [(0, "ab".into()), (100, "abc".into()), (500, "abcd".into())]);
    }

    #[test]
    fn a_line_that_is_written_anew_shows_its_last_text() {
        let frames = shown(&[(0, "long words\r\x1b[2Kshort")]);
        assert_eq!(text(&frames[0].lines[0]), "short");
    }

    #[test]
    fn lines_that_leave_the_screen_are_counted() {
        let frames = shown(&[(0, "1\r\n2\r\n3\r\n4\r\n5")]);
        assert_eq!(frames[0].top, 2);
        assert_eq!(frames[0].lines.iter().map(text).collect::<Vec<_>>(), ["3", "4", "5"]);
    }

    #[test]
    fn runs_have_their_ink_and_keep_the_blanks_between_them() {
        let frames = shown(&[(0, "  \x1b[31merror\x1b[0m: \x1b[1mx \x1b[0;2m y\x1b[0m   ")]);
        let run = |text: &str, ink| Run { ink, text: text.to_owned() };
        let red = Ink { colour: Some(PALETTE[1]), ..Ink::default() };
        let bold = Ink { bold: true, ..Ink::default() };
        let dim = Ink { dim: true, ..Ink::default() };
        let expected =
            [run("  error", red), run(": ", Ink::default()), run("x  ", bold), run("y", dim)];
        assert_eq!(frames[0].lines[0], expected);
    }

    #[test]
    fn all_colours_of_a_terminal_are_known() {
        assert_eq!(indexed(9), PALETTE[9]);
        assert_eq!(indexed(16), [0, 0, 0]);
        assert_eq!(indexed(196), [255, 0, 0]);
        assert_eq!(indexed(231), [255, 255, 255]);
        assert_eq!(indexed(255), [238, 238, 238]);
        let frames = shown(&[(0, "\x1b[38;2;1;2;3mx")]);
        assert_eq!(frames[0].lines[0][0].ink.colour, Some([1, 2, 3]));
    }
}
