//! Output: tables and JSON on stdout, progress and failures on stderr. Shell.

#![expect(clippy::print_stderr, reason = "this is where the command line prints")]

use std::io::{IsTerminal as _, Write as _};

use api::client::ApiError;
use api::status::detail;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

use super::{Format, Global};

/// Writes to stdout; a closed pipe is the reader's wish.
fn put(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a line of data.
pub(super) fn line(text: impl std::fmt::Display) {
    put(&format!(
        "{text}
"
    ));
}

/// Prints text as it is.
pub(super) fn raw(text: &str) {
    put(text);
}

/// Prints a note that is no data.
pub(super) fn note(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

/// Makes sure that a destructive command is meant: `--yes`, or the name typed again.
///
/// # Errors
/// When it is not, or nobody can be asked.
pub(super) fn confirm(yes: bool, name: &str, loses: &str) -> Result<(), ApiError> {
    if yes {
        return Ok(());
    }
    let refused = |why: String| {
        let next = format!("run it again with --yes, or type {name} when asked");
        ApiError::from(detail("guarded", format!("{name} was not touched"), why, next))
    };
    if !std::io::stdin().is_terminal() {
        return Err(refused(format!("this would remove {loses}, and nobody can be asked here")));
    }
    eprint!("This removes {loses}. Type {name} to go on: ");
    let mut typed = String::new();
    let _ = std::io::stdin().read_line(&mut typed);
    if typed.trim() == name { Ok(()) } else { Err(refused("the name was not typed".into())) }
}

fn colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Shows a failure in three lines.
pub(super) fn failure(e: &ApiError) {
    let (red, off) = if colour() { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
    let one = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("{red}error{off}: {}", one(&e.what));
    eprintln!("why:   {}", one(&e.why));
    eprintln!("next:  {}", one(&e.next));
}

/// Prints a message as JSON with the schema's version.
pub(super) fn json(message: &impl Serialize) {
    let mut value = serde_json::to_value(message).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("schema".into(), 1.into());
    }
    line(serde_json::to_string_pretty(&value).unwrap_or_default());
}

/// Prints JSON, or what `table` makes, as asked for; of an answer that may be old it is said how old.
pub(super) fn show(global: &Global, message: &impl Serialize, table: impl FnOnce()) {
    match global.output {
        Format::Json => json(message),
        Format::Table => table(),
    }
    if global.stale && global.output == Format::Table {
        let value = serde_json::to_value(message).unwrap_or_default();
        if let Some(applied) = value["applied"].as_u64() {
            note(format!("as this node has it, up to index {applied}; the leader was not asked"));
        }
    }
}

/// Prints a table; an empty one says so.
pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>, empty: &str) {
    if rows.is_empty() {
        eprintln!("{empty}");
        return;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row.into_iter().map(|c| if c.is_empty() { "-".into() } else { c }));
    }
    // Where the terminal is too narrow, only the last column wraps: it is the one with sentences.
    for column in 0..header.len().saturating_sub(1) {
        if let Some(column) = table.column_mut(column) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    for line in table.to_string().lines() {
        let line = line.trim_end();
        self::line(line.strip_prefix(' ').unwrap_or(line));
    }
}

/// Says on stderr what is waited for: one changing line on a terminal, a line per change elsewhere, nothing where
/// `SKEIN_PROGRESS` is `off`.
pub(super) struct Progress {
    last: String,
    open: bool,
    off: bool,
}

impl Default for Progress {
    fn default() -> Self {
        let off = std::env::var_os("SKEIN_PROGRESS").is_some_and(|v| v == "off");
        Self { last: String::new(), open: false, off }
    }
}

impl Progress {
    /// Shows what is waited for now.
    pub(super) fn show(&mut self, text: &str) {
        if self.off || text == self.last {
            return;
        }
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[2K{}", text.chars().take(width()).collect::<String>());
            self.open = true;
        } else if essence(text) != essence(&self.last) {
            eprintln!("{text}");
        }
        text.clone_into(&mut self.last);
    }

    /// Ends the changing line.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            eprintln!();
        }
    }
}

/// What of a wait is not its duration nor a quoted log line: a growing output does not repeat it each second.
fn essence(text: &str) -> &str {
    let text = text.trim_start();
    let what = text.split_once(" s  ").filter(|(s, _)| s.parse::<u64>().is_ok());
    let what = what.map_or(text, |(_, what)| what);
    let what = what.rsplit_once(" (for ").map_or(what, |(what, _)| what);
    what.split_once("; its log says").map_or(what, |(what, _)| what)
}

/// How much fits on the terminal's line.
fn width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse::<usize>().ok());
    columns.unwrap_or(80).saturating_sub(1).max(20)
}

/// The exit code of what SIGINT ended, as shells have it (POSIX, 2.8.2).
const INTERRUPTED: u8 = 130;

/// Waits until the end, or until the operator has seen enough: what was begun goes on in the fleet, and `next` follows it.
///
/// # Errors
/// The wait's own, and that it was interrupted.
pub(super) async fn unless_interrupted(
    next: &str,
    wait: impl Future<Output = super::Result>,
) -> super::Result {
    tokio::select! {
        biased;
        ended = wait => ended,
        Ok(()) = tokio::signal::ctrl_c() => {
            let why = "it was interrupted; what was begun goes on by itself";
            let told = detail("interrupted", "nobody waits for the end any more", why, next);
            Err(ApiError { code: INTERRUPTED, ..told.into() })
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Writes a Unix time in milliseconds as UTC.
pub(super) fn time(ms: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::essence;

    #[test]
    fn a_wait_that_only_grows_older_is_the_same_wait() {
        let at = |s: u32| format!("{s:>4} s  n1: installing: K3s to start (for {s} s)");
        assert_eq!(essence(&at(3)), essence(&at(114)));
        assert_eq!(
            essence("n1: K3s to be ready: refused; its log says: x"),
            "n1: K3s to be ready: refused"
        );
        assert_ne!(essence(&at(3)), essence("   4 s  n2: installing: K3s to start (for 3 s)"));
    }
}
