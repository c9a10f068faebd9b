//! A sidecar that is cut off from the control plane, and whose lease is to deny, stops by itself: by the time that `aip kill
//! --wait` named for it, and no sooner than its lease ends.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::wait;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the agent that is cut off calls: its own endpoint is withdrawn meanwhile, so nobody new comes to it.
const URL: &str = "http://caller.aip.internal/work";
/// The lease, in seconds: its beats are a third of it apart, and a machine that stalls for that long loses none.
const LEASE: u64 = 20;
/// Ends `aip kill --wait` where somebody has not enforced it.
const NOT_ALL: i32 = 7;

/// The way to the control plane, which a test cuts.
struct Way {
    address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Way {
    async fn to(control_plane: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Self {
            address: listener.local_addr().unwrap(),
            open: watch::Sender::new(true),
        };
        let open = way.open.subscribe();
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                tokio::spawn(passes(from, control_plane, open.clone()));
            }
        });
        way
    }
}

/// Passes bytes on while the way is open; then both ends are closed.
async fn passes(mut from: TcpStream, to: SocketAddr, mut open: watch::Receiver<bool>) {
    if !*open.borrow_and_update() {
        return;
    }
    let Ok(mut to) = TcpStream::connect(to).await else {
        return;
    };
    tokio::select! {
        _ = copy_bidirectional(&mut from, &mut to) => {}
        () = async { let _ = open.wait_for(|open| !open).await; } => {}
    }
}

/// Unix time.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

async fn lease_of(mesh: &Mesh, agent: &str) {
    let seconds = LEASE.to_string();
    let set = mesh.aip(&["agent", "lease", agent, "--seconds", &seconds, "--on-lost", "deny"]);
    assert!(set.status.success(), "{set:?}");
    wait::until_ok("its sidecar goes by it alone", async || {
        let all = mesh.admin().get("/v1/kills/sidecars").await;
        let mut each = all["items"].as_array().into_iter().flatten();
        let own = each.find(|one| one["agent"] == agent).cloned().unwrap_or_default();
        (own["stopped_how"] == "lease")
            .then_some(())
            .ok_or_else(|| all.to_string())
    })
    .await;
}

/// When the lease that a sidecar holds now ends, at the earliest.
async fn ends(sidecar: &Sidecar) -> Duration {
    let asked = now();
    let page = sidecar.look("/kill").await.json();
    let left = page["lease_left_ms"]
        .as_u64()
        .unwrap_or_else(|| panic!("a lease in {page}"));
    asked + Duration::from_millis(left)
}

/// What `aip kill --wait` says of the one that is missing: by when it has stopped.
fn ordered(mesh: &Mesh) -> Duration {
    let order = [
        "kill", "--agent", "other", "--reason", "a test", "--wait", "1", "--output", "json",
    ];
    let said = mesh.aip(&order);
    assert_eq!(said.status.code(), Some(NOT_ALL), "{said:?}");
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    let missing = |list: &str| said["progress"][list].as_array().cloned().unwrap_or_default();
    let all = [missing("missing"), missing("vanished")].concat();
    // The other one is missing, too, where it is slow.
    let is_callee = |one: &&Value| one["sidecar"].as_str().is_some_and(|name| name.starts_with("callee/"));
    let callee = all
        .iter()
        .find(is_callee)
        .unwrap_or_else(|| panic!("the callee in {said}"));
    assert_eq!(callee["stopped_how"], "lease", "{said}");
    Duration::from_secs(callee["stopped_by"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_cut_off_stops_by_the_time_that_aip_kill_named() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    mesh.admin().agent(json!({"name": "other"})).await;
    let _caller = mesh.sidecar("caller", agent.address).await;
    let way = Way::to(mesh.control_plane.mesh).await;
    let mut spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
    spec.control_plane = way.address;
    let callee = Sidecar::start(spec, &mesh.dir("callee")).await;
    wait::until("a call gets through", async || {
        (callee.get(URL).await.status == 200).then_some(())
    })
    .await;
    lease_of(&mesh, "callee").await;

    way.open.send_replace(false);
    let by = ordered(&mesh);
    // It may have been granted a lease while it was cut off, by an answer that was on its way; by none from now on.
    let earliest = ends(&callee).await;
    let named_late = by.saturating_sub(earliest);
    assert!(earliest <= by, "named {by:?}, and it may go on to {earliest:?}");
    assert!(named_late < Duration::from_secs(LEASE), "{named_late:?} past its lease");
    let what = "it refuses, and only once its lease has ended";
    let refused = wait::until_within(wait::DEADLINE + Duration::from_secs(LEASE), what, async || {
        let asked = now();
        let answer = callee.get(URL).await;
        if answer.status == 200 {
            assert!(asked <= by, "it serves at {asked:?}, and was to stop by {by:?}");
            return None;
        }
        assert!(now() >= earliest, "it refuses at {:?}, before {earliest:?}", now());
        Some(answer)
    })
    .await;
    assert_eq!(
        (refused.status.as_u16(), refused.reason()),
        (503, "lease_lost".to_owned())
    );
    let heard = agent.seen("/work").len();
    assert_eq!(callee.get(URL).await.reason(), "lease_lost");
    assert_eq!(agent.seen("/work").len(), heard, "and nothing reaches its agent");

    way.open.send_replace(true);
    wait::until_ok("it serves again once it hears", async || {
        let answer = callee.get(URL).await;
        (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
    })
    .await;
    let progress = mesh.aip(&["kill", "progress", "--wait", "30"]);
    assert!(progress.status.success(), "{progress:?}");
}
