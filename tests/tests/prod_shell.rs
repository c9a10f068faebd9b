//! A prod mesh from the shell: two people, each with a token that nobody else ever held, and a change that takes both.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aip_tests::process::{Process, binary};
use aip_tests::root::needs_root;
use aip_tests::wait;
use serde_json::Value;

const POLICY: &str = "package aip.policy.no_posts

rules contains {\"rule\": \"no-posts/post\", \"verdict\": \"deny\", \"reason\": \"nobody posts\"} if {
	input.request.method == \"POST\"
}
";

/// A program that answers everything: it can be run by a user who may read nothing of the test's.
const ANSWERS: &str = "import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header('content-length', '2'); self.end_headers(); self.wfile.write(b'ok')
    do_POST = do_GET
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()";

/// The exit code of `aip` where a second person is waited for.
const PROPOSED: i32 = 9;

struct Shell {
    dir: PathBuf,
}

impl Shell {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("aip"));
        command.args(arguments).current_dir(&self.dir);
        command.env("AIP_HOME", self.dir.join("home"));
        command.env_remove("AIP_ADMIN").env_remove("AIP_TOKEN_FILE");
        command
    }

    /// As whoever has this token; the first admin where none is named.
    fn run(&self, token: Option<&str>, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        if let Some(file) = token {
            command.env("AIP_TOKEN_FILE", self.dir.join(file));
        }
        command.output().unwrap()
    }

    /// Done, or proposed: scripts tell the two apart by the exit code.
    fn ok(&self, token: Option<&str>, arguments: &[&str]) -> Value {
        let output = self.run(token, &[arguments, &["--output", "json"]].concat());
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let expected = if answer["proposal"].is_string() { PROPOSED } else { 0 };
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {}", said(&output));
        answer
    }

    fn refused(&self, token: Option<&str>, arguments: &[&str], why: &str) {
        let output = self.run(token, arguments);
        assert!(
            !output.status.success() && said(&output).contains(why),
            "{arguments:?}: {}",
            said(&output)
        );
    }

    /// Makes a person's secret, has the token issued, and fetches it to `<person>.jwt`; what issuing answered.
    fn person(&self, person: &str, role: &str) -> Value {
        let secret = format!("{person}.secret");
        let digest = self.ok(None, &["admin", "secret", "--out", &secret]);
        let digest = digest["digest"].as_str().unwrap();
        self.ok(None, &["admin", "issue", person, "--role", role, "--claim", digest])
    }

    fn fetch(&self, person: &str) {
        let (secret, token) = (format!("{person}.secret"), format!("{person}.jwt"));
        self.ok(None, &["admin", "claim", "--secret-file", &secret, "--out", &token]);
        self.refused(
            None,
            &["admin", "claim", "--secret-file", &secret, "--out", "again"],
            "not_found",
        );
    }

    fn start(&self, name: &str, arguments: &[&str]) -> Process {
        Process::start_supervisor(name, &self.command(arguments), &self.dir)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn proposal(answer: &Value) -> &str {
    answer["proposal"]
        .as_str()
        .unwrap_or_else(|| panic!("a proposal in {answer}"))
}

async fn up(shell: &Shell) -> Process {
    let mut up = shell.start(
        "up",
        &[
            "up",
            "--mode",
            "prod",
            "--key-file",
            "sealing.key",
            "--mesh-listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
        ],
    );
    wait::until("the control plane is up", async || {
        up.assert_alive();
        up.stdout().contains("Changes take two people").then_some(())
    })
    .await;
    up
}

fn shell(dir: &Path) -> Shell {
    Shell { dir: dir.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_change_a_prod_mesh_from_the_shell() {
    let dir = tempfile::tempdir().unwrap();
    let shell = shell(dir.path());
    let _up = up(&shell).await;
    shell.refused(
        None,
        &["admin", "issue", "bob", "--role", "approver"],
        "next: bob runs `aip admin secret",
    );
    // The second person takes one, once.
    assert!(shell.person("bob", "approver")["proposal"].is_null());
    shell.fetch("bob");
    // The third takes two.
    let carol = shell.person("carol", "operator");
    shell.refused(
        None,
        &["approvals", "approve", proposal(&carol)],
        "second_person_required",
    );
    shell.ok(Some("bob.jwt"), &["approvals", "approve", proposal(&carol)]);
    shell.fetch("carol");

    let nothing = shell.run(None, &["attest", "list", "--pending"]);
    assert!(
        said(&nothing).contains("no measurement waits for approval"),
        "{}",
        said(&nothing)
    );

    std::fs::write(dir.path().join("no_posts.rego"), POLICY).unwrap();
    let change = shell.ok(Some("carol.jwt"), &["policy", "apply", "no_posts.rego"]);
    let waiting = shell.ok(Some("carol.jwt"), &["approvals", "list"]);
    assert_eq!(waiting[0]["id"], change["proposal"], "{waiting}");
    shell.refused(
        Some("carol.jwt"),
        &["approvals", "approve", proposal(&change)],
        "role_forbidden",
    );
    shell.refused(None, &["policy", "show", "no-posts"], "error: ");
    shell.ok(Some("bob.jwt"), &["approvals", "approve", proposal(&change)]);
    assert_eq!(
        shell.ok(None, &["policy", "show", "no-posts"])["resource"]["name"],
        "no-posts"
    );

    let context: Value = serde_json::from_slice(&std::fs::read(dir.path().join("home/context.json")).unwrap()).unwrap();
    let port = context["admin"].as_str().unwrap();
    shell.ok(None, &["--admin", port, "agent", "list"]);
    shell.refused(None, &["--admin", port, "agent", "create", "worker"], "socket_required");
    let socket = format!("unix:{}", context["socket"].as_str().unwrap());
    shell.ok(None, &["--admin", &socket, "agent", "create", "worker"]);
    let shown = shell.run(None, &["agent", "show", "worker"]).stdout;
    let shown = String::from_utf8(shown).unwrap();
    let lease = shown.lines().find(|line| line.starts_with("lease ")).unwrap();
    assert!(lease.ends_with(" s"), "{shown}");
}

/// An agent with a user of its own runs once a second person approved what it runs.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_a_prod_mesh_waits_for_two_people() {
    if !needs_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let shell = shell(dir.path());
    let _up = up(&shell).await;
    shell.person("bob", "approver");
    shell.fetch("bob");
    shell.ok(None, &["agent", "create", "worker"]);
    std::fs::write(dir.path().join("note.txt"), "first").unwrap();
    let mut worker = shell.start(
        "worker",
        &[
            "run", "--name", "worker", "--user", "nobody", "--code", "note.txt", "--", "python3", "-c", ANSWERS,
        ],
    );
    wait::until("the measurement waits", async || {
        worker.assert_alive();
        worker.stderr().contains("waits for approval").then_some(())
    })
    .await;
    let named = || {
        let said = worker.stderr();
        let mut next = said
            .lines()
            .filter_map(|line| line.split_once("aip attest approve worker "));
        next.next_back()
            .map(|(_, fingerprint)| fingerprint.trim().to_owned())
            .unwrap()
    };
    let first = named();
    // Edited while it waits: what was shown first lies there no more.
    std::fs::write(dir.path().join("note.txt"), "second").unwrap();
    wait::until("it is measured again", async || {
        worker.stderr().contains("measured again").then_some(())
    })
    .await;
    let fingerprint = named();
    assert_ne!(fingerprint, first);
    let change = shell.ok(None, &["attest", "approve", "worker", &fingerprint]);
    shell.ok(Some("bob.jwt"), &["approvals", "approve", proposal(&change)]);
    wait::until("the agent serves", async || {
        worker.assert_alive();
        worker.stderr().contains("serves behind its sidecar").then_some(())
    })
    .await;
    let call = shell.run(None, &["call", "worker", "/", "--from", "worker"]);
    assert_eq!(String::from_utf8_lossy(&call.stdout).trim(), "ok", "{}", said(&call));
}
