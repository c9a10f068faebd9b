//! The board of promises: what each step must show, what was really observed, and the table at the end.

use std::io::IsTerminal as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::text::{millis, wrapped};
use crate::output;

/// Columns that the demo fills: what an ordinary terminal shows.
const WIDTH: usize = 100;
/// A time misses its promise only past this many times its target, where that is milliseconds: machines differ, and the demo
/// shares them.
const PATIENCE: u32 = 5;
/// The same where the time is what is promised: how fast an edit, an order or a report takes hold. These targets are several
/// times what a machine of two cores needs that builds beside it.
const STRICT: u32 = 1;

/// How long something may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    time: Duration,
    patience: u32,
}

impl Target {
    /// Of something that is quick, on a machine of one's own.
    pub(super) const fn quick(time: Duration) -> Self {
        Self {
            time,
            patience: PATIENCE,
        }
    }

    /// Of something that is promised within this time: past it the promise is not kept, on any machine.
    pub(super) const fn strict(time: Duration) -> Self {
        Self { time, patience: STRICT }
    }
}

/// Something that a step must show.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promise {
    /// By which the step refers to it.
    pub(super) id: &'static str,
    /// In words, short enough for the table.
    pub(super) text: &'static str,
}

/// What became of a promise.
#[derive(Debug, Clone)]
enum Outcome {
    Open,
    Shown(String),
    Failed(String),
}

struct Row {
    step: usize,
    promise: Promise,
    outcome: Outcome,
}

/// Everything that the demo has said so far.
pub(super) struct Board {
    json: bool,
    color: bool,
    step: usize,
    rows: Vec<Row>,
    facts: Vec<Value>,
}

impl Board {
    pub(super) fn new(json: bool) -> Self {
        let color = !json && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            json,
            color,
            step: 0,
            rows: Vec::new(),
            facts: Vec::new(),
        }
    }

    /// Begins a step: all its promises are open.
    pub(super) fn begin(&mut self, title: &str, promises: &[Promise]) {
        self.step += 1;
        let step = self.step;
        self.rows.extend(promises.iter().map(|promise| Row {
            step,
            promise: *promise,
            outcome: Outcome::Open,
        }));
        self.say("");
        let heading = format!("{step}  {title}");
        self.styled(&self.painted(&heading, "1"));
        self.say(&"-".repeat(WIDTH.min(heading.chars().count())));
    }

    /// Something that was observed.
    pub(super) fn fact(&mut self, label: &str, text: impl AsRef<str>) {
        let text = text.as_ref();
        self.facts
            .push(json!({ "step": self.step, "fact": label, "value": text }));
        let room = WIDTH - 18;
        for (i, line) in wrapped(text, room).iter().enumerate() {
            let label = if i == 0 { label } else { "" };
            self.say(&format!("   {label:<14} {line}"));
        }
    }

    /// Lines of another program's output, as it printed them.
    pub(super) fn quote(&mut self, label: &str, text: &str) {
        self.facts
            .push(json!({ "step": self.step, "fact": label, "value": text }));
        self.say(&format!("   {label}"));
        for line in text.lines() {
            self.say(&format!("   | {line}"));
        }
    }

    pub(super) fn shown(&mut self, id: &str, evidence: impl Into<String>) {
        self.settle(id, Outcome::Shown(evidence.into()));
    }

    pub(super) fn failed(&mut self, id: &str, why: impl Into<String>) {
        self.settle(id, Outcome::Failed(why.into()));
    }

    /// Shown if `holds`; either way with the evidence.
    pub(super) fn decide(&mut self, id: &str, holds: bool, evidence: impl Into<String>) {
        if holds {
            self.shown(id, evidence)
        } else {
            self.failed(id, evidence)
        }
    }

    /// A time with its target; missed only past its patience.
    pub(super) fn timed(&mut self, id: &str, took: Duration, target: Target, evidence: &str) {
        let text = format!("{evidence}{}", against(took, target));
        self.decide(id, in_time(took, target), text);
    }

    /// Ends a step: what is still open was not shown, for the reason that ended it.
    pub(super) fn finish(&mut self, ended: anyhow::Result<()>) {
        let why = match &ended {
            Ok(()) => "the step ended without showing it".to_owned(),
            Err(error) => {
                let (text, _) = crate::exit::render(error);
                self.say(&format!("   {}", text.replace('\n', "\n   ")));
                error.to_string()
            }
        };
        let step = self.step;
        for row in self
            .rows
            .iter_mut()
            .filter(|r| r.step == step && matches!(r.outcome, Outcome::Open))
        {
            row.outcome = Outcome::Failed(why.clone());
        }
    }

    fn settle(&mut self, id: &str, outcome: Outcome) {
        let step = self.step;
        let Some(row) = self.rows.iter_mut().find(|r| r.step == step && r.promise.id == id) else {
            // Told about, so that a misspelt id can't make a promise look shown.
            self.say(&format!("   (no promise is called {id})"));
            return;
        };
        // The first failure stays: a later success of another part doesn't mend it.
        if !matches!(row.outcome, Outcome::Failed(_)) {
            row.outcome = outcome;
        }
    }

    pub(super) fn all_shown(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|r| matches!(r.outcome, Outcome::Shown(_)))
    }

    /// The table at the end.
    pub(super) fn summary(&self, took: Duration) {
        let rows: Vec<(usize, &str, &str, &str)> = self
            .rows
            .iter()
            .map(|row| {
                let (word, evidence) = match &row.outcome {
                    Outcome::Open => ("failed", ""),
                    Outcome::Shown(evidence) => ("shown", evidence.as_str()),
                    Outcome::Failed(why) => ("FAILED", why.as_str()),
                };
                (row.step, row.promise.text, word, evidence)
            })
            .collect();
        if self.json {
            let promises: Vec<Value> = rows
                .iter()
                .map(|(step, text, word, evidence)| {
                    json!({ "step": step, "promise": text, "shown": *word == "shown", "evidence": evidence })
                })
                .collect();
            output::json(&json!({
                "shown": self.all_shown(), "seconds": took.as_secs_f64(), "promises": promises, "observed": self.facts,
            }));
            return;
        }
        self.table(&rows);
        self.say(&format!(
            "{} of {} promises shown, in {:.1} s",
            rows.iter().filter(|(_, _, word, _)| *word == "shown").count(),
            rows.len(),
            took.as_secs_f64()
        ));
    }

    /// The promises, for people: step, text, whether it was shown, and by what.
    fn table(&self, rows: &[(usize, &str, &str, &str)]) {
        self.say("");
        self.styled(&self.painted("Promises", "1"));
        self.say(&"-".repeat(WIDTH));
        let promise_width = rows.iter().map(|r| r.1.chars().count()).max().unwrap_or(0).min(48);
        let room = WIDTH.saturating_sub(promise_width + 15);
        for (step, text, word, evidence) in rows {
            let (left, right) = (wrapped(text, promise_width), wrapped(evidence, room));
            for i in 0..left.len().max(right.len()) {
                let cell = |lines: &[String]| {
                    let text = lines.get(i).map(String::as_str).unwrap_or_default();
                    output::one_line(text).into_owned()
                };
                let (number, verdict) = if i == 0 {
                    (step.to_string(), *word)
                } else {
                    (String::new(), "")
                };
                let painted = self.painted(&format!("{verdict:<6}"), if *word == "shown" { "32" } else { "31" });
                let line = format!(
                    " {number:<2} {:<promise_width$}  {painted}  {}",
                    cell(&left),
                    cell(&right)
                );
                self.styled(line.trim_end());
            }
        }
        self.say(&"-".repeat(WIDTH));
    }

    /// Prints a line of [`Self::painted`] words, where people read.
    fn styled(&self, line: &str) {
        if !self.json {
            output::styled(line);
        }
    }

    /// In colour, where there are some.
    fn painted(&self, text: &str, code: &str) -> String {
        let text = output::one_line(text);
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.into_owned()
        }
    }

    /// Prints a line, where people read.
    pub(super) fn say(&self, line: &str) {
        if !self.json {
            output::line(line);
        }
    }
}

