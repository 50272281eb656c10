//! From frames to what is drawn: each line once for as long as it stands, and how far the screen has rolled. Pure.

use std::time::Duration;

use super::screen::{Frame, Line, Written};

/// What was written, and how long it goes on standing: a recording that grows.
#[derive(Clone, Debug, Default)]
pub struct Reel {
    written: Vec<Written>,
    end: Duration,
}

impl Reel {
    /// Adds text, and how long it stands before what comes next.
    pub fn write(&mut self, text: &str, stands: Duration) {
        self.written.push(Written { at: self.end, bytes: text.as_bytes().to_vec() });
        self.end += stands;
    }

    /// Adds a command's output, whose times count from the command's start, and what it waits for shortened to `most`.
    pub fn append(&mut self, output: &[Written], most: Duration) {
        let mut before = Duration::ZERO;
        for w in output {
            self.end += w.at.saturating_sub(before).min(most);
            before = w.at;
            self.written.push(Written { at: self.end, bytes: w.bytes.clone() });
        }
    }

    /// Everything that was written.
    #[must_use]
    pub fn written(&self) -> &[Written] {
        &self.written
    }
}

/// A line that stands for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strip {
    /// Its place, counted from the first line ever written.
    pub row: usize,
    /// When it appears.
    pub from: Duration,
    /// When it is gone; never if there is none.
    pub until: Option<Duration>,
    /// What it says.
    pub line: Line,
}

/// A recording, ready to be drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Film {
    /// Its lines, none of them blank.
    pub strips: Vec<Strip>,
    /// The rolls: from when on, how many lines have left the screen at its top.
    pub rolls: Vec<(Duration, usize)>,
}

/// Merges frames: a line that does not change from one to the next is one strip. Lines that roll off the screen stay where
/// they are, out of sight.
#[must_use]
pub fn film(frames: &[Frame]) -> Film {
    let mut film = Film::default();
    // By their place: what stands there now, and since when.
    let mut standing: Vec<(Duration, Line)> = Vec::new();
    for frame in frames {
        if film.rolls.last().is_none_or(|(_, top)| *top != frame.top) {
            film.rolls.push((frame.at, frame.top));
        }
        for (i, line) in frame.lines.iter().enumerate() {
            let row = frame.top + i;
            if standing.len() <= row {
                standing.resize(row + 1, (frame.at, Line::new()));
            }
            if standing[row].1 != *line {
                let (from, old) = std::mem::replace(&mut standing[row], (frame.at, line.clone()));
                film.strips.push(Strip { row, from, until: Some(frame.at), line: old });
            }
        }
    }
    let last = standing.into_iter().enumerate();
    film.strips.extend(last.map(|(row, (from, line))| Strip { row, from, until: None, line }));
    film.strips.retain(|strip| !strip.line.is_empty());
    film
}

#[cfg(test)]
mod tests {
    use super::super::screen::{Ink, Run};
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn line(text: &str) -> Line {
        let run = || Run { ink: Ink::default(), text: text.into() };
        if text.is_empty() { Line::new() } else { vec![run()] }
    }

    fn frame(at: u64, top: usize, lines: &[&str]) -> Frame {
        Frame { at: ms(at), top, lines: lines.iter().map(|text| line(text)).collect() }
    }

    fn strip(row: usize, from: u64, until: Option<u64>, text: &str) -> Strip {
        Strip { row, from: ms(from), until: until.map(ms), line: line(text) }
    }

    #[test]
    fn only_lines_that_change_are_drawn_again() {
        let made = film(&[
            frame(0, 0, &["$ x", ""]),
            frame(100, 0, &["$ x", "1 s"]),
            frame(200, 0, &["$ x", "2 s"]),
        ]);
        let expected =
            [strip(1, 100, Some(200), "1 s"), strip(0, 0, None, "$ x"), strip(1, 200, None, "2 s")];
        assert_eq!(made.strips, expected);
        assert_eq!(made.rolls, [(ms(0), 0)]);
    }

    #[test]
    fn a_screen_that_rolls_draws_only_what_is_new() {
        let made = film(&[frame(0, 0, &["a", "b"]), frame(100, 1, &["b", "c"])]);
        let expected = [strip(0, 0, None, "a"), strip(1, 0, None, "b"), strip(2, 100, None, "c")];
        assert_eq!(made.strips, expected);
        assert_eq!(made.rolls, [(ms(0), 0), (ms(100), 1)]);
    }

    #[test]
    fn waits_are_shortened_and_what_follows_moves_up() {
        let mut reel = Reel::default();
        reel.write("$ ", ms(500));
        let out = |at, text: &str| Written { at: ms(at), bytes: text.as_bytes().to_vec() };
        reel.append(&[out(200, "a"), out(5_200, "b"), out(5_300, "c")], ms(1_500));
        reel.write("took 5.3 s", ms(0));
        let at: Vec<u128> = reel.written().iter().map(|w| w.at.as_millis()).collect();
        assert_eq!(at, [0, 700, 2_200, 2_300, 2_300]);
    }
}
