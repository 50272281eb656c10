//! The tutorial's text against a recorded run: every expected line counts.

#![allow(clippy::unwrap_used, reason = "a test that meets what it did not expect ends")]

use sim::tutorial::parse::{Tutorial, parse};
use sim::tutorial::walk::{Failure, Record, Replay, walk};

const TEXT: &str = include_str!("../../../docs/tutorial.md");
const TRANSCRIPT: &str = include_str!("transcript.json");

fn replay(tutorial: &Tutorial) -> (Vec<Failure>, bool) {
    let records: Vec<Record> = serde_json::from_str(TRANSCRIPT).unwrap();
    let mut stage = Replay::new(&records);
    let failures = walk(tutorial, &mut stage, false);
    (failures, stage.at_end())
}

/// Changes one character that is no part of what may vary, as a wrong claim would.
fn altered(line: &str) -> String {
    let mut inside = false;
    let at = line.char_indices().filter(|(_, c)| {
        inside = *c == '<' || inside && *c != '>';
        !inside && c.is_ascii_alphanumeric()
    });
    match at.last() {
        Some((i, c)) => {
            let other = if c == 'x' { 'y' } else { 'x' };
            format!("{}{other}{}", &line[..i], &line[i + 1..])
        }
        None => format!("{line} x"),
    }
}

#[test]
fn the_recorded_run_is_as_the_tutorial_says() {
    let (failures, at_end) = replay(&parse(TEXT).unwrap());
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(at_end, "the transcript has more steps than the tutorial");
}

#[test]
fn one_altered_line_in_any_block_is_noticed() {
    let whole = parse(TEXT).unwrap();
    for (b, block) in whole.blocks.iter().enumerate() {
        let mut tried = 0;
        for (s, step) in block.steps.iter().enumerate() {
            for (l, line) in step.expected.iter().enumerate() {
                let mut tutorial = whole.clone();
                tutorial.blocks[b].steps[s].expected[l] = altered(line);
                let (failures, _) = replay(&tutorial);
                let at = failures.first().map(|f| (f.block, f.line));
                assert_eq!(at, Some((block.line, step.line)), "{line} became {}", altered(line));
                tried += 1;
            }
            let mut tutorial = whole.clone();
            tutorial.blocks[b].steps[s].exit = step.exit ^ 1;
            assert!(!replay(&tutorial).0.is_empty(), "exit code of {}", step.command);
        }
        assert!(tried > 0, "the block in line {} asserts nothing", block.line);
    }
}

#[test]
fn a_missing_and_an_additional_line_are_noticed() {
    let whole = parse(TEXT).unwrap();
    for (b, block) in whole.blocks.iter().enumerate() {
        let s = block.steps.iter().position(|s| !s.expected.is_empty()).unwrap();
        for more in [true, false] {
            let mut tutorial = whole.clone();
            let expected = &mut tutorial.blocks[b].steps[s].expected;
            if more {
                expected.push("and this".into())
            } else {
                drop(expected.pop())
            }
            assert!(!replay(&tutorial).0.is_empty(), "line {}", block.line);
        }
    }
}
