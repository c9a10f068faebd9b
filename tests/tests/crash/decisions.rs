//! The control plane, ended at the commits of what people decide about agents that have run: an order is taken back, a report
//! and a reset of a reputation, an approval, the revocation of one SVID, and what a second person approves. It is one store
//! that goes through all of them: at each, what was decided before is there.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use aip_api::Digest;
use aip_tests::agent::Agent;
use aip_tests::process::{Admin, ControlPlane, DEV, Mesh, Sidecar};
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, UnixStream};

use crate::{AFTER, FAULT, is_killed};

/// Before and after a commit.
const STEPS: [&str; 2] = ["changed", "committed"];

/// Something that a person asks for.
#[derive(Debug)]
struct Asked {
    /// What its transaction is for, which is in the names of its points.
    action: &'static str,
    method: Method,
    path: String,
    body: Value,
    /// By what it is found.
    mark: String,
}

impl Asked {
    fn post(action: &'static str, path: String, body: Value, mark: &str) -> Self {
        let (method, mark) = (Method::POST, mark.to_owned());
        Self {
            action,
            method,
            path,
            body,
            mark,
        }
    }

    /// Whether it is there: in all that one transaction of it writes, or in nothing of that.
    async fn is_done(&self, admin: &Admin) -> bool {
        let pages: &[&str] = match self.action {
            "reputation.report" => &["/v1/reputation/callee/reports", "/v1/reputation/callee"],
            "reputation.reset" => &["/v1/reputation/callee"],
            "measurement.approve" => &["/v1/measurements?agent=callee"],
            "svid.revoke" => &["/v1/revocations?limit=500"],
            "proposal.approve" => &["/v1/policies?limit=500"],
            _ => &["/v1/kills"],
        };
        let mut found = Vec::new();
        for page in pages {
            found.push(admin.get(page).await.to_string().contains(&self.mark));
        }
        assert!(
            found.iter().all(|there| *there == found[0]),
            "{self:?}: {found:?} of {pages:?}"
        );
        // An order is there until it is taken back.
        let done = found[0] != (self.action == "kill.resume");
        self.is_whole(admin, done).await;
        done
    }

    /// That what its transaction takes away is gone with it, and there without it.
    async fn is_whole(&self, admin: &Admin, done: bool) {
        match self.action {
            "reputation.reset" => {
                let held = admin.get("/v1/reputation/callee").await;
                let slashed = held["reputation"]["slashes"].is_array();
                assert_ne!(slashed, done, "a reset and what it forgives: {held}");
            }
            "svid.revoke" => {
                // A spent token would answer its key again.
                let tokens = admin.get("/v1/tokens?limit=500").await;
                let agent = self.path.split('/').nth(3).unwrap();
                let mut tokens = tokens["items"].as_array().unwrap().iter();
                let spent = tokens.any(|token| token["agent"] == agent && token["spent_at"].is_u64());
                assert_ne!(spent, done, "a revocation and the tokens of {agent}");
            }
            "proposal.approve" => {
                let waiting = admin.get("/v1/approvals").await.to_string();
                let id = self.path.split('/').nth(3).unwrap();
                assert_ne!(
                    waiting.contains(id),
                    done,
                    "an approval and what it approves: {waiting}"
                );
            }
            _ => {}
        }
    }
}

/// Ends the control plane at this point of what is asked, which was armed; starts it again as `next` says, and has it done.
async fn ends_at(control_plane: &mut ControlPlane, asked: &Asked, step: &str, next: &Command, after: &Path) {
    let point = point(asked.action, step);
    assert!(!asked.is_done(&control_plane.admin).await, "before {point}");
    std::fs::write(after, "").unwrap();
    let ask = async |admin: &Admin| {
        admin
            .attempt(asked.method.clone(), &asked.path, Some(&asked.body))
            .await
    };
    let answered = ask(&control_plane.admin).await;
    assert!(answered.is_err(), "at {point} it ends before it answers: {answered:?}");
    is_killed(&mut control_plane.process, &point).await;
    std::fs::remove_file(after).unwrap();
    let admin = control_plane.admin.clone();
    control_plane.revive_as(next).await;
    control_plane.admin = admin;
    let there = asked.is_done(&control_plane.admin).await;
    assert_eq!(there, step == "committed", "at {point}");
    let again = ask(&control_plane.admin).await.unwrap();
    let done_already = there && [404, 409].contains(&again.status.as_u16());
    assert!(
        again.status.is_success() || done_already,
        "after {point}: {}",
        again.text()
    );
    assert!(asked.is_done(&control_plane.admin).await, "asked again after {point}");
}

