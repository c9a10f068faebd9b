//! A connection that switches to another protocol, and messages both ways over it.

use std::time::Duration;

use anyhow::{Context, ensure};
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Request, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire::Body;
use crate::load::Target;

/// What is switched to.
pub(super) const PROTOCOL: &str = "websocket";
/// The example of RFC 6455, section 1.3: the bytes after the switch are only echoed, and are no frames.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer to it, from the same place.
pub(super) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Bytes of the messages of one connection, each echoed before the next is sent.
const MESSAGES: [usize; 16] = [
    64, 64, 128, 256, 64, 512, 1024, 64, 4096, 64, 256, 16_384, 64, 128, 1024, 64,
];
/// Longest for all of them: a stuck one must not hold a build.
const DEADLINE: Duration = Duration::from_secs(30);

/// Switches, and has every message echoed.
pub(super) async fn exchange(target: &Target) -> anyhow::Result<()> {
    tokio::time::timeout(DEADLINE, messages(target))
        .await
        .with_context(|| format!("no echo within {DEADLINE:?}"))?
}

async fn messages(target: &Target) -> anyhow::Result<()> {
    let stream = TcpStream::connect(target.addr).await?;
    stream.set_nodelay(true)?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(driver.with_upgrades());
    let mut request = Request::get("/socket")
        .header(HOST, &target.host)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, PROTOCOL)
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", KEY);
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    let response = sender.send_request(request.body(Body::default())?).await?;
    let status = response.status();
    ensure!(status == StatusCode::SWITCHING_PROTOCOLS, "answered {status}");
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await?);
    for bytes in MESSAGES {
        let message = vec![bytes as u8; bytes];
        stream.write_all(&message).await?;
        let mut echo = vec![0; bytes];
        stream.read_exact(&mut echo).await.context("no echo")?;
        ensure!(echo == message, "another message came back");
    }
    stream.shutdown().await?;
    Ok(())
}
