//! Access logs: what sidecars say they let through or refused.

use std::collections::BTreeSet;

use serde_json::Value;

/// One line of a sidecar's access log.
#[derive(Debug, Clone, PartialEq)]
pub struct Record(pub Value);

impl Record {
    /// A field as text; empty where it is absent or null.
    pub fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }
    pub fn status(&self) -> u64 {
        self.0["status"].as_u64().unwrap_or_default()
    }
    pub fn hop(&self) -> &str {
        self.text("hop")
    }
    pub fn verdict(&self) -> &str {
        self.text("verdict")
    }
    pub fn reason(&self) -> &str {
        self.text("reason")
    }
    pub fn direction(&self) -> &str {
        self.text("direction")
    }
    pub fn path(&self) -> &str {
        self.text("path")
    }
}

/// The records in a log; other lines are left out.
#[derive(Debug, Clone, Default)]
pub struct Records(pub Vec<Record>);

impl Records {
    pub fn parse(log: &str) -> Self {
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Self(lines.filter(|line| line["kind"] == "access").map(Record).collect())
    }

    /// Those of one direction: `outbound` or `inbound`.
    pub fn of(&self, direction: &str) -> Self {
        Self(self.0.iter().filter(|r| r.direction() == direction).cloned().collect())
    }

    /// The hop ids.
    pub fn hops(&self) -> BTreeSet<String> {
        self.0.iter().map(|r| r.hop().to_owned()).collect()
    }
}

/// Whether every call of the caller is on both ends' records: the same hop ids, allowed at both, and at least one.
///
/// # Errors
/// What is missing.
pub fn pairs(caller: &Records, callee: &Records) -> Result<(Records, Records), String> {
    let (outbound, inbound) = (caller.of("outbound"), callee.of("inbound"));
    if outbound.0.is_empty() {
        return Err("the caller's sidecar recorded nothing: the client went around the mesh".into());
    }
    let (ours, theirs) = (outbound.hops(), inbound.hops());
    if ours != theirs {
        return Err(format!("the caller recorded hops {ours:?}, the callee {theirs:?}"));
    }
    if ours.contains("") {
        return Err("a record has no hop id".into());
    }
    match outbound.0.iter().chain(&inbound.0).find(|r| r.verdict() != "allow") {
        Some(refused) => Err(format!("not allowed: {}", refused.0)),
        None => Ok((outbound, inbound)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[(&str, &str, &str)]) -> Records {
        let line = |(direction, hop, verdict): &(&str, &str, &str)| {
            format!(r#"{{"kind":"access","direction":"{direction}","hop":"{hop}","verdict":"{verdict}"}}"#) + "\n"
        };
        Records::parse(&(String::from("not a record\n") + &lines.iter().map(line).collect::<String>()))
    }

    #[test]
    fn who_goes_around_has_no_pair() {
        let caller = log(&[("outbound", "1", "allow"), ("inbound", "9", "allow")]);
        let callee = log(&[("inbound", "1", "allow")]);
        assert_eq!(pairs(&caller, &callee).unwrap().0.0.len(), 1);
        for (caller, callee, why) in [
            (log(&[]), log(&[]), "around the mesh"),
            (log(&[]), callee.clone(), "around the mesh"),
            (caller.clone(), log(&[]), "recorded hops"),
            (caller.clone(), log(&[("inbound", "2", "allow")]), "recorded hops"),
            (caller, log(&[("inbound", "1", "deny")]), "not allowed"),
            (
                log(&[("outbound", "", "allow")]),
                log(&[("inbound", "", "allow")]),
                "no hop id",
            ),
        ] {
            let error = pairs(&caller, &callee).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
