//! The documentation says what the code does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aip_sidecar::proxy::limits;
use aip_sidecar::request::refusal::{Cut, Refusal};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn doc(name: &str) -> String {
    std::fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// The cells of every table row that begins with a word in backquotes.
fn rows(text: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| {
        line.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    text.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

fn word(cell: &str) -> String {
    cell.trim_matches('`').to_owned()
}

/// The rows of the table below the heading.
fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let section = text.split(heading).nth(1).unwrap_or_else(|| panic!("no {heading}"));
    rows(section.split("\n## ").next().unwrap())
}

#[test]
fn every_refusal_is_documented_as_it_is() {
    let text = doc("errors.md");
    let documented: Vec<_> = table(&text, "## What a sidecar answers")
        .iter()
        .map(|row| (word(&row[0]), row[1].clone(), word(&row[2]), row[3].clone()))
        .collect();
    let actual: Vec<_> = Refusal::ALL
        .iter()
        .map(|refusal| {
            let nature = refusal.nature();
            let retryable = if nature.retryable { "yes" } else { "no" };
            (
                nature.reason.to_owned(),
                nature.status.to_string(),
                nature.blame.as_str().to_owned(),
                retryable.to_owned(),
            )
        })
        .collect();
    let expected = || {
        let row = |r: &(String, String, String, String)| format!("| `{}` | {} | {} | {} |", r.0, r.1, r.2, r.3);
        actual.iter().map(row).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(documented, actual, "the table must be:\n{}", expected());
}

#[test]
fn every_cut_is_documented() {
    let text = doc("errors.md");
    let documented: Vec<_> = table(&text, "## What ends a request or a connection that has begun")
        .iter()
        .map(|row| word(&row[0]))
        .collect();
    let actual: Vec<_> = Cut::ALL.iter().map(|cut| cut.reason().to_owned()).collect();
    assert_eq!(documented, actual);
}

/// Read as text: the two halves of the product don't know each other's code, only its documentation.
#[test]
fn every_refusal_of_the_control_plane_is_documented_as_it_is() {
    let documented: BTreeSet<_> = table(&doc("errors.md"), "## What the control plane answers")
        .iter()
        .map(|row| format!("{} {} {} {}", word(&row[0]), row[1], row[2], row[3]))
        .collect();
    let source = std::fs::read_to_string(root().join("control-plane/src/refusal.rs")).unwrap();
    let block = source
        .split("\nreasons! {")
        .nth(1)
        .unwrap()
        .split("\n}")
        .next()
        .unwrap();
    let words: Vec<&str> = block.split_whitespace().collect();
    // Name "reason" status code fault YES|NO "about"
    let is_row = |w: &&[&str]| w[0].starts_with('"') && w[1].parse::<u16>().is_ok() && matches!(w[4], "YES" | "NO");
    let row = |w: &[&str]| {
        let retryable = if w[4] == "YES" { "yes" } else { "no" };
        format!(
            "{} {} {} {retryable}",
            w[0].trim_matches('"'),
            w[1],
            w[3].to_lowercase()
        )
    };
    let actual: BTreeSet<_> = words.windows(5).filter(is_row).map(row).collect();
    let differ: Vec<_> = actual.symmetric_difference(&documented).collect();
    assert!(!actual.is_empty() && differ.is_empty(), "{differ:#?}");
}

fn sources(dir: &Path, out: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(std::fs::read_to_string(path).unwrap());
        }
    }
}

/// The names of metrics in the sources of what runs.
fn metrics_in_sources() -> BTreeSet<String> {
    let mut texts = Vec::new();
    for part in ["sidecar/src", "crates/runtime/src", "control-plane/src"] {
        sources(&root().join(part), &mut texts);
    }
    let mut names = BTreeSet::new();
    for text in &texts {
        for part in text.split("\"aip_").skip(1) {
            let name = part.split('"').next().unwrap();
            if name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
                names.insert(format!("aip_{name}"));
            }
        }
    }
    names
}

#[test]
fn every_word_for_what_is_not_established_is_documented() {
    let text = doc("errors.md");
    let documented: BTreeSet<_> = table(&text, "## Why a fact is not established")
        .iter()
        .map(|row| word(&row[0]))
        .collect();
    let mut texts = Vec::new();
    sources(&root().join("sidecar/src"), &mut texts);
    let said = [
        "Unestablished(\"",
        "nread(\"",
        "unestablish(&mut facts, \"",
        "ome(\"body_",
        "NOT_IN_THIS_VERSION: &str = \"",
    ];
    let mut actual = BTreeSet::new();
    for (text, before) in texts.iter().flat_map(|text| said.map(|before| (text, before))) {
        let prefix = before.rsplit('"').next().unwrap();
        for part in text.split(before).skip(1) {
            actual.insert(format!("{prefix}{}", part.split('"').next().unwrap()));
        }
    }
    assert_eq!(documented, actual);
}

#[test]
fn every_metric_is_documented_and_none_else() {
    let documented: BTreeSet<_> = rows(&doc("metrics.md")).iter().map(|row| word(&row[0])).collect();
    let actual = metrics_in_sources();
    let missing: Vec<_> = actual.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&actual).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not documented: {missing:?}; no longer there: {gone:?}"
    );
}

/// What the documents say of limits.
#[test]
fn documented_limits_are_the_limits() {
    let text = doc("errors.md");
    for (what, value) in [
        ("bytes of a body that policy reads", limits::MAX_HELD_BODY),
        (
            "bytes of memory that such a body takes once it is read",
            limits::MAX_JSON_MEMORY,
        ),
        (
            "bytes that are held for policy, of all peers: bodies, their heads, 8 KiB for each request whose body is awaited",
            limits::MAX_HELD_TOTAL,
        ),
        ("bytes of them, of one peer", limits::MAX_HELD_OF_PEER),
        ("nested arrays and objects in it", limits::MAX_JSON_DEPTH),
        ("connections from peers", limits::MAX_INBOUND_CONNECTIONS),
        ("connections from one source", limits::MAX_SOURCE_CONNECTIONS),
        ("connections before their handshake is over", limits::MAX_HANDSHAKES),
        ("connections of the agent", limits::MAX_OUTBOUND_CONNECTIONS),
        (
            "of these, on which nobody has shown the secret",
            limits::MAX_OUTBOUND_STRANGERS,
        ),
        ("streams of one connection", limits::MAX_STREAMS as usize),
        ("bytes of a head", limits::MAX_HEADER_LIST as usize),
        (
            "seconds for which a hop id is good",
            limits::HOP_WINDOW.as_secs() as usize,
        ),
    ] {
        let row = format!("| {what} | {value} |");
        assert!(text.contains(&row), "{row}");
    }
    assert_eq!(
        limits::WAITING_REQUEST,
        8 * 1024,
        "as the row of what all peers hold says"
    );
}

#[test]
fn documented_defaults_of_traffic_are_the_defaults() {
    let text = doc("http.md");
    let defaults = serde_json::to_value(aip_api::resource::Traffic::defaults()).unwrap();
    let rows = table(&text, "## Limits");
    for row in &rows {
        let (field, default) = (word(&row[0]), &row[1]);
        match defaults.get(&field) {
            Some(value) => assert_eq!(&value.to_string(), default, "{field}"),
            None => assert_eq!((field.as_str(), &default[..4]), ("peer_max_concurrency", "half")),
        }
    }
    let fields = defaults.as_object().unwrap().len();
    assert_eq!(
        rows.len(),
        fields,
        "all but the agent's name, and the one that is absent by default"
    );
}
