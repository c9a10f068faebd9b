//! Lines of the log, so many in a time from each place in the program: whoever is refused as often as they like makes us
//! write no more of it than that. What is left out is counted, and the next line of its place says how much that was.
//!
//! It holds for every line from `info` up, libraries' included, since each of them may be one that a peer can cause; `debug`
//! and `trace` are for whoever asks for all.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::LogFormat;

/// Lines of one place at once: what a fleet that comes back, or a kill of many, says of itself.
const BURST: f64 = 100.0;
/// And in a second after that: at some hundred bytes each, no 100 MB a day.
const PER_SECOND: f64 = 2.0;

/// Lines of the log that were left out.
const LEFT_OUT: &str = "aip_log_lines_left_out_total";

/// What is left of one place's rate.
#[derive(Debug)]
struct Place {
    tokens: f64,
    refilled: Instant,
    left_out: u64,
}

/// Writes lines as `lines` does, so many in a time.
#[derive(Debug)]
pub(super) struct Rated<F> {
    lines: F,
    format: LogFormat,
    // As many as there are places in the program.
    places: Mutex<HashMap<Identifier, Place>>,
}

impl<F> Rated<F> {
    pub(super) fn new(lines: F, format: LogFormat) -> Self {
        Self {
            lines,
            format,
            places: Mutex::default(),
        }
    }

    /// Whether a line of this place is written now, and how many were left out since the one before.
    fn take(&self, place: Identifier, now: Instant) -> Option<u64> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(place).or_insert(Place {
            tokens: BURST,
            refilled: now,
            left_out: 0,
        });
        let refill = now.saturating_duration_since(place.refilled).as_secs_f64() * PER_SECOND;
        place.tokens = (place.tokens + refill).min(BURST);
        place.refilled = now;
        if place.tokens < 1.0 {
            place.left_out += 1;
            return None;
        }
        place.tokens -= 1.0;
        Some(std::mem::take(&mut place.left_out))
    }
}

impl<S, N, F> FormatEvent<S, N> for Rated<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if *event.metadata().level() > Level::INFO {
            return self.lines.format_event(ctx, writer, event);
        }
        match self.take(event.metadata().callsite(), Instant::now()) {
            None => {
                metrics::counter!(LEFT_OUT).increment(1);
                Ok(())
            }
            Some(0) => self.lines.format_event(ctx, writer, event),
            Some(left_out) => {
                let mut line = String::new();
                self.lines.format_event(ctx, Writer::new(&mut line), event)?;
                writer.write_str(&saying(&line, left_out, self.format))
            }
        }
    }
}

/// The line, and how many like it were left out.
fn saying(line: &str, left_out: u64, format: LogFormat) -> String {
    let line = line.trim_end();
    match (format, line.strip_suffix('}')) {
        (LogFormat::Json, Some(members)) => format!("{members},\"left_out\":{left_out}}}\n"),
        _ => format!("{line} left_out={left_out}\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::subscriber;
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn log(format: LogFormat, written: &Written) -> Box<dyn Subscriber + Send + Sync> {
        let written = written.clone();
        subscriber(format, "info", move || written.clone())
    }

    fn lines(written: &Written) -> Vec<String> {
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    fn refuse(detail: u64) {
        tracing::warn!(detail, "refused");
    }

    #[test]
    fn whoever_is_refused_without_end_does_not_fill_the_disk() {
        for format in [LogFormat::Json, LogFormat::Text] {
            let written = Written::default();
            tracing::subscriber::with_default(log(format, &written), || {
                (0..10_000).for_each(refuse);
                tracing::warn!("another place");
            });
            let lines = lines(&written);
            // However slow this is: it takes no minute.
            assert!((100..250).contains(&lines.len()), "{format:?}: {}", lines.len());
            assert!(lines.last().unwrap().contains("another place"), "{format:?}");
        }
    }

    #[test]
    fn the_next_line_says_how_many_were_left_out() {
        let written = Written::default();
        let mut refused = 0;
        tracing::subscriber::with_default(log(LogFormat::Json, &written), || {
            // The hundred are soon used up, and one more comes back every half second.
            while lines(&written).len() < 102 {
                refuse(refused);
                refused += 1;
            }
        });
        let lines = lines(&written);
        let last: serde_json::Value = serde_json::from_str(lines.last().unwrap()).unwrap();
        assert_eq!(
            (&last["message"], &last["detail"]),
            (&"refused".into(), &(refused - 1).into())
        );
        let left_out = |line: &String| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["left_out"].as_u64().unwrap_or(0)
        };
        assert_eq!(lines.iter().map(left_out).sum::<u64>() + lines.len() as u64, refused);
    }

    #[test]
    fn a_place_gets_its_lines_back_in_time() {
        let rated = Rated::new((), LogFormat::Text);
        let site = || tracing::callsite::Identifier(&SITE);
        let began = Instant::now();
        let taken = |at| (0..500).filter(|_| rated.take(site(), at).is_some()).count();
        assert_eq!(taken(began), 100);
        assert_eq!(taken(began + Duration::from_secs(10)), 20);
        assert_eq!(taken(began + Duration::from_secs(3_600)), 100);
    }

    struct Site;
    static SITE: Site = Site;
    impl tracing::callsite::Callsite for Site {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}
        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("nobody asks")
        }
    }

    #[test]
    fn a_line_stays_what_it_is_in_both_formats() {
        let json = saying("{\"level\":\"WARN\",\"message\":\"m\"}\n", 7, LogFormat::Json);
        assert_eq!(json, "{\"level\":\"WARN\",\"message\":\"m\",\"left_out\":7}\n");
        let text = saying("WARN m: {a}\n", 7, LogFormat::Text);
        assert_eq!(text, "WARN m: {a} left_out=7\n");
    }
}