/// Whether a time keeps its promise.
pub(super) fn in_time(took: Duration, target: Target) -> bool {
    took <= target.time * target.patience
}

/// A time beside its target, and what is wrong with it.
pub(super) fn against(took: Duration, target: Target) -> String {
    let (took_text, target_text) = (millis(took), millis(target.time));
    if took <= target.time {
        format!("{took_text} (target {target_text})")
    } else {
        let fails = match target.patience {
            1 => String::new(),
            times => format!(" (a step fails past {times} times that)"),
        };
        format!("{took_text}, past its target of {target_text}{fails}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMISES: [Promise; 2] = [
        Promise {
            id: "a",
            text: "a holds",
        },
        Promise {
            id: "b",
            text: "b holds",
        },
    ];

    #[test]
    fn what_was_not_shown_has_failed() {
        let mut board = Board::new(true);
        board.begin("a step", &PROMISES);
        board.shown("a", "seen");
        assert!(!board.all_shown());
        board.finish(Err(anyhow::anyhow!("broke off")));
        assert!(matches!(&board.rows[1].outcome, Outcome::Failed(why) if why == "broke off"));
        board.shown("b", "too late");
        assert!(!board.all_shown(), "a failure stays");
    }

    #[test]
    fn times_fail_only_past_five_times_their_target_and_promised_ones_past_it() {
        let mut board = Board::new(true);
        board.begin("a step", &PROMISES);
        let time = Duration::from_millis(10);
        let target = Target::quick(time);
        board.timed("a", time * 5, target, "");
        board.timed("b", time * 5 + Duration::from_millis(1), target, "");
        assert!(matches!(&board.rows[0].outcome, Outcome::Shown(text) if text.contains("past its target")));
        assert!(matches!(board.rows[1].outcome, Outcome::Failed(_)));
        let strict = Target::strict(time);
        assert!(in_time(time, strict) && !in_time(time + Duration::from_millis(1), strict));
    }
}
