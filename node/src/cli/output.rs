//! Output: tables and JSON on stdout, progress and failures on stderr. Shell.

#![expect(clippy::print_stderr, reason = "this is where the command line prints")]

use std::io::{IsTerminal as _, Write as _};

use api::client::ApiError;
use api::status::detail;
use comfy_table::{ContentArrangement, Table, presets};
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
    eprintln!("{red}error{off}: {}", e.what);
    eprintln!("why:   {}", e.why);
    eprintln!("next:  {}", e.next);
}

/// Prints a message as JSON with the schema's version.
pub(super) fn json(message: &impl Serialize) {
    let mut value = serde_json::to_value(message).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("schema".into(), 1.into());
    }
    line(serde_json::to_string_pretty(&value).unwrap_or_default());
}

/// Prints JSON, or what `table` makes, as asked for.
pub(super) fn show(global: &Global, message: &impl Serialize, table: impl FnOnce()) {
    match global.output {
        Format::Json => json(message),
        Format::Table => table(),
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
    for line in table.to_string().lines() {
        self::line(line.trim_end().trim_start_matches(' '));
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
        text.clone_into(&mut self.last);
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[2K{}", text.chars().take(110).collect::<String>());
            self.open = true;
        } else {
            eprintln!("{text}");
        }
    }

    /// Ends the changing line.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            eprintln!();
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
