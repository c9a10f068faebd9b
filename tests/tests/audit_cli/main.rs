//! The audit trail as people use it: `aip audit` against a mesh of processes, and against files alone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tail;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use aip_api::Digest;
use aip_audit::Record;
use aip_audit::log::{segment_path, segments};
use aip_audit::verify::{Fault, Kind, LogReport, Report};
use aip_tests::agent::Agent;
use aip_tests::http::Answer;
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::{trail, wait};
use http::{Method, Request};
use serde_json::{Value, json};

/// Whoever pays more than a hundred is refused; nobody closes the books.
const POLICY: &str = "package aip.policy.books\n\n\
    rules contains {\"rule\": \"books/large\", \"verdict\": \"deny\", \"reason\": \"too much\"} if input.protocol.arguments.amount > 100\n\n\
    rules contains {\"rule\": \"books/close\", \"verdict\": \"deny\", \"reason\": \"no\"} if input.protocol.tool == \"close_books\"\n";
/// A trace of the caller's.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

struct Rig {
    mesh: Mesh,
    caller: Sidecar,
    callee: Sidecar,
    agent: Agent,
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

impl Rig {
    async fn start() -> Self {
        let mesh = Mesh::start().await;
        let agent = Agent::start();
        let caller = mesh.sidecar("caller", agent.address).await;
        let callee = mesh.sidecar("callee", agent.address).await;
        mesh.admin()
            .apply(&json!({"name": "books", "rego": POLICY, "attach": "mesh"}))
            .await;
        let rig = Self {
            mesh,
            caller,
            callee,
            agent,
        };
        wait::until("a call gets through", async || {
            (rig.tool("balance", 1).await.status == 200).then_some(())
        })
        .await;
        rig
    }

    async fn tool(&self, tool: &str, amount: u64) -> Answer {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": tool, "arguments": {"amount": amount}}});
        let request = Request::post("http://callee.aip.internal/mcp").header("content-type", "application/json");
        let request = request.header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"));
        self.caller.call(request, call.to_string()).await
    }

    /// A call that policy denies; the decision that denied it.
    async fn denied(&self, tool: &str, amount: u64) -> String {
        let answer = self.tool(tool, amount).await;
        assert_eq!(answer.status, 403, "{}", answer.text());
        let said = answer.header("x-aip-decision");
        said.split(';').next().unwrap().to_owned()
    }

    fn aip(&self, arguments: &[&str]) -> Output {
        self.mesh.aip(arguments)
    }

    /// What a command that succeeds prints as JSON.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.aip(&[arguments, &["--output", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What `replay` says, once the record has come up, and how it ends.
    async fn replayed(&self, decision: &str, more: &[&str]) -> (Value, Option<i32>) {
        let arguments = [&["audit", "replay", decision, "--output", "json"][..], more].concat();
        wait::until_ok("the decision is recorded", async || {
            let output = self.aip(&arguments);
            let said = serde_json::from_slice(&output.stdout).map_err(|_| text(&output))?;
            Ok((said, output.status.code()))
        })
        .await
    }

