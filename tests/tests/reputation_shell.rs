//! Reputation from the shell: a verifier makes a key and reports by it, everybody looks, an operator begins anew, and a
//! control plane that was restored from an older copy is told what it forgot.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Sidecar, binary};
use aip_tests::wait;
use serde_json::Value;

const URL: &str = "http://a.aip.internal/x";

/// The command against this mesh; as the first admin where no token is named.
struct Shell<'a>(&'a Mesh);

impl Shell<'_> {
    fn run(&self, token: Option<&Path>, arguments: &[&str]) -> Output {
        let admin = self.0.control_plane.dir.join("data/admin.jwt");
        let mut command = Command::new(binary("aip"));
        command.args(arguments).current_dir(self.0.dir("shell"));
        command.env("AIP_HOME", self.0.dir("home"));
        command.env("AIP_ADMIN", format!("http://{}", self.0.admin().address));
        command.env("AIP_TOKEN_FILE", token.unwrap_or(&admin));
        command.output().unwrap()
    }

    /// What it printed.
    fn ok(&self, token: Option<&Path>, arguments: &[&str]) -> String {
        let output = self.run(token, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, token: Option<&Path>, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(token, &[arguments, &["--output", "json"]].concat())).unwrap()
    }

    /// What it said; it ends with `code`.
    fn refused(&self, token: Option<&Path>, arguments: &[&str], code: i32) -> String {
        let output = self.run(token, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    }
}

async fn last_hop(caller: &Sidecar) -> String {
    wait::until("the call is in the access log", async || {
        let made = caller.records().of("outbound").0;
        made.last().map(|record| format!("hop:{}", record.hop()))
    })
    .await
}

async fn passes(caller: &Sidecar, status: u16) {
    wait::until_ok(&format!("a call is answered {status}"), async || {
        let answer = caller.get(URL).await;
        (answer.status == status).then_some(()).ok_or_else(|| answer.text())
    })
    .await;
}

