//! One of every kind of stream that can be open between two agents, and to an outside host.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::client::{begin, begin_h2, channel, get, raw_on};
use crate::mesh::{DEADLINE, Side, until};

/// Open at the callee: events, a WebSocket, a call inside a tunnel, a gRPC stream, an upload, a download.
pub const AT_THE_CALLEE: u64 = 6;
/// And at the caller the same, and a tunnel to an outside host.
pub const AT_THE_CALLER: u64 = AT_THE_CALLEE + 1;

/// How many requests are open at this end.
pub fn requests(side: &Side) -> u64 {
    side.proxy.connections()["requests"].as_u64().unwrap()
}

/// Everything at once.
pub struct Open {
    events: Response<Incoming>,
    websocket: TcpStream,
    inside: TcpStream,
    say: mpsc::Sender<Frame<Bytes>>,
    grpc: Response<Incoming>,
    upload: TcpStream,
    download: Response<Incoming>,
    tunnel: TcpStream,
}

const WEBSOCKET: &str = "GET http://ledger.aip.internal/upgrade HTTP/1.1\r\nhost: ledger.aip.internal\r\n\
    connection: upgrade\r\nupgrade: websocket\r\n\r\n";
/// A call that says back what it hears, and its first chunk.
const INSIDE: &str =
    "POST /chat HTTP/1.1\r\nhost: ledger.aip.internal\r\ntransfer-encoding: chunked\r\n\r\n4\r\nping\r\n";
/// A message of gRPC.
const MESSAGE: &[u8] = b"\0\0\0\0\x01x";
/// The head of an upload, and a part of it.
const UPLOAD: &str = "POST http://ledger.aip.internal/upload HTTP/1.1\r\nhost: ledger.aip.internal\r\n\
    content-length: 1000000\r\n\r\nthe first part";

fn connect_to(authority: &str) -> String {
    format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n")
}

/// A ClientHello with this server name.
pub fn hello(name: &str) -> Vec<u8> {
    let u16b = |n: usize| (n as u16).to_be_bytes();
    let entry = [&[0][..], &u16b(name.len()), name.as_bytes()].concat();
    let list = [&u16b(entry.len())[..], &entry].concat();
    let extension = [&[0, 0][..], &u16b(list.len()), &list].concat();
    let random = [7; 32];
    let body = [
        &[3, 3][..],
        &random,
        &[0, 0, 2, 0x13, 1, 1, 0],
        &u16b(extension.len()),
        &extension,
    ]
    .concat();
    let message = [&[1, 0][..], &u16b(body.len()), &body].concat();
    [&[22, 3, 1][..], &u16b(message.len()), &message].concat()
}

/// An outside host that says back what it hears.
pub async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn body_is_cut(mut response: Response<Incoming>, what: &str) {
    let rest = async {
        while let Some(frame) = response.body_mut().frame().await {
            let Ok(frame) = frame else { return };
            // What gRPC says of its end.
            if frame
                .trailers_ref()
                .is_some_and(|trailers| trailers["grpc-status"] != "0")
            {
                return;
            }
        }
        panic!("{what} ended as if it were whole");
    };
    tokio::time::timeout(DEADLINE, rest).await.expect(what);
}

/// What still came, until the end.
async fn rest(tcp: &mut TcpStream) -> String {
    // Whoever was cut may not take this any more.
    let _ = tcp.write_all(b"ping").await;
    let mut came = Vec::new();
    let read = tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut came)).await;
    let _ = read.expect("it is cut in time");
    String::from_utf8_lossy(&came).into_owned()
}

