//! The admin API beyond loopback: TLS, and nothing else.

use std::net::SocketAddr;

use aip_api::Digest;
use aip_control_plane::admin::guard::Port;
use aip_control_plane::admin::router;
use aip_control_plane::admin::serve::{Listener, serve};
use aip_runtime::drain::{self, Drain};
use aip_runtime::ready::Readiness;
use aip_runtime::tls::connect_pinned;
use axum::body::{Body, to_bytes};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::Mesh;

/// An address of a machine; nobody is ever there (RFC 5737).
const ELSEWHERE: &str = "192.0.2.1:15014";

/// The admin API as it is served at [`ELSEWHERE`], on a port of loopback.
async fn beyond_loopback(mesh: &Mesh) -> (SocketAddr, Drain) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pretended: SocketAddr = ELSEWHERE.parse().unwrap();
    let api = mesh.plane.api.clone();
    let trust = api.ca.trust().unwrap().shared();
    let listener = Listener::tcp(listener, pretended, &api.ca, &trust).unwrap();
    let metrics = aip_runtime::telemetry::init_metrics();
    let routes = router(api, Readiness::new(&[]), metrics, Port::tcp(pretended, false));
    let (drain, watch) = drain::channel();
    tokio::spawn(serve(listener, routes, watch));
    (address, drain)
}

async fn get(mesh: &Mesh, address: SocketAddr, root: Digest) -> Result<Value, String> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let tls = connect_pinned(root, &[b"http/1.1"], tcp)
        .await
        .map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    let request = mesh.admin.request("GET", "/v1/mesh", &Value::Null).body(Body::empty());
    let answer = sender.send_request(request.unwrap()).await.unwrap().map(Body::new);
    assert_eq!(answer.status(), 200);
    let bytes = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    Ok(serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn beyond_loopback_the_admin_api_speaks_tls_under_the_meshs_root_and_never_plain() {
    let mesh = Mesh::dev().await;
    let (address, _drain) = beyond_loopback(&mesh).await;
    let root = mesh.plane.run.root;
    assert_eq!(get(&mesh, address, root).await.unwrap()["root"], root.to_string());
    let other = get(&mesh, address, Digest::sha256(b"another root")).await;
    assert!(other.is_err(), "whoever pins another root gets no answer");

    let mut plain = TcpStream::connect(address).await.unwrap();
    let token = &mesh.admin.token;
    let request = format!("GET /v1/mesh HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\r\n");
    plain.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an answer, too.
    let read = tokio::time::timeout(crate::support::DEADLINE, plain.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection is ended");
    assert!(!answer.windows(4).any(|w| w == b"HTTP"), "plain HTTP is not answered");
}

#[tokio::test]
async fn only_loopback_is_spoken_to_in_plain_text() {
    let mesh = Mesh::dev().await;
    let (ca, trust) = (mesh.plane.api.ca.clone(), mesh.plane.api.ca.trust().unwrap().shared());
    for (address, plain) in [
        ("127.0.0.1:1", true),
        ("127.8.8.8:1", true),
        ("[::1]:1", true),
        (ELSEWHERE, false),
        ("0.0.0.0:1", false),
        ("[::]:1", false),
        ("10.0.0.5:1", false),
        ("[::ffff:10.0.0.5]:1", false),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = Listener::tcp(listener, address.parse().unwrap(), &ca, &trust).unwrap();
        assert_eq!(matches!(listener, Listener::Plain(_)), plain, "{address}");
    }
}

#[tokio::test]
async fn one_host_does_not_keep_the_others_from_the_port() {
    let mesh = Mesh::dev().await;
    let (address, _drain) = beyond_loopback(&mesh).await;
    // Who says nothing has seconds, and a source has so many that say nothing.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut turned_away = 0;
    for mut tcp in silent {
        let read = tokio::time::timeout(crate::support::DEADLINE, tcp.read(&mut [0])).await;
        turned_away += usize::from(matches!(read.expect("it is ended"), Ok(0) | Err(_)));
    }
    assert_eq!(turned_away, 100, "each is closed: at the door, or when it said nothing");
    get(&mesh, address, mesh.plane.run.root).await.unwrap();
}

/// Opens more connections than there are places, says `first` on each, and asks something meanwhile.
async fn is_served_beside(address: SocketAddr, first: &[u8], get: impl AsyncFn()) {
    let mut idle = Vec::new();
    for _ in 0..600 {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        // One that gave way may be closed already.
        let _ = tcp.write_all(first).await;
        idle.push(tcp);
    }
    let began = std::time::Instant::now();
    get().await;
    let waited = began.elapsed().as_secs();
    assert!(waited < 3, "{waited} s: it waited until the others were given up");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(crate::support::DEADLINE, idle[599].read_to_end(&mut rest)).await;
    let _ = ended.expect("who asks nothing is not waited for");
    let waited = began.elapsed().as_secs();
    assert!(waited < 13, "{waited} s for who asks nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_ask_nothing_keep_nobody_out() {
    let mesh = Mesh::dev().await;
    let plain = mesh.plane.run.admin;
    let (beyond, _drain) = beyond_loopback(&mesh).await;
    let root = mesh.plane.run.root;
    let asks = async || {
        mesh.admin.get("/v1/mesh").await;
    };
    let asks_beyond = async || {
        get(&mesh, beyond, root).await.unwrap();
    };
    tokio::join!(
        is_served_beside(plain, b"", asks),
        is_served_beside(beyond, b"", asks_beyond),
        is_served_beside(beyond, &[0x16, 3, 1], asks_beyond),
    );
}
