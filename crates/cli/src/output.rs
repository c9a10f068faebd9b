//! What `aip` prints: tables for people, JSON for programs, a spinner on a terminal.

mod shown;

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

pub(crate) use shown::{Printed, brief, one_line};

/// For people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// Prints to stdout. What in it would order a terminal is shown instead.
pub(crate) fn line(text: impl AsRef<str>) {
    styled(&shown::lines(text.as_ref()));
}

/// Prints to stdout what may order a terminal, as colours do: nothing that others wrote, but by [`one_line`]. A closed pipe
/// (`aip … | head`) is no failure.
pub(crate) fn styled(text: &str) {
    let written = writeln!(io::stdout().lock(), "{text}");
    if written.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        UNREAD.store(true, Ordering::Relaxed);
    }
}

/// Nobody reads what is printed any more.
static UNREAD: AtomicBool = AtomicBool::new(false);

/// Whether whoever read what is printed has gone (`aip … | head`): who prints without end has come to it then.
pub(crate) fn is_unread() -> bool {
    UNREAD.load(Ordering::Relaxed)
}

/// Prints to stderr: what a person wants to know and a program does not.
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", shown::lines(text.as_ref()));
}

/// Prints a document as indented JSON.
pub(crate) fn json(value: &impl Serialize) {
    styled(&shown::json(&serde_json::to_string_pretty(value).unwrap_or_default()));
}

/// Prints a document as one line of JSON.
pub(crate) fn json_line(value: &impl Serialize) {
    styled(&shown::json(&serde_json::to_string(value).unwrap_or_default()));
}

/// Rows under headings, columns aligned.
#[derive(Debug, Default)]
pub(crate) struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self {
            headings: headings.map(str::to_owned).to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| one_line(&cell).into_owned()).to_vec());
    }

    pub(crate) fn render(&self) -> String {
        let all = || std::iter::once(&self.headings).chain(&self.rows);
        let width = |column: usize| {
            all()
                .map(|r| r.get(column).map_or(0, |c| c.chars().count()))
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let mut out = String::new();
        for row in all() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat(width.saturating_sub(cell.chars().count()) + 2));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out.pop();
        out
    }

    /// Prints the table, or what to say when it is empty.
    pub(crate) fn print(&self, when_empty: &str) {
        if self.rows.is_empty() {
            note(when_empty);
        } else {
            line(self.render());
        }
    }
}

/// A member of a document as a table's cell: text in one line, lists joined, nothing as `-`.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => one_line(text).into_owned(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(members) if members.is_empty() => "-".into(),
        Value::Object(members) => members
            .iter()
            .map(|(k, v)| format!("{}={}", one_line(k), cell(v)))
            .collect::<Vec<_>>()
            .join(","),
        other => other.to_string(),
    }
}

/// Seconds since the epoch as UTC, to the second.
pub(crate) fn timestamp(seconds: u64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    i64::try_from(seconds)
        .ok()
        .and_then(|s| time::OffsetDateTime::from_unix_timestamp(s).ok())
        .and_then(|t| t.format(&format).ok())
        .unwrap_or_else(|| seconds.to_string())
}

/// A span of time as people say it: `3d`, `2h`, `15m`, `40s`.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number of things: `1 agent`, `2 agents`.
pub(crate) fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The first digits of a digest: enough to tell two apart.
pub(crate) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// How long something may take before a spinner shows: what feels immediate needs none.
const SPINNER_AFTER: Duration = Duration::from_secs(1);
/// Between two frames of the spinner.
const SPINNER_STEP: Duration = Duration::from_millis(120);

/// Waits for `work`; on a terminal, a line says what is waited for once it takes over a second.
pub(crate) async fn waiting<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = Box::pin(work);
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let started = Instant::now();
    let mut shown = false;
    let mut frames = ["|", "/", "-", "\\"].iter().cycle();
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            () = tokio::time::sleep(SPINNER_STEP) => {
                if started.elapsed() >= SPINNER_AFTER {
                    let frame = frames.next().copied().unwrap_or("|");
                    let _ = write!(io::stderr(), "\r{frame} {what} ({} s) ", started.elapsed().as_secs());
                    shown = true;
                }
            }
        }
    };
    if shown {
        let _ = write!(io::stderr(), "\r{}\r", " ".repeat(what.chars().count() + 16));
    }
    result
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_line_up_and_carry_no_trailing_blanks() {
        let mut table = Table::new(["NAME", "OWNER"]);
        table.row(["a".into(), "x".into()]);
        table.row(["long-name".into(), cell(&json!(""))]);
        assert_eq!(table.render(), "NAME       OWNER\na          x\nlong-name  -");
    }

    #[test]
    fn cells_and_spans_read_as_people_write_them() {
        assert_eq!(
            (counted(1, "agent"), counted(0, "agent")),
            ("1 agent".into(), "0 agents".into())
        );
        assert_eq!(cell(&json!(["a", "b"])), "a,b");
        assert_eq!(cell(&json!({"tier": "gold"})), "tier=gold");
        assert_eq!(
            (span(90), span(3_600), span(200_000)),
            ("90s".into(), "60m".into(), "2d".into())
        );
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
    }
}
