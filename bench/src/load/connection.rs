//! One keep-alive connection, and the worker that uses it.

use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{BODY, Shared, Target};

/// Most times one worker replaces a broken connection: past this the server is refusing, not flaking.
const MAX_RECONNECTS: u32 = 100;

type Connection = SendRequest<Full<Bytes>>;

pub(crate) async fn open(addr: SocketAddr) -> anyhow::Result<Connection> {
    let stream = TcpStream::connect(addr)
        .await
        .with_context(|| format!("connect to {addr}"))?;
    stream.set_nodelay(true)?;
    let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(async move {
        // What broke the connection is reported by the request that was on it.
        let _ = driver.await;
    });
    Ok(sender)
}

/// Sends requests as they fall due, until the measurement is over.
pub(crate) async fn worker(shared: Rc<Shared>, mut connection: Connection) {
    let mut reconnects = 0;
    while let Some(due) = shared.next_due().await {
        let result = exchange(&mut connection, &shared.target).await;
        let broken = result.is_err() && !connection.is_ready();
        shared.answered(due, result);
        if broken {
            reconnects += 1;
            match open(shared.target.addr).await {
                Ok(fresh) if reconnects <= MAX_RECONNECTS => connection = fresh,
                _ => return,
            }
        }
    }
}

/// One request and its whole answer.
pub(crate) async fn exchange(connection: &mut Connection, target: &Target) -> anyhow::Result<()> {
    connection.ready().await.context("connection closed")?;
    let response = connection.send_request(request(target)?).await.context("no answer")?;
    let status = response.status();
    let mut body = response.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.context("answer cut short")?.data_ref().map_or(0, Bytes::len);
    }
    ensure!(status == 200, "answered {status}");
    ensure!(bytes > 0, "empty answer");
    Ok(())
}

fn request(target: &Target) -> anyhow::Result<http::Request<Full<Bytes>>> {
    let mut request = http::Request::post(&target.path)
        .header(http::header::HOST, &target.host)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::ACCEPT, "application/json, text/event-stream")
        .header(http::header::USER_AGENT, "bench-client/1.0");
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    Ok(request.body(Full::new(Bytes::from_static(BODY.as_bytes())))?)
}
