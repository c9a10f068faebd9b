//! Who may speak as the agent at 15001: nobody, unless they show the secret or are the user that was named; and nobody
//! reaches the sidecar's own ports through it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use aip_tests::agent::Agent;
use aip_tests::http::read_until;
use aip_tests::pair::Pair;
use aip_tests::process::{OPEN, Sidecar};
use aip_tests::root::needs_root;
use aip_tests::scripted::Scripted;
use aip_tests::wait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const URL: &str = "http://nobody.aip.internal/";
/// A user that is not this one: nobody.
const OTHER: &str = "65534";

/// The status that another user's client gets.
async fn as_other(sidecar: &Sidecar) -> String {
    let answer = tokio::process::Command::new("setpriv")
        .args(["--reuid", OTHER, "--clear-groups", "curl", "-sS", "--max-time", "20"])
        .args(["-o", "/dev/null", "-w", "%{http_code}", "-x"])
        .args([format!("http://{}", sidecar.outbound), URL.to_owned()])
        .env("NO_PROXY", "")
        .output();
    String::from_utf8_lossy(&answer.await.unwrap().stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_word_about_it_the_port_asks_for_a_secret_of_its_own() {
    let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
    let (spec, dir) = scripted.spec("one", Agent::start().address, dir.path(), &[]);
    let open = Sidecar::command(&spec, &dir);
    let mut command = Command::new(open.get_program());
    command.args(open.get_args().filter(|arg| *arg != OPEN));
    command.env("AIP_JOIN_TOKEN", &spec.token);
    let sidecar = Sidecar::start_as(spec, &dir, &command).await;
    sidecar.ready().await;
    assert_eq!(sidecar.get(URL).await.reason(), "proxy_auth_required");
    let run: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("data/run.json")).unwrap()).unwrap();
    let file = run["proxy_secret_file"]
        .as_str()
        .expect("run.json says where the secret is");
    assert!(sidecar.process.stderr().contains(file), "and so does the log");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = std::fs::read_to_string(file).unwrap();
    assert!(!sidecar.process.stderr().contains(&secret), "but not what it is");
    let shown = format!("Basic {}", STANDARD.encode(format!("aip:{secret}")));
    let answer = sidecar
        .call(Request::get(URL).header("proxy-authorization", shown), "")
        .await;
    assert_eq!(answer.reason(), "unknown_agent", "let in: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_of_the_agent_needs_no_secret() {
    let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
    let me = rustix::process::getuid().as_raw().to_string();
    let sidecar = scripted
        .sidecar_with("one", Agent::start().address, dir.path(), &["--agent-uid", &me])
        .await;
    assert_eq!(sidecar.get(URL).await.reason(), "unknown_agent", "let in");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_than_the_agent_s_is_refused() {
    if !needs_root() {
        return;
    }
    let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
    let me = rustix::process::getuid().as_raw().to_string();
    let sidecar = scripted
        .sidecar_with("one", Agent::start().address, dir.path(), &["--agent-uid", &me])
        .await;
    assert_eq!(as_other(&sidecar).await, "403");
    assert_eq!(sidecar.metric("aip_refusals_total", &["not_the_agent"]).await, 1.0);
}

/// A user who is refused gets a whole answer, also if he sends more than a head.
#[tokio::test(flavor = "multi_thread")]
async fn another_user_gets_a_whole_answer() {
    let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
    let other = (rustix::process::getuid().as_raw() + 1).to_string();
    let sidecar = scripted
        .sidecar_with("one", Agent::start().address, dir.path(), &["--agent-uid", &other])
        .await;
    let mut tcp = TcpStream::connect(sidecar.outbound).await.unwrap();
    let body = vec![b'x'; 64 * 1024];
    let head = format!(
        "POST {URL} HTTP/1.1\r\nHost: nobody.aip.internal\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    tcp.write_all(&body).await.unwrap();
    let answer = read_until(&mut tcp, |_| false).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let problem: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(problem["reason"], "not_the_agent", "{answer}");
    // Whoever is told so can name it to whoever reads the log.
    let decision = problem["decision_id"].as_str().unwrap();
    assert!(!decision.is_empty(), "{answer}");
    wait::until_ok("the log has it, by its decision", async || {
        let log = sidecar.process.stderr();
        let line = log.lines().find(|line| line.contains(decision));
        match line {
            Some(line) if line.contains("not_the_agent") => Ok(()),
            _ => Err(log),
        }
    })
    .await;
}

/// Who is refused holds none of the agent's places while he is told.
#[tokio::test(flavor = "multi_thread")]
async fn another_user_takes_no_places_from_the_agent() {
    if !needs_root() {
        return;
    }
    let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
    let sidecar = scripted
        .sidecar_with("one", Agent::start().address, dir.path(), &["--agent-uid", OTHER])
        .await;
    // More than the port has places (MAX_OUTBOUND_CONNECTIONS), and all of them say nothing.
    let mut strangers = Vec::new();
    for _ in 0..1_100 {
        strangers.push(TcpStream::connect(sidecar.outbound).await.unwrap());
    }
    let answer = as_other(&sidecar).await;
    assert_eq!(answer, "404", "the agent is served meanwhile");
}

/// What [`with_secret`] asks for.
const SECRET: &str = "0123456789abcdef0123456789";

/// A sidecar whose outbound port asks for [`SECRET`].
async fn with_secret(scripted: &Scripted, dir: &Path) -> Sidecar {
    let file = dir.join("secret");
    std::fs::write(&file, SECRET).unwrap();
    let flags = ["--proxy-secret-file", file.to_str().unwrap()];
    scripted.sidecar_with("one", Agent::start().address, dir, &flags).await
}

/// Nor does who has no secret to show, and says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_keep_the_agent_out_for_no_time() {
    let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
    let sidecar = with_secret(&scripted, dir.path()).await;
    let shown = format!("Basic {}", STANDARD.encode(format!("aip:{SECRET}")));
    let call = async || {
        let request = Request::get(URL).header("proxy-authorization", &shown);
        sidecar.call(request, "").await.reason()
    };
    let mut strangers = Vec::new();
    for _ in 0..1_100 {
        strangers.push(TcpStream::connect(sidecar.outbound).await.unwrap());
    }
    assert_eq!(call().await, "unknown_agent", "let in, with all of them there");
    let gave_way = sidecar
        .metric("aip_connections_refused_total", &["outbound_strangers"])
        .await;
    assert!(gave_way >= 500.0, "{gave_way} gave way");
}

/// Until the secret was shown, a connection has seconds; from then on it may be idle for long.
#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_secret_is_not_waited_for() {
    let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
    let sidecar = with_secret(&scripted, dir.path()).await;
    let shown = STANDARD.encode(format!("aip:{SECRET}"));
    let request =
        format!("GET {URL} HTTP/1.1\r\nhost: nobody.aip.internal\r\nproxy-authorization: Basic {shown}\r\n\r\n");
    let mut agent = TcpStream::connect(sidecar.outbound).await.unwrap();
    agent.write_all(request.as_bytes()).await.unwrap();
    let told = |answer: &[u8]| answer.windows(13).any(|w| w == b"unknown_agent");
    read_until(&mut agent, told).await;

    let half = &request[..20];
    let h2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
    let ended = ["", half, h2].map(|said| async move {
        let mut tcp = TcpStream::connect(sidecar.outbound).await.unwrap();
        tcp.write_all(said.as_bytes()).await.unwrap();
        let began = std::time::Instant::now();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(wait::DEADLINE, tcp.read_to_end(&mut rest)).await;
        ended.expect("the port ends it").ok();
        began.elapsed().as_secs()
    });
    let [silent, head, h2] = ended;
    let (silent, head, h2) = tokio::join!(silent, head, h2);
    assert!((2..9).contains(&silent), "{silent} s of silence");
    assert!((9..20).contains(&head), "{head} s for half a head");
    assert!((9..20).contains(&h2), "{h2} s for no request");

    agent.write_all(request.as_bytes()).await.unwrap();
    let again = read_until(&mut agent, told).await;
    assert!(again.starts_with("HTTP/1.1 404 "), "idle meanwhile: {again}");
}

/// Whatever the mesh lists, also by name and with private addresses allowed.
#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_s_own_ports_and_its_control_plane_are_nobody_s_egress() {
    let pair = Pair::start().await;
    let caller = &pair.caller;
    let own = [
        ("admin", caller.admin.port()),
        ("probes", caller.probes.port()),
        ("the control plane", pair.scripted.address().port()),
        ("inbound", caller.inbound.port()),
        ("outbound", caller.outbound.port()),
    ];
    for (what, port) in own {
        pair.allow_egress("localhost", port).await;
        let answer = caller.get(&format!("http://localhost:{port}/config")).await;
        assert_eq!(answer.reason(), "egress_address_forbidden", "{what}");
    }
    let outside = Agent::start();
    pair.allow_egress("localhost", outside.address.port()).await;
    let answer = caller
        .get(&format!("http://localhost:{}/x", outside.address.port()))
        .await;
    assert_eq!(answer.status, 200, "what is listed and not ours: {answer:?}");
}