/// A verifier's token, to which the key in `checker.key` is bound.
fn enrolled(shell: &Shell<'_>) -> PathBuf {
    let made = shell.json(None, &["reputation", "keygen", "--out", "checker.key"]);
    let key = made["key"].as_str().unwrap();
    let again = shell.refused(None, &["reputation", "keygen", "--out", "checker.key"], 2);
    assert!(again.contains("exists"), "{again}");
    let enrol = ["admin", "issue", "checker", "--role", "verifier", "--key", key];
    shell.ok(None, &[&enrol[..], &["--out", "checker.jwt"]].concat());
    shell.0.dir("shell").join("checker.jwt")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verifier_reports_by_its_key_and_an_operator_looks_and_resets() {
    let mesh = Mesh::start().await;
    let (shell, agent) = (Shell(&mesh), Agent::start());
    let _a = mesh.sidecar("a", agent.address).await;
    let (b, c) = (
        mesh.sidecar("b", agent.address).await,
        mesh.sidecar("c", agent.address).await,
    );
    for caller in [&b, &c] {
        assert_eq!(caller.get(URL).await.status, 200);
    }

    let token = enrolled(&shell);
    let checker = Some(token.as_path());

    let hop = last_hop(&b).await;
    let report = report_on(&hop);
    let worst = [&report[..], &["--severity", "critical", "--claim", "cites no paper"]].concat();
    // The hop has to be in the audit before anything is said of the signature.
    let signed = [&worst[..], &["--key-file", "checker.key"]].concat();
    let done = shell.ok(checker, &signed);
    assert!(done.starts_with("a is at 2.") && done.contains("(doubtful)"), "{done}");
    let unsigned = shell.refused(checker, &worst, 6);
    assert!(unsigned.contains("statement_invalid"), "{unsigned}");
    let repeated = shell.ok(checker, &signed);
    assert!(repeated.contains("nothing was counted"), "{repeated}");
    let reset = ["reputation", "reset", "a", "--reason", "a test"];
    let forbidden = shell.refused(checker, &reset, 8);
    assert!(forbidden.contains("role_forbidden"), "{forbidden}");
    for caller in [&b, &c] {
        let refused = caller.get(URL).await;
        assert_eq!(
            (refused.status.as_u16(), &*refused.reason()),
            (403, "reputation_too_low")
        );
    }

    shows(&shell, &hop);
    shell.ok(None, &reset);
    for caller in [&b, &c] {
        passes(caller, 200).await;
    }
    let shown = shell.ok(None, &["reputation", "show", "a"]);
    assert!(
        shown.contains("5.00 of 10, standard") && shown.contains("a test, by"),
        "{shown}"
    );
}

/// A report of a hallucination in this hop of the agent `a`, without its severity.
fn report_on(hop: &str) -> [&str; 7] {
    [
        "reputation",
        "report",
        "a",
        "--finding",
        "hallucination",
        "--evidence",
        hop,
    ]
}

/// The slashed agent, in the list, by itself, and as a document.
fn shows(shell: &Shell<'_>, hop: &str) {
    let list = shell.ok(None, &["reputation", "show"]);
    let row = |name: &str| {
        let mut rows = list.lines().filter(|line| line.split_whitespace().next() == Some(name));
        rows.next().unwrap_or_else(|| panic!("{name} in {list}")).to_owned()
    };
    assert!(row("a").contains("doubtful") && row("a").ends_with("refused"), "{list}");
    assert!(row("b").contains("standard") && row("b").ends_with("ok"), "{list}");
    let one = shell.ok(None, &["reputation", "show", "a"]);
    let event = one
        .lines()
        .find(|line| line.contains("hallucination, critical"))
        .unwrap();
    assert!(event.contains("2.00 off, by checker") && event.contains(hop), "{one}");
    for factor in ["reliability", "quality", "responsiveness", "honesty", "cooperativeness"] {
        assert!(one.lines().any(|line| line.starts_with(factor)), "{factor} in {one}");
    }
    let document = shell.json(None, &["reputation", "show", "a"]);
    // What hops say may have been written meanwhile.
    let mut history = document["history"].as_array().unwrap().iter();
    let report = history.find(|event| event["kind"] == "report").expect("the report");
    assert!(report["signed_by"].is_string(), "{document}");
    assert_eq!(report["claim"], "cites no paper");
}

/// A control plane that is brought back from a copy of before the report has forgotten it; the statement that somebody kept
/// tells it, and an older one than what it knows tells it nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_tells_a_restored_control_plane_what_it_forgot() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let _a = mesh.sidecar("a", agent.address).await;
    let b = mesh.sidecar("b", agent.address).await;
    assert_eq!(b.get(URL).await.status, 200);
    let (data, copy) = (mesh.control_plane.dir.join("data"), mesh.control_plane.dir.join("copy"));
    mesh.control_plane.kill();
    copied(&data, &copy);
    mesh.revive().await;

    let hop = last_hop(&b).await;
    let report = report_on(&hop);
    let worst = [&report[..], &["--severity", "critical"]].concat();
    let statement = |mesh: &Mesh| Shell(mesh).ok(None, &["reputation", "show", "a", "--statement"]);
    let good = statement(&mesh);
    Shell(&mesh).ok(None, &worst);
    let kept = statement(&mesh);
    std::fs::write(mesh.dir("shell").join("good.jws"), &good).unwrap();
    std::fs::write(mesh.dir("shell").join("kept.jws"), &kept).unwrap();
    let import = |file| ["reputation", "import", "a", "--file", file];
    let nothing = Shell(&mesh).ok(None, &import("good.jws"));
    assert!(nothing.contains("nothing changed"), "{nothing}");

    mesh.control_plane.kill();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    mesh.revive().await;
    let level = |mesh: &Mesh| Shell(mesh).json(None, &["reputation", "show", "a"])["level"].clone();
    assert_eq!(level(&mesh), "standard", "forgotten");
    let adopted = Shell(&mesh).ok(None, &import("kept.jws"));
    assert!(adopted.contains("holds from now on"), "{adopted}");
    assert_eq!(level(&mesh), "doubtful");
    let forged = kept.trim_end().to_owned() + "A";
    std::fs::write(mesh.dir("shell").join("forged.jws"), forged).unwrap();
    Shell(&mesh).refused(None, &import("forged.jws"), 6);
}

fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (kind, target) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            copied(&entry.path(), &target);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
