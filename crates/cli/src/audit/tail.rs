//! `aip audit tail`: records as they come up to the control plane, whenever they were made; over lost connections and restarts
//! of the control plane.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::Wanted;
use super::records::{PAGE, asked, cells, path};
use crate::Globals;
use crate::client::{Admin, Event, Events};
use crate::exit::{Exit, Failure};
use crate::output::{self, cell, timestamp};

/// Between two tries for a connection that was lost.
const AGAIN: Duration = Duration::from_secs(1);
/// Records that are read to catch up: a mesh that made more meanwhile is not read line by line, and it is said.
const CATCH_UP: usize = 20_000;
/// How far back catching up begins before what was lost, in milliseconds: records come up with some delay.
const OVERLAP_MILLIS: u64 = 30_000;
/// Shown records between two looks for those that need not be remembered any more.
const FORGET: usize = 20_000;
/// What the control plane answers for a moment, as while it starts or where too many watch.
const PASSING: [&str; 2] = ["overloaded", "draining"];

/// What was shown and what is still to be.
struct Tail<'a> {
    globals: &'a Globals,
    wanted: Wanted,
    /// Records that were shown, by log and place, and when they were made: what catching up finds, the stream may bring again.
    seen: HashMap<(String, u64), u64>,
    /// Records since the last look at what to forget.
    fresh: usize,
    /// When something was heard last, Unix milliseconds.
    heard: u64,
    /// What was there when it began is shown.
    begun: bool,
}

fn now() -> u64 {
    aip_runtime::unix_now().saturating_mul(1000)
}

/// Where the stream is. Without a time it brings whatever comes up, however old that is.
fn stream(wanted: &Wanted) -> String {
    asked("/v1/audit/records/watch?limit=1".to_owned(), wanted, None)
}