fn point(action: &str, step: &str) -> String {
    format!("store:{step}:{action}#1")
}

/// Two sidecars that have run, some hops between them, and two orders.
struct Past {
    hops: Vec<String>,
    orders: Vec<String>,
    measurement: Value,
    /// Agents and the serial numbers of their SVIDs.
    svids: Vec<(String, String)>,
}

impl Past {
    async fn of(mesh: &Mesh, hops: usize) -> Self {
        let agent = Agent::start();
        let caller = mesh.sidecar("caller", agent.address).await;
        let callee = mesh.sidecar("callee", agent.address).await;
        wait::until("a call gets through", async || {
            (caller.get("http://callee.aip.internal/work").await.status == 200).then_some(())
        })
        .await;
        for _ in 1..hops {
            assert_eq!(caller.get("http://callee.aip.internal/work").await.status, 200);
        }
        let hops = wait::until("they are in the access log", async || {
            let made = caller.records().of("outbound").0;
            let done = made.iter().filter(|record| record.status() == 200);
            let all: Vec<String> = done.map(|record| record.hop().to_owned()).collect();
            (all.len() >= hops).then_some(all)
        })
        .await;
        // The last one's report says that the audit has those before it, too.
        let report = reported(hops.last().unwrap());
        mesh.admin().report("callee", &report).await;
        let mut orders = Vec::new();
        for mode in ["kill", "pause"] {
            let order = json!({"scope": {"kind": "agent", "agent": "caller"}, "mode": mode, "reason": "a test"});
            let given = mesh.admin().ok(Method::POST, "/v1/kills", Some(&order)).await;
            orders.push(given["order"].as_str().unwrap().to_owned());
        }
        let approved = mesh.admin().get("/v1/measurements?agent=callee").await;
        let serial = async |sidecar: &Sidecar| {
            let own = sidecar.look("/identity").await.json();
            (sidecar.spec.name.clone(), own["serial"].as_str().unwrap().to_owned())
        };
        Self {
            hops,
            orders,
            measurement: approved["items"][0]["measurement"].clone(),
            svids: vec![serial(&caller).await, serial(&callee).await],
        }
    }

    /// What is asked for at the `n`-th step.
    fn asked(&self, action: &'static str, n: usize) -> Asked {
        match action {
            "kill.resume" => {
                let order = &self.orders[n];
                Asked::post(action, "/v1/kills/resume".into(), json!({"orders": [order]}), order)
            }
            "reputation.report" => {
                let hop = &self.hops[n];
                Asked::post(action, "/v1/reputation/callee/reports".into(), reported(hop), hop)
            }
            "reputation.reset" => {
                let why = format!("reset number {n}");
                Asked::post(
                    action,
                    "/v1/reputation/callee/reset".into(),
                    json!({"reason": why}),
                    &why,
                )
            }
            "measurement.approve" => {
                let mut wanted = self.measurement.clone();
                let code = Digest::sha256(n.to_string().as_bytes()).to_string();
                wanted["code"] = json!(code);
                Asked::post(action, "/v1/measurements".into(), wanted, &code)
            }
            _ => {
                let (agent, serial) = &self.svids[n];
                Asked::post(
                    action,
                    format!("/v1/agents/{agent}/revoke"),
                    json!({"serial": serial}),
                    serial,
                )
            }
        }
    }
}

fn reported(hop: &str) -> Value {
    json!({"finding": "hallucination", "severity": "low", "evidence": format!("hop:{hop}"), "claim": "made up"})
}