    fn audit(&self, sidecar: &Sidecar) -> String {
        sidecar.dir.join("data/audit").to_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_call_is_decided_again_and_a_fact_that_was_not_kept_is_named() {
    let rig = Rig::start().await;
    // Which tool is called is kept; what it is called with is not.
    let closed = rig.denied("close_books", 1).await;
    let (said, code) = rig.replayed(&closed, &[]).await;
    assert_eq!((&said["same"], code), (&json!(true), Some(0)), "{said}");
    assert_eq!(said["recorded"], json!({"verdict": "deny", "rule": "books/close"}));
    assert_eq!(said["recorded"], said["replayed"]);
    let paid = rig.denied("transfer", 5_000).await;
    let (said, code) = rig.replayed(&paid, &[]).await;
    assert_eq!((&said["same"], code), (&json!(false), Some(1)), "{said}");
    assert!(said["not_kept"].to_string().contains("protocol.arguments"), "{said}");
    // From the files of whoever denied it.
    let own = rig.audit(&rig.caller);
    let (again, _) = rig.replayed(&closed, &["--dir", &own]).await;
    assert_eq!(again["same"], true, "{again}");
    for said in [&said, &again] {
        assert!(said["agent"].as_str().unwrap().ends_with("caller"), "{said}");
    }
    assert_eq!(again["log"].as_str().map(str::len), Some(36), "{again}");
    let elsewhere = aip_audit::log::fresh_name();
    let elsewhere = rig.aip(&["audit", "replay", &closed, "--dir", &own, "--log", &elsewhere]);
    assert_eq!(elsewhere.status.code(), Some(5), "{}", text(&elsewhere));
    assert!(
        text(&elsewhere).contains("name one of these logs"),
        "{}",
        text(&elsewhere)
    );
    let unknown = aip_api::id::DecisionId::fresh().to_string();
    assert_eq!(
        rig.aip(&["audit", "replay", &unknown, "--dir", &own]).status.code(),
        Some(5)
    );

    // With an auditor's key in the settings it is kept for that auditor, and for nobody else.
    let key = rig.mesh.dir("auditor").join("key");
    let made = rig.json(&["audit", "keygen", key.to_str().unwrap()]);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let twice = rig.aip(&["audit", "keygen", key.to_str().unwrap()]);
    assert_eq!(twice.status.code(), Some(1), "{}", text(&twice));
    let mut config = rig.mesh.admin().get("/v1/mesh-config").await;
    let config = &mut config["resource"];
    config["audit"]["auditor_key"] = made["public_key"].clone();
    let put = rig.mesh.admin().ok(Method::PUT, "/v1/mesh-config", Some(config)).await;
    rig.mesh.admin().acknowledged(put["revision"].as_u64().unwrap()).await;
    let sealed = rig.denied("transfer", 6_000).await;
    let (said, code) = rig.replayed(&sealed, &["--auditor-key", key.to_str().unwrap()]).await;
    assert_eq!((&said["same"], code), (&json!(true), Some(0)), "{said}");
    assert_eq!(
        (&said["opened"], &said["not_kept"]),
        (&json!(true), &json!([])),
        "{said}"
    );
    let (without, _) = rig.replayed(&sealed, &[]).await;
    assert_eq!(without["opened"], false, "{without}");
    let other = rig.mesh.dir("auditor").join("other");
    rig.json(&["audit", "keygen", other.to_str().unwrap()]);
    let refused = rig.aip(&["audit", "replay", &sealed, "--auditor-key", other.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(8), "{}", text(&refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_found_followed_and_exported() {
    let rig = Rig::start().await;
    let denied = rig.denied("close_books", 1).await;
    let item = tail::followed(&rig, &denied).await;
    assert_eq!(item["record"]["verdict"], "deny");
    queried(&rig, &denied);
    exported(&rig);
    traced(&rig).await;
    assert!(!rig.agent.seen("/mcp").is_empty());
}

/// What runbooks send an operator to.
#[tokio::test(flavor = "multi_thread")]
async fn changes_logs_findings_and_the_lift_are_commands() {
    let rig = Rig::start().await;
    let killed = rig.aip(&["kill", "--agent", "callee", "--reason", "it leaks", "--wait"]);
    assert_eq!(killed.status.code(), Some(0), "{}", text(&killed));
    let changes = rig.json(&["audit", "changes", "--action", "kill.order"]);
    let shown = (&changes[0]["action"], changes[0]["actor"].as_str().unwrap());
    assert_eq!(shown.0, "kill.order", "{changes}");
    assert_eq!(changes.as_array().unwrap().len(), 1, "{changes}");
    let by = rig.json(&["audit", "changes", "--by", shown.1, "--limit", "2"]);
    assert_eq!(by.as_array().unwrap().len(), 2, "{by}");
    wait::until("the logs of both are there", async || {
        let logs = rig.json(&["audit", "logs"]);
        (logs.as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    assert_eq!(rig.json(&["audit", "findings"]), json!([]));
    assert_eq!(rig.json(&["audit", "mismatches"]), json!([]));
    let said = text(&rig.aip(&["audit", "findings"]));
    assert!(said.contains("nothing was found"), "{said}");

    let revision = rig.mesh.admin().get("/v1/status").await["revision"].as_u64().unwrap();
    let nobody = rig.aip(&["admin", "lift"]);
    assert_eq!(nobody.status.code(), Some(5), "{}", text(&nobody));
    let above = (revision + 10).to_string();
    let lifted = rig.aip(&["admin", "lift", "--above", &above]);
    assert_eq!(lifted.status.code(), Some(0), "{}", text(&lifted));
    let now = rig.mesh.admin().get("/v1/status").await["revision"].as_u64().unwrap();
    assert!(now > revision + 10, "{now}");
    let unknown = rig.aip(&["reputation", "show", "nosuch"]);
    let said = text(&unknown);
    assert_eq!(unknown.status.code(), Some(5), "{said}");
    assert!(
        said.contains("no agent is called nosuch") && !said.contains("`list` verb"),
        "{said}"
    );
}

fn queried(rig: &Rig, denied: &str) {
    let words = "audit query --verdict deny --tool close_books --since 1h";
    let query: Vec<&str> = words.split(' ').collect();
    let found = rig.json(&query);
    assert_eq!(found[0]["record"]["id"], denied, "{found}");
    let of_callee = rig.json(&[&query[..], &["--agent", "callee"]].concat());
    assert_eq!(of_callee, json!([]), "the caller's sidecar denied it");
    let own = rig.audit(&rig.caller);
    let here = rig.json(&[&query[..], &["--dir", &own]].concat());
    let here: Vec<&Value> = here.as_array().unwrap().iter().map(|item| &item["record"]).collect();
    assert!(
        here.contains(&&found[0]["record"]),
        "the same from the sidecar's own files: {here:?}"
    );
    let page = text(&rig.aip(&["audit", "query", "--decision", denied]));
    assert!(page.contains("close_books") && page.contains("books/close"), "{page}");
}

fn exported(rig: &Rig) {
    let first = |arguments: &[&str]| -> Value {
        let exported = text(&rig.aip(arguments));
        serde_json::from_str(exported.lines().next().unwrap()).unwrap()
    };
    let item = first(&["audit", "export", "--verdict", "deny"]);
    let shown = (&item["redacted"], &item["record"]["facts"]);
    assert_eq!(shown, (&json!(["facts"]), &Value::Null));
    let item = first(&["audit", "export", "--verdict", "deny", "--facts"]);
    assert_eq!(
        item["record"]["facts"]["kept"]["protocol"]["tool"], "close_books",
        "{item}"
    );
    let table = text(&rig.aip(&["audit", "export", "--as", "csv", "--tool", "close_books"]));
    assert!(
        table.starts_with("time,agent,what") && table.contains("\"deny\""),
        "{table}"
    );
}

/// One trace from all ends, oldest first: both decisions of the call that went through, and both ends.
async fn traced(rig: &Rig) {
    let whole = wait::until("both ends of the trace have come up", async || {
        let trace = text(&rig.aip(&["audit", "export", "--trace", TRACE]));
        let items: Vec<Value> = trace.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let has = |agent: &str, kind: &str| {
            let name = |item: &Value| item["agent"].as_str().unwrap().rsplit('/').next() == Some(agent);
            let is = |item: &Value| name(item) && item["record"]["kind"] == kind;
            items.iter().any(is)
        };
        let ends = ["caller", "callee"];
        ends.iter()
            .all(|agent| has(agent, "decision") && has(agent, "end"))
            .then(|| items.clone())
    })
    .await;
    let times: Vec<_> = whole
        .iter()
        .map(|item| item["record"]["at"].as_u64().unwrap())
        .collect();
    assert!(times.is_sorted(), "{times:?}");
}

/// How a copy of a log is tampered with at a record, and what that is called.
type Attack = (&'static str, fn(&Path, u64), &'static [Kind]);

const ATTACKS: [Attack; 5] = [
    (
        "a byte flipped",
        flip,
        &[
            Kind::NotARecord,
            Kind::ChainBroken,
            Kind::OutOfOrder,
            Kind::RecordsMissing,
        ],
    ),
    ("a record removed", remove, &[Kind::RecordsMissing]),
    ("a record doubled", double, &[Kind::OutOfOrder]),
    ("the tail cut", cut, &[Kind::Truncated]),
    ("rewritten with a valid chain", rewrite, &[Kind::Rewritten]),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_export_verifies_with_no_line_to_anywhere_and_every_change_to_it_is_named() {
    let rig = Rig::start().await;
    for amount in 0..12 {
        assert_eq!(rig.tool("balance", amount).await.status, 200);
    }
    comes_up(&rig).await;
    let export = rig.mesh.dir("exports").join("export");
    let made = rig.json(&["audit", "export", "--dir", export.to_str().unwrap()]);
    assert_eq!(made["logs"], 2, "{made}");
    let again = rig.aip(&["audit", "export", "--dir", export.to_str().unwrap()]);
    assert_eq!(
        again.status.code(),
        Some(2),
        "no export is mixed with an older one: {}",
        text(&again)
    );
    let root = root_of(&rig.mesh.admin().get("/v1/trust").await);
    let report = verified(&rig, &export, &root);
    assert!(report.intact(), "{:#?}", report.faults);
    assert_eq!((report.logs.len(), report.hops.both), (2, report.hops.agreed));
    let of_callee = |log: &&LogReport| log.agent.as_ref().is_some_and(|agent| agent.ends_with("/callee"));
    let log = report.logs.iter().find(of_callee).unwrap();
    let seq = log.signed - 4;
    for (what, attack, kinds) in ATTACKS {
        let copy = rig.mesh.dir("exports").join(what.replace(' ', "-"));
        copy_of(&export, &copy);
        attack(&copy.join("callee").join(&log.log), seq);
        let found = verified(&rig, &copy, &root).faults;
        let names = |fault: &Fault| {
            kinds.contains(&fault.kind) && fault.log == log.log && fault.seq.is_some_and(|found| found <= seq + 1)
        };
        assert!(found.iter().any(names), "{what}: {found:#?}");
    }
}

/// Waits until everything so far is signed at both ends, and the control plane has it.
async fn comes_up(rig: &Rig) {
    let records = |sidecar: &Sidecar| trail::events(&sidecar.dir.join("data/audit")).len() as u64;
    let all = records(&rig.caller).min(records(&rig.callee));
    wait::until_ok("everything is signed and has come up", async || {
        let report = trail::report_of_copies(&rig.mesh).await?;
        let signed = report.logs.len() == 2 && report.logs.iter().all(|log| log.signed >= all);
        let agreed = report.intact() && report.hops.agreed >= 12 && report.hops.pending == 0;
        (signed && agreed).then_some(()).ok_or_else(|| format!("{report:?}"))
    })
    .await;
}

/// What `verify` says with no control plane, and nothing but the root's digest from elsewhere.
fn verified(rig: &Rig, dir: &Path, root: &str) -> Report {
    let mut command = aip_tests::clients::aip(&["audit", "verify", "--output", "json", "--mesh-root", root, "--dir"]);
    command.arg(dir).env("AIP_HOME", rig.mesh.dir("nobody"));
    let output = command.env_remove("AIP_ADMIN").output().unwrap();
    let report: Report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    assert_eq!(output.status.code(), Some(i32::from(!report.intact())));
    report
}

/// The digest of a mesh's only root.
fn root_of(trust: &Value) -> String {
    use base64::Engine as _;
    let pem = trust["roots"][0].as_str().unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
    aip_runtime::x509::spki_digest(&der).unwrap().to_string()
}

fn copy_of(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to: PathBuf = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_of(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Changes the lines of the segment that holds record `seq`.
fn edit(dir: &Path, seq: u64, change: impl Fn(&mut Vec<Vec<u8>>, usize)) {
    for number in segments(dir).unwrap() {
        let path = segment_path(dir, number);
        let text = fs::read(&path).unwrap();
        let mut lines: Vec<Vec<u8>> = text.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        let is_it = |line: &Vec<u8>| Record::from_bytes(line).is_ok_and(|record| record.seq == seq);
        if let Some(at) = lines.iter().position(is_it) {
            change(&mut lines, at);
            return fs::write(&path, lines.join(&b'\n')).unwrap();
        }
    }
    panic!("record {seq} is in no segment");
}

fn flip(dir: &Path, seq: u64) {
    edit(dir, seq, |lines, at| {
        let middle = lines[at].len() / 2;
        lines[at][middle] ^= 1;
    });
}

fn remove(dir: &Path, seq: u64) {
    edit(dir, seq, |lines, at| drop(lines.remove(at)));
}

fn double(dir: &Path, seq: u64) {
    edit(dir, seq, |lines, at| lines.insert(at, lines[at].clone()));
}

/// Everything from there on, in a log of one segment.
fn cut(dir: &Path, seq: u64) {
    assert_eq!(segments(dir).unwrap().len(), 1);
    edit(dir, seq, |lines, at| {
        lines.truncate(at);
        lines.push(Vec::new());
    });
}

/// As one does who knows how the chain is made, and has no key.
fn rewrite(dir: &Path, seq: u64) {
    let mut prev: Option<Digest> = None;
    let path = segment_path(dir, 0);
    let mut text = Vec::new();
    for line in fs::read(&path)
        .unwrap()
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
    {
        let mut record = Record::from_bytes(line).unwrap();
        record.at += u64::from(record.seq == seq);
        record.prev = prev.unwrap_or(record.prev);
        let bytes = record.to_bytes().unwrap();
        prev = Some(aip_audit::merkle::leaf(&bytes));
        text.extend_from_slice(&bytes);
        text.push(b'\n');
    }
    fs::write(&path, text).unwrap();
}
