//! From a tutorial's text to what is typed in which host, and what it must print. Pure.
//!
//! What counts are fenced blocks marked `console`. In them, `n1# words` is a command in host n1, `> words` goes on with
//! it, and the lines up to the next prompt are its output: all of it, stdout and stderr, in order. `# until it shows:`
//! behind a command repeats it until the output is as shown; `(exit 4)` behind the output is its exit code, otherwise 0.

/// A tutorial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tutorial {
    /// Its blocks, in order.
    pub blocks: Vec<Block>,
}

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The line of its fence, from 1.
    pub line: usize,
    /// Its commands, in order.
    pub steps: Vec<Step>,
}

/// One command with what is expected of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its line, from 1.
    pub line: usize,
    /// The host that it runs in.
    pub host: String,
    /// What the shell there gets.
    pub command: String,
    /// Whether it is repeated until it shows what is expected.
    pub until: bool,
    /// The lines of its output, without empty ones.
    pub expected: Vec<String>,
    /// Its exit code.
    pub exit: u8,
}

const FENCE: &str = "```";
const UNTIL: &str = "# until it shows:";

/// Reads a tutorial.
///
/// # Errors
/// With the line, when a block is not as it should be, or asserts nothing.
pub fn parse(text: &str) -> Result<Tutorial, String> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, bool)> = None;
    let mut inside = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l)) {
        let mark = line.trim_start().strip_prefix(FENCE);
        match (open, mark) {
            (None, Some(kind)) => open = Some((number, kind.trim() == "console")),
            (Some((at, played)), Some(_)) => {
                if played {
                    blocks.push(block(at, &inside)?);
                }
                inside.clear();
                open = None;
            }
            (Some(_), None) => inside.push((number, line)),
            (None, None) => {}
        }
    }
    match open {
        Some((at, _)) => Err(format!("line {at}: this block has no end")),
        None if blocks.is_empty() => Err("there is no block marked `console`".into()),
        None => Ok(Tutorial { blocks }),
    }
}

fn block(at: usize, lines: &[(usize, &str)]) -> Result<Block, String> {
    let mut steps: Vec<Step> = Vec::new();
    let mut in_command = false;
    for &(number, line) in lines {
        if let Some((host, command)) = prompt(line) {
            let (host, command) = (host.to_owned(), command.to_owned());
            let expected = Vec::new();
            steps.push(Step { line: number, host, command, until: false, expected, exit: 0 });
            in_command = true;
            continue;
        }
        if line.trim().is_empty() {
            continue;
        }
        let Some(step) = steps.last_mut() else {
            return Err(format!("line {number}: output before any command"));
        };
        if let (true, Some(more)) = (in_command, line.strip_prefix("> ")) {
            step.command.push('\n');
            step.command.push_str(more);
            continue;
        }
        in_command = false;
        if line.trim() == UNTIL {
            if step.until || !step.expected.is_empty() {
                return Err(format!("line {number}: `{UNTIL}` belongs right behind a command"));
            }
            step.until = true;
        } else if step.exit != 0 {
            return Err(format!("line {number}: output behind the exit code"));
        } else if let Some(code) = exit_code(line) {
            step.exit = code;
        } else {
            step.expected.push(line.trim_end().to_owned());
        }
    }
    if !steps.iter().any(|step| !step.expected.is_empty()) {
        return Err(format!("line {at}: this block expects no output, so it asserts nothing"));
    }
    if let Some(step) = steps.iter().find(|s| s.until && s.expected.is_empty()) {
        return Err(format!("line {}: `{UNTIL}` is followed by nothing", step.line));
    }
    Ok(Block { line: at, steps })
}

/// Splits `n1# words`.
fn prompt(line: &str) -> Option<(&str, &str)> {
    let (host, command) = line.split_once("# ")?;
    let number = host.strip_prefix('n')?;
    let fine = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    fine.then_some((host, command))
}

fn exit_code(line: &str) -> Option<u8> {
    let code: u8 = line.trim().strip_prefix("(exit ")?.strip_suffix(')')?.parse().ok()?;
    (code != 0).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(inside: &str) -> Result<Tutorial, String> {
        parse(&format!("Text.\n\n```console\n{inside}```\n"))
    }

    #[test]
    fn commands_and_their_output_are_found() {
        let text = "n1# cat <<E\n> one\n> E\none\n\nn12# skein drain n1\n# until it shows:\nerror: no\n(exit 4)\n";
        let blocks = console(text).unwrap().blocks;
        let steps = &blocks[0].steps;
        assert_eq!((blocks[0].line, steps[0].line, steps[1].line), (3, 4, 9));
        assert_eq!(steps[0].command, "cat <<E\none\nE");
        assert_eq!((steps[0].expected.as_slice(), steps[0].exit), (&["one".to_owned()][..], 0));
        assert_eq!((steps[1].host.as_str(), steps[1].until, steps[1].exit), ("n12", true, 4));
    }

    #[test]
    fn other_blocks_are_for_the_eye() {
        let text = "```toml\nn1# not played\n```\n```console\nn1# true\nyes\n```\n";
        assert_eq!(parse(text).unwrap().blocks.len(), 1);
        assert!(parse("```toml\n```\n").is_err());
    }

    #[test]
    fn a_block_that_asserts_nothing_is_an_error_of_the_file() {
        for (inside, says) in [
            ("n1# true\n", "asserts nothing"),
            ("", "asserts nothing"),
            ("n1# false\n(exit 1)\n", "asserts nothing"),
            ("yes\nn1# true\n", "before any command"),
            ("n1# true\n(exit 1)\nyes\n", "behind the exit code"),
            ("n1# true\nyes\n# until it shows:\n", "right behind"),
            ("n1# true\nyes\nn1# true\n# until it shows:\n", "followed by nothing"),
        ] {
            let e = console(inside).unwrap_err();
            assert!(e.contains(says) && e.starts_with("line "), "{inside}: {e}");
        }
        assert!(parse("```console\nn1# true\nyes\n").unwrap_err().contains("no end"));
    }
}