#[tokio::test(flavor = "multi_thread")]
async fn no_decision_about_agents_is_lost_or_half_made_at_any_commit() {
    let mut mesh = Mesh::start().await;
    let past = Past::of(&mesh, 5).await;
    let after = mesh.dir("points").join("after");
    let armed = |mesh: &Mesh, at: Option<String>| {
        let control_plane = &mesh.control_plane;
        let data = ControlPlane::data(&control_plane.dir);
        let mut command = ControlPlane::command(&data, control_plane.mesh, control_plane.admin.address, DEV);
        command.envs(at.map(|at| (FAULT, at))).env(AFTER, &after);
        command
    };
    let actions = [
        "kill.resume",
        "reputation.report",
        "reputation.reset",
        "measurement.approve",
        "svid.revoke",
    ];
    let all: Vec<_> = actions
        .iter()
        .flat_map(|action| (0..STEPS.len()).map(|n| (past.asked(action, n), n)))
        .collect();
    let at = |i: usize| all.get(i).map(|(asked, n)| point(asked.action, STEPS[*n]));
    mesh.control_plane.kill();
    let first = armed(&mesh, at(0));
    mesh.control_plane.revive_as(&first).await;
    for (i, (asked, n)) in all.iter().enumerate() {
        if asked.action == "reputation.reset" {
            // What it forgives.
            let report = reported(&past.hops[2 + n]);
            let path = "/v1/reputation/callee/reports";
            mesh.admin().ok(Method::POST, path, Some(&report)).await;
        }
        let next = armed(&mesh, at(i + 1));
        ends_at(&mut mesh.control_plane, asked, STEPS[*n], &next, &after).await;
    }
    // A report is forgiven by a reset, and is in the list of reports still.
    for (asked, _) in all.iter().filter(|(asked, _)| asked.action != "reputation.report") {
        let there = asked.action == "reputation.reset" || asked.is_done(mesh.admin()).await;
        assert!(there, "{asked:?} was made, and is lost");
    }
    let counted = mesh.admin().get("/v1/reputation/callee/reports").await.to_string();
    assert!(past.hops.iter().all(|hop| counted.contains(hop)), "{counted}");
}

/// A policy that decides nothing.
fn policy(name: &str) -> Value {
    let rego = format!(
        "package aip.policy.{name}\n\nrules contains {{\"rule\": \"r\", \"verdict\": \"allow\", \"reason\": \"x\"}} if input.request.path == [\"never\"]\n"
    );
    json!({"name": name, "rego": rego, "attach": "mesh"})
}

/// An address whose connections go on to the control plane's socket in its data: a mesh of people takes changes by no other way.
async fn socket(data: &Path) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, path) = (listener.local_addr().unwrap(), data.join("admin.sock"));
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let path = path.clone();
            tokio::spawn(async move {
                if let Ok(mut to) = UnixStream::connect(path).await {
                    let _ = copy_bidirectional(&mut from, &mut to).await;
                }
            });
        }
    });
    address
}

/// The second person of a mesh that was made a moment ago.
async fn second_person(admin: &Admin) -> Admin {
    let secret = "ab".repeat(32);
    let claim = Digest::sha256(secret.as_bytes()).to_string();
    let wanted = json!({"sub": "bob", "role": "approver", "claim": claim});
    admin.ok(Method::POST, "/v1/admin-tokens", Some(&wanted)).await;
    let path = "/v1/admin-tokens/claim";
    let claimed = admin.ok(Method::POST, path, Some(&json!({"secret": secret}))).await;
    let token = claimed["token"].as_str().unwrap().to_owned();
    Admin { token, ..admin.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_second_person_approves_is_done_and_waits_no_more_or_neither() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("sealing.key");
    let (home, after) = (dir.path().join("home"), dir.path().join("after"));
    let flags = [
        "--mode",
        "prod",
        "--log-format",
        "json",
        "--key-file",
        key.to_str().unwrap(),
    ];
    std::fs::create_dir(&home).unwrap();
    let mut control_plane = ControlPlane::start(&home, &flags).await;
    let data = ControlPlane::data(&home);
    let listens = (control_plane.mesh, control_plane.admin.address);
    let first = Admin {
        address: socket(&data).await,
        ..control_plane.admin.clone()
    };
    let bob = second_person(&first).await;
    let armed = |step: Option<&str>| {
        let mut command = ControlPlane::command(&data, listens.0, listens.1, &flags);
        command.envs(step.map(|step| (FAULT, point("proposal.approve", step))));
        command.env(AFTER, &after);
        command
    };
    for step in STEPS {
        control_plane.kill();
        let command = armed(Some(step));
        control_plane.revive_as(&command).await;
        let name = format!("kept{step}");
        let path = format!("/v1/policies/{name}");
        let proposed = first.ok(Method::PUT, &path, Some(&policy(&name))).await;
        let id = proposed["proposal"]
            .as_str()
            .unwrap_or_else(|| panic!("a proposal in {proposed}"));
        let path = format!("/v1/approvals/{id}/approve");
        let asked = Asked::post("proposal.approve", path, json!({}), &name);
        control_plane.admin = bob.clone();
        let next = armed(None);
        ends_at(&mut control_plane, &asked, step, &next, &after).await;
    }
}
