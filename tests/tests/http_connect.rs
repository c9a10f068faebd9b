//! CONNECT in its three meanings: a mesh name with HTTP/1.1 or h2c inside, terminated and decided per request; an
//! outside host, through the egress guard; and what is refused, always with a full answer.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_tests::http::{collect, head_came, read_until, to_the_end};
use aip_tests::pair::Pair;
use aip_tests::pki::{LeafSpec, Pki};
use aip_tests::wire;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

static PAIR: OnceCell<Pair> = OnceCell::const_new();

async fn pair() -> &'static Pair {
    PAIR.get_or_init(async || Pair::start().await).await
}

/// A tunnel to `target`, or the refusal.
async fn tunnel(pair: &Pair, target: &str) -> Result<TcpStream, String> {
    let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    tcp.write_all(head.as_bytes()).await.unwrap();
    let whole = |got: &[u8]| head_came(got) && (got.starts_with(b"HTTP/1.1 200") || got.ends_with(b"}"));
    let answer = read_until(&mut tcp, whole).await;
    if answer.starts_with("HTTP/1.1 200") {
        assert!(answer.ends_with("\r\n\r\n"), "nothing follows the head: {answer}");
        assert!(
            !answer.to_lowercase().contains("content-length"),
            "RFC 9110 section 9.3.6: {answer}"
        );
        Ok(tcp)
    } else {
        Err(answer)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_inside_a_tunnel_is_decided_per_request() {
    let pair = pair().await;
    let mut tcp = tunnel(pair, "callee.aip.internal:80").await.unwrap();
    for (path, status) in [("/inner-one", "200"), ("/denied/inner", "403"), ("/inner-two", "200")] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: callee.aip.internal\r\n\r\n");
        tcp.write_all(head.as_bytes()).await.unwrap();
        let answer = read_until(&mut tcp, |got| {
            head_came(got) && (status == "200" || got.ends_with(b"}"))
        })
        .await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
    assert!(pair.agent.seen("/denied").is_empty());
    assert_eq!(
        pair.agent.only("/inner-one").header("x-aip-source"),
        "spiffe://aip.internal/agent/caller"
    );
    pair.recorded("/inner-one").await;
    let denied = pair.records_of(&pair.caller, "/denied/inner");
    assert_eq!((denied.0.len(), denied.0[0].verdict()), (1, "deny"));
}

#[tokio::test(flavor = "multi_thread")]
async fn h2c_inside_a_tunnel_is_decided_per_request() {
    let pair = pair().await;
    let tcp = tunnel(pair, "callee.aip.internal:50051").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
        .await
        .unwrap();
    tokio::spawn(connection);
    let get = |path: &str| {
        let uri = format!("http://callee.aip.internal:50051{path}");
        Request::get(uri).body(Full::<Bytes>::default()).unwrap()
    };
    let allowed = collect(sender.send_request(get("/h2c")).await.unwrap()).await;
    assert_eq!(allowed.status, 200);
    let denied = collect(sender.send_request(get("/denied/h2c")).await.unwrap()).await;
    assert_eq!(
        (denied.status.as_u16(), denied.json()["rule"].as_str()),
        (403, Some("no_denied_path"))
    );
    let again = collect(sender.send_request(get("/h2c-again")).await.unwrap()).await;
    assert_eq!(again.status, 200, "one refusal does not end the others");
    pair.recorded("/h2c-again").await;
}

/// Inside a tunnel to one agent only that agent can be addressed: the tunnel was asked for by name.
#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_leads_to_its_own_agent_only() {
    let pair = pair().await;
    let mut tcp = tunnel(pair, "callee.aip.internal:80").await.unwrap();
    tcp.write_all(b"GET /misdirected HTTP/1.1\r\nHost: caller.aip.internal\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let answer = read_until(&mut tcp, to_the_end).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert!(pair.agent.seen("/misdirected").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_inside_a_tunnel_to_a_mesh_name_is_refused_with_an_answer() {
    let pair = pair().await;
    let mut tcp = tunnel(pair, "callee.aip.internal:443").await.unwrap();
    tcp.write_all(&wire::tls12_hello()).await.unwrap();
    let answer = read_until(&mut tcp, to_the_end).await;
    assert!(
        answer.starts_with("HTTP/1.1 4") && answer.contains("tls_inside_tunnel"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outside_host_that_nobody_lists_is_refused_with_an_answer() {
    let pair = pair().await;
    for target in [
        "example.com:443",
        "169.254.169.254:80",
        "127.0.0.1:1",
        "[::1]:1",
        "10.0.0.1:443",
        "metadata.google.internal:80",
    ] {
        let answer = tunnel(pair, target).await.expect_err(target);
        assert!(answer.starts_with("HTTP/1.1 403"), "{target}: {answer}");
        assert!(
            answer.contains("application/problem+json") && answer.contains("\"reason\""),
            "{target}: {answer}"
        );
    }
    // The mesh's own ports are no way around the mesh.
    for port in [
        pair.callee.inbound.port(),
        pair.caller.admin.port(),
        pair.agent.address.port(),
    ] {
        let target = format!("localhost:{port}");
        tunnel(pair, &target).await.expect_err(&target);
    }
    assert!(
        pair.caller.get("http://example.com/plain").await.status == 403,
        "plain HTTP out is no other way"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_host_is_tunnelled_to_blindly_with_its_own_name_only() {
    let pair = Pair::start().await;
    let outside = wire::impostor(&Pki::new("outside.example").leaf(&LeafSpec::good("outside"))).await;
    pair.allow_egress("localhost", outside.port()).await;
    let target = format!("localhost:{}", outside.port());
    let speak = async |name: &'static str| {
        let tcp = tunnel(&pair, &target).await.expect("a listed host");
        let mut config = (*wire::client(None, &[b"h2"])).clone();
        config.enable_sni = true;
        let tls = TlsConnector::from(std::sync::Arc::new(config));
        let tls = tls
            .connect(ServerName::try_from(name).unwrap(), tcp)
            .await
            .map_err(|e| e.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let request = Request::get(format!("https://{name}/"))
            .body(Full::<Bytes>::default())
            .unwrap();
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        Ok::<_, String>(collect(response).await.text())
    };
    assert_eq!(speak("localhost").await.as_deref(), Ok("impostor"));
    assert!(speak("other.example").await.is_err(), "SNI must be the CONNECT host");
    let unlisted = format!("localhost:{}", aip_tests::process::free_port());
    tunnel(&pair, &unlisted)
        .await
        .expect_err("another port of a listed host");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_sidecars_own_agent_may_use_its_outbound_port() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    let pair = Pair::start_guarded(&secret).await;
    let get = |auth: Option<&str>| {
        let auth = auth
            .map(|a| format!("Proxy-Authorization: Basic {a}\r\n"))
            .unwrap_or_default();
        format!(
            "GET http://callee.aip.internal/secret HTTP/1.1\r\nHost: callee.aip.internal\r\n{auth}Connection: close\r\n\r\n"
        )
    };
    use base64::Engine as _;
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let wrong = encoded("aip:0123456789abcdef0123456789abcdeX");
    for auth in [None, Some(wrong.as_str()), Some("!!!"), Some("")] {
        let answer = pair.raw(&get(auth), to_the_end).await;
        assert!(answer.starts_with("HTTP/1.1 407"), "{auth:?}: {answer}");
        assert!(answer.to_lowercase().contains("proxy-authenticate: basic"), "{answer}");
    }
    assert!(pair.agent.seen("/secret").is_empty());
    let right = encoded("aip:0123456789abcdef0123456789abcdef");
    let answer = pair.raw(&get(Some(&right)), to_the_end).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        !pair.agent.only("/secret").headers.contains_key("proxy-authorization"),
        "the secret stays here"
    );
}
