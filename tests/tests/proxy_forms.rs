//! How each client speaks to the proxy that `aip run` names in its environment: the column of docs/runtimes.md. No mesh
//! here: a proxy that writes down the first line, and the credentials, and answers 502.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::process::Command;

use aip_tests::clients::{clients, run};
use aip_tests::http::{head_came, read_until};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// The form of a request line.
#[derive(Debug, PartialEq)]
enum Form {
    Absolute,
    Connect,
}

/// Runs `command` with a proxy in its environment; the form of its first request.
async fn form_of(command: Command) -> Form {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://aip:s3cret@{}", listener.local_addr().unwrap());
    let (heads, mut heard) = mpsc::channel(64);
    let proxy = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let head = read_until(&mut tcp, head_came).await;
            let _ = tcp
                .write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
            // A client that tries without end fills the queue, and is heard no further.
            let _ = heads.try_send(head);
        }
    });
    let mut env: BTreeMap<String, String> = [("PATH", std::env::var("PATH").unwrap())]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
    for name in ["http_proxy", "https_proxy", "ws_proxy", "wss_proxy"] {
        env.insert(name.into(), url.clone());
        env.insert(name.to_uppercase(), url.clone());
    }
    env.insert("NO_PROXY".into(), "127.0.0.1,localhost,::1".into());
    env.insert("NODE_USE_ENV_PROXY".into(), "1".into());
    let client = tokio::spawn(async move { run(command, &env).await });
    let head = tokio::time::timeout(aip_tests::wait::DEADLINE, heard.recv()).await;
    let head = head.expect("the client uses the proxy").unwrap();
    client.abort();
    proxy.abort();
    let secret = format!("proxy-authorization: Basic {}", STANDARD.encode("aip:s3cret"));
    assert!(
        head.to_lowercase().contains(&secret.to_lowercase()),
        "the secret is shown: {head}"
    );
    let line = head.lines().next().unwrap();
    if line.starts_with("CONNECT client.aip.internal:80 ") {
        Form::Connect
    } else {
        let ours = ["http", "ws"].map(|scheme| format!(" {scheme}://client.aip.internal/"));
        assert!(ours.iter().any(|target| line.contains(target)), "{line}");
        Form::Absolute
    }
}

const URL: &str = "http://client.aip.internal/x";

#[tokio::test(flavor = "multi_thread")]
async fn curl() {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "20", URL]);
    assert_eq!(form_of(command).await, Form::Absolute);
}

#[tokio::test(flavor = "multi_thread")]
async fn python() {
    for client in ["requests", "httpx", "httpx2", "urllib", "aiohttp-trust-env"] {
        let command = clients().script("http_client.py", &[URL, client]);
        assert_eq!(form_of(command).await, Form::Absolute, "{client}");
    }
    for client in ["requests", "httpx", "httpx-async", "aiohttp"] {
        let command = clients().script("web_client.py", &["http://client.aip.internal", client]);
        assert_eq!(form_of(command).await, Form::Absolute, "{client} in a session");
    }
    let sdks = [
        ("a2a_client.py", "http://client.aip.internal"),
        ("mcp_client.py", "http://client.aip.internal/mcp"),
    ];
    for (script, url) in sdks {
        assert_eq!(
            form_of(clients().script(script, &[url])).await,
            Form::Absolute,
            "{script}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node() {
    for (client, form) in [("fetch", Form::Connect), ("http", Form::Absolute)] {
        let command = clients().script("http_client.mjs", &[URL, client]);
        assert_eq!(form_of(command).await, form, "{client}");
    }
    for (client, form) in [("undici", Form::Absolute), ("axios", Form::Absolute)] {
        let command = clients().script("web_client.mjs", &["http://client.aip.internal", client]);
        assert_eq!(form_of(command).await, form, "{client}");
    }
    let sdk = clients().script("mcp_client.mjs", &["http://client.aip.internal/mcp"]);
    assert_eq!(form_of(sdk).await, Form::Connect);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_and_websocket() {
    let grpc = clients().script("grpc_client.py", &["client.aip.internal:80", "unary"]);
    assert_eq!(form_of(grpc).await, Form::Connect);
    let url = "ws://client.aip.internal/echo";
    for (client, form) in [
        ("ws_client.py", Form::Connect),
        ("ws_client.mjs", Form::Connect),
        ("ws_aiohttp.py", Form::Absolute),
    ] {
        assert_eq!(form_of(clients().script(client, &[url])).await, form, "{client}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rust() {
    assert_eq!(form_of(clients().reqwest(&["get", URL])).await, Form::Absolute);
}
