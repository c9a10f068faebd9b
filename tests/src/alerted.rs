//! What the alert rules ask the increase of: it must be on the page of its process from the start, since of what begins at 1
//! nothing has increased. Sidecar and control plane hold themselves to it by this file.

use std::collections::BTreeSet;
use std::path::Path;

/// The metrics whose increase the alert rules in `root` ask for, of these subjects (`kill`, `audit`).
pub fn asked(root: &Path, subjects: &[&str]) -> BTreeSet<String> {
    let alerts = std::fs::read_to_string(root.join("deploy/prometheus/alerts.yaml")).unwrap();
    let name = |rest: &str| {
        let mut words = rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.next().map(str::to_owned)
    };
    let asked = alerts.split("increase(").skip(1).filter_map(name);
    let is_of = |name: &str, subject: &str| name.strip_prefix("aip_").is_some_and(|rest| rest.starts_with(subject));
    asked
        .filter(|name| subjects.iter().any(|subject| is_of(name, subject)))
        .collect()
}

/// Whether the page has a sample of this metric.
pub fn is_on(page: &str, name: &str) -> bool {
    let mut rests = page.lines().filter_map(|line| line.strip_prefix(name));
    rests.any(|rest| rest.starts_with([' ', '{']))
}