/// Shows what comes, until it is ended.
pub(super) async fn tail(globals: &Globals, wanted: &Wanted) -> anyhow::Result<ExitCode> {
    if let Some(until) = wanted.until.filter(|until| *until <= now()) {
        let what = format!("nothing comes up any more of before {}", timestamp(until / 1000));
        return Err(Failure::new(Exit::Usage, what)
            .next("`aip audit query --until …` finds what is there; tail follows what comes")
            .into());
    }
    let admin = Admin::open(globals)?;
    tokio::select! {
        ended = follow(globals, &admin, wanted) => ended,
        () = over(wanted) => {
            output::note("aip: what was asked for is over");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Resolves when nothing that is wanted is still to come up.
async fn over(wanted: &Wanted) {
    match wanted.until {
        Some(until) => {
            let left = until.saturating_add(OVERLAP_MILLIS).saturating_sub(now());
            tokio::time::sleep(Duration::from_millis(left)).await;
        }
        None => std::future::pending().await,
    }
}

/// Shows what comes over lost connections, until nobody reads it.
async fn follow(globals: &Globals, admin: &Admin, wanted: &Wanted) -> anyhow::Result<ExitCode> {
    let mut tail = Tail {
        globals,
        wanted: wanted.clone(),
        seen: HashMap::new(),
        fresh: 0,
        heard: now(),
        begun: wanted.since.is_none(),
    };
    // Before what is there is read: what comes up meanwhile waits in it.
    let mut events = admin.events(&stream(wanted)).await?;
    let mut since = wanted.since;
    loop {
        let Some(lost) = tail.follow(admin, &mut events, since).await? else {
            return Ok(ExitCode::SUCCESS);
        };
        output::note(format!("aip: {lost}; trying again"));
        let from = tail.heard;
        events = tail.again(admin).await?;
        output::note(format!(
            "aip: there again, with what came up since {}",
            timestamp(from / 1000)
        ));
        if tail.begun {
            since = Some(from.saturating_sub(OVERLAP_MILLIS));
        }
    }
}

impl Tail<'_> {
    /// Catches up from `since` on, and shows what comes until the connection is lost; answers how. Nothing, where nobody reads it
    /// any more.
    async fn follow(
        &mut self,
        admin: &Admin,
        events: &mut Events,
        since: Option<u64>,
    ) -> Result<Option<String>, Failure> {
        if let Some(since) = since
            && let Err(failure) = self.catch_up(admin, since).await
        {
            return passes(failure).map(Some);
        }
        self.begun = true;
        while !output::is_unread() {
            match events.next().await {
                Ok(Some(event)) => {
                    if let Some(lost) = self.took(admin, &event).await? {
                        return Ok(Some(lost));
                    }
                }
                Ok(None) => return Ok(Some("the control plane ended the connection".to_owned())),
                Err(error) => return Ok(Some(error.to_string())),
            }
        }
        Ok(None)
    }

    /// Takes an event; answers why nothing more comes, where that is so.
    async fn took(&mut self, admin: &Admin, event: &Event) -> Result<Option<String>, Failure> {
        match event.name.as_str() {
            "record" => {
                if let Ok(item) = serde_json::from_str(&event.data) {
                    self.show(&item);
                }
            }
            // More came up at once than it could be told of: they are there to be read.
            "missed" => {
                let since = self.heard.saturating_sub(OVERLAP_MILLIS);
                if let Err(failure) = self.catch_up(admin, since).await {
                    return passes(failure).map(Some);
                }
            }
            "end" => {
                let what = "the control plane ended the stream of records";
                return Err(match serde_json::from_str(&event.data) {
                    Ok(problem) => Failure::of_problem(what, &problem),
                    Err(_) => Failure::new(Exit::Failed, what).why(event.data.clone()),
                });
            }
            _ => {}
        }
        self.heard = now();
        Ok(None)
    }

    /// A stream, as soon as there can be one.
    async fn again(&self, admin: &Admin) -> Result<Events, Failure> {
        loop {
            tokio::time::sleep(AGAIN).await;
            match admin.events(&stream(&self.wanted)).await {
                Ok(events) => return Ok(events),
                Err(failure) => passes(failure).map(|_| ())?,
            }
        }
    }

    /// Shows what was made since then and was not shown, oldest first.
    async fn catch_up(&mut self, admin: &Admin, since: u64) -> Result<(), Failure> {
        let wanted = Wanted {
            since: Some(since.max(self.wanted.since.unwrap_or(0))),
            ..self.wanted.clone()
        };
        let (mut fresh, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let page = admin.get(&path(&wanted, PAGE, cursor.as_deref())).await?;
            for item in page["items"].as_array().into_iter().flatten() {
                fresh.extend((!self.seen.contains_key(&key(item))).then(|| item.clone()));
            }
            match page["next"].as_str() {
                Some(next) if fresh.len() < CATCH_UP => cursor = Some(next.to_owned()),
                Some(_) => {
                    output::note(format!(
                        "aip: more than {CATCH_UP} records to catch up with; those before the next line are not shown (aip audit query)"
                    ));
                    break;
                }
                None => break,
            }
        }
        fresh.iter().rev().for_each(|item| self.show(item));
        Ok(())
    }

    fn show(&mut self, item: &Value) {
        let at = item["record"]["at"].as_u64().unwrap_or_default();
        if self.seen.insert(key(item), at).is_some() {
            return;
        }
        if self.globals.json() {
            output::json_line(item);
        } else {
            output::line(cells(item).join("  "));
        }
        self.fresh += 1;
        if self.fresh >= FORGET {
            // What is older is not caught up with again.
            let keep = now().min(self.heard).saturating_sub(2 * OVERLAP_MILLIS);
            self.seen.retain(|_, at| *at >= keep);
            self.fresh = 0;
        }
    }
}

/// By its log and its place there.
fn key(item: &Value) -> (String, u64) {
    (cell(&item["log"]), item["record"]["seq"].as_u64().unwrap_or_default())
}

/// What is wrong, where that passes; else the failure.
fn passes(failure: Failure) -> Result<String, Failure> {
    let away = matches!(failure.exit, Exit::NotReachable | Exit::TimedOut);
    match away || PASSING.contains(&&*failure.reason) {
        true => Ok(failure.what),
        false => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_time_the_stream_brings_what_comes_up_late() {
        let wanted = Wanted {
            tool: Some("pay".into()),
            ..Wanted::default()
        };
        assert_eq!(stream(&wanted), "/v1/audit/records/watch?limit=1&tool=pay");
        let since = Wanted {
            since: Some(7),
            ..Wanted::default()
        };
        assert!(stream(&since).ends_with("&since=7"), "what was asked for is asked for");
    }

    #[test]
    fn a_connection_that_is_lost_passes_and_a_refusal_does_not() {
        for exit in [Exit::NotReachable, Exit::TimedOut] {
            assert!(passes(Failure::new(exit, "x")).is_ok());
        }
        assert!(passes(Failure::new(Exit::NotAuthorized, "x")).is_err());
        let mut busy = Failure::new(Exit::Failed, "x");
        busy.reason = "overloaded".into();
        assert!(passes(busy).is_ok());
    }
}
