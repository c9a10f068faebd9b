//! A receiver outside the mesh, whom a running control plane tells of orders: signed, once it can be reached, and no longer
//! than is documented.

use std::time::Duration;

use aip_tests::agent::{Agent, Seen};
use aip_tests::process::Mesh;
use aip_tests::{http as wire, wait};
use http::Method;
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::kill;

/// In the file `on-call` of the control plane's secrets, with a line end that is not part of it.
const SECRET: &str = "a secret of thirty-two bytes: ok";
/// Six tries are 31 s apart in all at most, and each may take 10 s; the rest is for two busy cores.
const GIVEN_UP: Duration = Duration::from_secs(180);

fn secret(mesh: &Mesh) {
    let secrets = mesh.control_plane.dir.join("data/secrets");
    std::fs::create_dir_all(&secrets).unwrap();
    std::fs::write(secrets.join("on-call"), format!("{SECRET}\n")).unwrap();
}

/// Names the receiver in the mesh's settings.
async fn tell(mesh: &Mesh, url: &str) {
    let mut config = mesh.admin().get("/v1/mesh-config").await["resource"].clone();
    config["kill"]["webhook"] = json!({"url": url, "secret": "on-call"});
    mesh.admin().ok(Method::PUT, "/v1/mesh-config", Some(&config)).await;
}

/// What the control plane counted.
async fn counted(mesh: &Mesh, metric: &str) -> u64 {
    let page = wire::get(mesh.admin().address, "/metrics").await.unwrap().text();
    let mut lines = page.lines().filter_map(|line| line.strip_prefix(metric));
    lines.next().map_or(0, |count| count.trim().parse().unwrap())
}

const SENT: &str = "aip_kill_webhooks_total{result=\"sent\"}";
const FAILED: &str = "aip_kill_webhooks_total{result=\"failed\"}";

async fn count_is(mesh: &Mesh, metric: &str, expected: u64) {
    wait::until_within(GIVEN_UP, &format!("{metric} is {expected}"), async || {
        (counted(mesh, metric).await == expected).then_some(())
    })
    .await;
}

/// Waits until so many requests have come for this path.
async fn come(receiver: &Agent, path: &str, n: usize) -> Vec<Seen> {
    let what = format!("{n} requests for {path}");
    wait::until_within(GIVEN_UP, &what, async || {
        let seen = receiver.seen(path);
        (seen.len() >= n).then_some(seen)
    })
    .await
}

/// That a request is what the documentation says of an event, by the means that a receiver has; the event.
fn verified(seen: &Seen, event: &str, order: &str) -> Value {
    assert_eq!(
        (seen.method.as_str(), seen.header("content-type")),
        ("POST", "application/json")
    );
    assert_eq!(seen.header("aip-event"), event);
    assert_eq!(seen.header("aip-delivery"), format!("{order}.{event}"));
    let signed = seen.header("aip-signature");
    let (at, tag) = signed.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    let text = [at.as_bytes(), b".", &seen.body[..]].concat();
    ring::hmac::verify(&key, &text, &hex::decode(tag).unwrap()).expect("the signature is of the secret");
    let off = aip_runtime::unix_now().abs_diff(at.parse().unwrap());
    assert!(off < 300, "signed {off} s ago");
    let told: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!((&told["v"], &told["trust_domain"]), (&json!(1), &json!("aip.internal")));
    assert_eq!(
        (&told["event"], &told["delivery"]),
        (&json!(event), &json!(seen.header("aip-delivery")))
    );
    let all = format!("{:?} {told}", seen.headers);
    assert!(!all.contains("thirty-two"), "the secret is told: {all}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_told_of_orders_signed_and_again_where_it_failed() {
    let (mesh, receiver) = (Mesh::start().await, Agent::start());
    let at = receiver.address;
    secret(&mesh);
    mesh.admin().agent(json!({"name": "callee"})).await;
    tell(&mesh, &format!("http://{at}/fail")).await;
    let order = kill(&mesh, "callee").await;
    let id = order["order"].as_str().unwrap();
    let failed = come(&receiver, "/fail", 2).await;
    let told = verified(&failed[0], "kill.activated", id);
    assert_eq!(failed[0].body, failed[1].body, "the same at each attempt");
    verified(&failed[1], "kill.activated", id);
    assert_eq!((&told["term"], &told["epoch"]), (&order["term"], &order["epoch"]));
    let scope = json!({"kind": "agent", "agent": "callee"});
    let given = &told["order"];
    assert_eq!(
        (&given["id"], &given["scope"], &given["mode"], &given["reason"]),
        (&json!(id), &scope, &json!("kill"), &json!("a test"))
    );
    // The setting is read anew for each attempt.
    tell(&mesh, &format!("http://{at}/hook?x=1")).await;
    let taken = come(&receiver, "/hook?x=1", 1).await;
    assert_eq!(verified(&taken[0], "kill.activated", id), told);
    count_is(&mesh, SENT, 1).await;
    let tries = receiver.seen("/fail").len() as u64;
    let metric = "aip_kill_webhook_attempts_failed_total{reason=\"answered\"}";
    assert_eq!((counted(&mesh, metric).await, counted(&mesh, FAILED).await), (tries, 0));
    let resume = json!({"orders": [id]});
    mesh.admin().ok(Method::POST, "/v1/kills/resume", Some(&resume)).await;
    let lifted = &come(&receiver, "/hook?x=1", 2).await[1];
    let told = verified(lifted, "kill.lifted", id);
    assert_eq!(told["order"]["id"], id);
    count_is(&mesh, SENT, 2).await;
}

/// One that says no is asked no more, and the next event is none the worse for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_receiver_refuses_is_not_repeated_and_what_nobody_takes_is_given_up_after_six_tries() {
    let (mesh, receiver) = (Mesh::start().await, Agent::start());
    let at = receiver.address;
    secret(&mesh);
    mesh.admin().agent(json!({"name": "callee"})).await;
    tell(&mesh, &format!("http://{at}/early")).await;
    kill(&mesh, "callee").await;
    count_is(&mesh, FAILED, 1).await;
    assert_eq!(receiver.seen("/early").len(), 1, "a refusal is final");
    // A port that is taken, so that nobody comes to listen there, and at which nobody does.
    let taken = TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    tell(&mesh, &format!("http://{}/", taken.local_addr().unwrap())).await;
    let second = kill(&mesh, "callee").await;
    // No order waits for it.
    let held = mesh.admin().get("/v1/kills").await;
    assert!(held.to_string().contains(second["order"].as_str().unwrap()), "{held}");
    count_is(&mesh, FAILED, 2).await;
    let metric = "aip_kill_webhook_attempts_failed_total{reason=\"connect\"}";
    assert_eq!((counted(&mesh, metric).await, counted(&mesh, SENT).await), (6, 0));
    tell(&mesh, &format!("http://{at}/hook")).await;
    let third = kill(&mesh, "callee").await;
    let told = come(&receiver, "/hook", 1).await;
    verified(&told[0], "kill.activated", third["order"].as_str().unwrap());
    count_is(&mesh, SENT, 1).await;
    assert_eq!(receiver.seen("/early").len(), 1);
}