impl Open {
    /// Opens one of everything, and waits until all of it flows.
    pub async fn all(caller: &Side, callee: &Side, agent: &Agent, outside: SocketAddr) -> Self {
        let proxy = caller.outbound;
        agent.go();
        let mut events = begin(proxy, get("/events")).await;
        assert!(events.body_mut().frame().await.unwrap().is_ok());

        let mut websocket = TcpStream::connect(proxy).await.unwrap();
        let head = raw_on(&mut websocket, WEBSOCKET.as_bytes(), "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");

        let mut inside = TcpStream::connect(proxy).await.unwrap();
        raw_on(&mut inside, connect_to("ledger.aip.internal:80").as_bytes(), "\r\n\r\n").await;
        raw_on(&mut inside, INSIDE.as_bytes(), "ping").await;

        let (say, body) = channel();
        let request = Request::post("http://ledger.aip.internal/chat")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        say.send(Frame::data(Bytes::from_static(MESSAGE))).await.unwrap();
        let mut grpc = begin_h2(proxy, request).await;
        assert!(grpc.body_mut().frame().await.unwrap().is_ok());

        let mut upload = TcpStream::connect(proxy).await.unwrap();
        upload.write_all(UPLOAD.as_bytes()).await.unwrap();

        let mut download = begin(proxy, get("/endless")).await;
        assert!(download.body_mut().frame().await.unwrap().is_ok());

        let mut tunnel = TcpStream::connect(proxy).await.unwrap();
        let authority = format!("localhost:{}", outside.port());
        raw_on(&mut tunnel, connect_to(&authority).as_bytes(), "\r\n\r\n").await;
        let hello = hello("localhost");
        tunnel.write_all(&hello).await.unwrap();
        tunnel.read_exact(&mut vec![0; hello.len()]).await.unwrap();

        until("all of it is open at both ends", async || {
            let open = (requests(caller), requests(callee));
            (open == (AT_THE_CALLER, AT_THE_CALLEE)).then_some(())
        })
        .await;
        Self {
            events,
            websocket,
            inside,
            say,
            grpc,
            upload,
            download,
            tunnel,
        }
    }

    /// Holds that all of it is cut; the tunnel to the outside where it is meant too, and else that it goes on.
    pub async fn end_cut(mut self, agent: &Agent, tunnel_too: bool) {
        // Two more events, which nobody may hear.
        agent.go();
        agent.go();
        body_is_cut(self.events, "an event stream").await;
        assert_eq!(rest(&mut self.websocket).await, "", "a WebSocket");
        let inside = rest(&mut self.inside).await;
        assert!(!inside.ends_with("0\r\n\r\n"), "a call inside a tunnel: {inside}");
        let _ = self.say.send(Frame::data(Bytes::from_static(MESSAGE))).await;
        body_is_cut(self.grpc, "a gRPC stream").await;
        let upload = rest(&mut self.upload).await;
        assert!(!upload.contains(" 200 "), "an upload: {upload}");
        body_is_cut(self.download, "a download").await;
        if tunnel_too {
            assert_eq!(rest(&mut self.tunnel).await, "", "a tunnel to an outside host");
        } else {
            self.tunnel.write_all(b"ping").await.unwrap();
            let mut back = [0; 4];
            let read = tokio::time::timeout(DEADLINE, self.tunnel.read_exact(&mut back)).await;
            read.expect("it goes on").expect("it goes on");
            assert_eq!(&back, b"ping");
        }
    }
    /// Holds that all of it goes on.
    pub async fn goes_on(&mut self, agent: &Agent) {
        agent.go();
        flows(&mut self.events, "events").await;
        flows(&mut self.download, "a download").await;
        for (tcp, what) in [(&mut self.websocket, "a WebSocket"), (&mut self.tunnel, "a tunnel")] {
            tcp.write_all(b"ping").await.unwrap();
            let mut back = [0; 4];
            let read = tokio::time::timeout(DEADLINE, tcp.read_exact(&mut back)).await;
            read.expect(what).expect(what);
            assert_eq!(&back, b"ping", "{what}");
        }
        let inside = raw_on(&mut self.inside, b"4\r\npong\r\n", "pong").await;
        assert!(inside.contains("pong"), "a call inside a tunnel: {inside}");
        self.say.send(Frame::data(Bytes::from_static(MESSAGE))).await.unwrap();
        flows(&mut self.grpc, "a gRPC stream").await;
        self.upload.write_all(b"the next part").await.unwrap();
    }
}

async fn flows(response: &mut Response<Incoming>, what: &str) {
    let next = tokio::time::timeout(DEADLINE, response.body_mut().frame()).await;
    let frame = next.expect(what).expect(what).expect(what);
    assert!(frame.is_data(), "{what}");
}
