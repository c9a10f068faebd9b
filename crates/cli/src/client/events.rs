//! Server-sent events (WHATWG HTML, section 9.2), as far as the control plane sends them.

use std::time::Duration;

use crate::http::{HttpError, Open};

/// Longest silence: three of the control plane's comments.
const SILENCE: Duration = Duration::from_secs(45);
/// Largest event: a record and where it stands.
const MAX_EVENT: usize = 16 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// What it is.
    pub(crate) name: String,
    /// What it says.
    pub(crate) data: String,
}

/// A stream of them.
#[derive(Debug)]
pub(crate) struct Events {
    body: Open,
    lines: Lines,
}

impl Events {
    pub(super) fn new(body: Open) -> Self {
        Self {
            body,
            lines: Lines::default(),
        }
    }

    /// The next event; none where the stream has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, HttpError> {
        loop {
            if let Some(event) = self.lines.take() {
                return Ok(Some(event));
            }
            match self.body.part(SILENCE).await? {
                Some(part) => self.lines.add(&part)?,
                None => return Ok(None),
            }
        }
    }
}

/// What came and is no event yet.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Up to here there is no end of an event.
    looked: usize,
}

impl Lines {
    fn add(&mut self, part: &[u8]) -> Result<(), HttpError> {
        if self.bytes.len() + part.len() > MAX_EVENT {
            return Err(HttpError::Broken(format!("an event of more than {MAX_EVENT} bytes")));
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }

    fn take(&mut self) -> Option<Event> {
        loop {
            let end = self.bytes[self.looked..].windows(2).position(|two| two == b"\n\n");
            let Some(end) = end else {
                // The first half of an end may be there.
                self.looked = self.bytes.len().saturating_sub(1);
                return None;
            };
            let end = self.looked + end;
            let event = event(&String::from_utf8_lossy(&self.bytes[..end]));
            self.bytes.drain(..end + 2);
            self.looked = 0;
            if event.is_some() {
                return event;
            }
        }
    }
}

/// An event of its lines; none where they are comments.
fn event(text: &str) -> Option<Event> {
    let mut event = Event {
        name: String::new(),
        data: String::new(),
    };
    for line in text.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut event.name),
            "data" if event.data.is_empty() => value.clone_into(&mut event.data),
            "data" => event.data = format!("{}\n{value}", event.data),
            _ => {}
        }
    }
    (!event.data.is_empty()).then_some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let sent = ":\n\nevent: record\ndata: {\"a\":1}\n\n: still here\n\nevent: missed\ndata: 3\n\n";
        for step in 1..sent.len() {
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            for part in sent.as_bytes().chunks(step) {
                lines.add(part).unwrap();
                seen.extend(std::iter::from_fn(|| lines.take()));
            }
            let seen: Vec<_> = seen.iter().map(|e| (e.name.as_str(), e.data.as_str())).collect();
            assert_eq!(
                seen,
                [("record", "{\"a\":1}"), ("missed", "3")],
                "{step} bytes at a time"
            );
        }
    }

    #[test]
    fn an_event_without_an_end_is_not_kept_for_ever() {
        let mut lines = Lines::default();
        let part = vec![b'x'; MAX_EVENT / 2];
        assert!(lines.add(&part).is_ok() && lines.add(&part).is_ok() && lines.add(b"x").is_err());
    }
}
