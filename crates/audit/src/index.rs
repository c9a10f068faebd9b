//! Finding records in logs: by time, verdict, tool, hop, trace or decision, newest first.
//!
//! Beside each segment stands `index-<number:08>.bin`, a row of fixed size for each record: when it was made, where its
//! line begins, and a hash of each word that is asked for. It is derived from the segment and trusted with nothing: a hit
//! is read from the segment and compared with what was asked, and an index that does not fit is made anew.

mod find;
mod row;

pub use find::{Bounds, Cursor, Found, Hit, Log, find};
pub(crate) use row::is_beside;
pub use row::{ROW_BYTES, Rows, rebuild, row};

use crate::record::{Event, Record};

/// What is asked for; what is absent matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The verdict of a decision.
    pub verdict: Option<String>,
    /// The tool that was called.
    pub tool: Option<String>,
    /// The hop.
    pub hop: Option<String>,
    /// The trace id.
    pub trace: Option<String>,
    /// The decision: it and the end that belongs to it.
    pub decision: Option<String>,
    /// Unix milliseconds: this one and later ones.
    pub since: Option<u64>,
    /// Unix milliseconds: before this one.
    pub until: Option<u64>,
}

impl Filter {
    /// Whether a record is asked for.
    pub fn matches(&self, record: &Record) -> bool {
        self.in_time(record.at) && self.matches_words(record)
    }

    /// The same, whenever it was made.
    fn matches_words(&self, record: &Record) -> bool {
        let said = Said::of(record);
        let same = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        same(&self.verdict, &said.verdict)
            && same(&self.tool, &said.tool)
            && same(&self.hop, &said.hop)
            && same(&self.trace, &said.trace)
            && same(&self.decision, &said.decision)
    }

    fn in_time(&self, at: u64) -> bool {
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }
}

/// The words of a record by which it is found; empty where it has none.
struct Said {
    hop: String,
    trace: String,
    decision: String,
    verdict: String,
    tool: String,
}

impl Said {
    fn of(record: &Record) -> Self {
        let text = |id: Option<String>| id.unwrap_or_default();
        match &record.event {
            Event::Decision(decision) => Self {
                hop: text(decision.hop.as_ref().map(ToString::to_string)),
                trace: decision.trace.clone(),
                decision: decision.id.to_string(),
                verdict: decision.verdict.clone(),
                tool: decision.tool.clone(),
            },
            Event::End(end) => Self {
                hop: text(end.hop.as_ref().map(ToString::to_string)),
                trace: String::new(),
                decision: end.id.to_string(),
                verdict: String::new(),
                tool: String::new(),
            },
            Event::Strangers(_) | Event::Gap(_) | Event::Dropped(_) => Self {
                hop: String::new(),
                trace: String::new(),
                decision: String::new(),
                verdict: String::new(),
                tool: String::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
