//! The alert rules: each fires when it should and not before, and is about a metric that there is.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn promtool_holds_the_rules_to_their_tests() {
    let rules = root().join("deploy/prometheus");
    let found = Command::new("sh").arg(rules.join("promtool.sh")).output().unwrap();
    let said = String::from_utf8_lossy(&found.stderr).into_owned();
    assert!(found.status.success(), "promtool can't be had: {said}");
    let promtool = String::from_utf8(found.stdout).unwrap();
    for arguments in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]] {
        let ended = Command::new(promtool.trim())
            .args(arguments)
            .current_dir(&rules)
            .output()
            .unwrap();
        let (out, err) = (
            String::from_utf8_lossy(&ended.stdout),
            String::from_utf8_lossy(&ended.stderr),
        );
        assert!(ended.status.success(), "promtool {arguments:?}:\n{out}\n{err}");
    }
}

/// The words of a text that name metrics of ours.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("aip_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_alert_is_about_a_metric_that_there_is_and_has_a_test() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let (rules, tests) = (
        read("deploy/prometheus/alerts.yaml"),
        read("deploy/prometheus/alerts_test.yaml"),
    );
    // A histogram is scraped as its buckets, their sum and their count.
    let documented: BTreeSet<String> = read("docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .flat_map(|(name, rest)| {
            let kinds: &[&str] = if rest.starts_with(" | histogram") {
                &["_bucket", "_sum", "_count"]
            } else {
                &[""]
            };
            kinds.iter().map(move |kind| format!("{name}{kind}"))
        })
        .collect();
    let unknown: Vec<_> = metrics(&rules).difference(&documented).cloned().collect();
    assert!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        let fires = tests
            .split("\n      - ")
            .any(|case| case.contains(&format!("alertname: {alert}\n")) && case.contains("exp_labels"));
        assert!(fires, "no test lets {alert} fire");
    }
}
