//! Everything that can be open when an order comes, at either end, for each level of orders: it is cut before the order is
//! acknowledged, and what the order does not mean goes on.

use std::net::SocketAddr;
use std::sync::Arc;

use aip_api::kill::{Mode, Order, Scope};
use aip_api::resource::EgressRule;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::client::{begin, begin_h2, channel, get, raw_on, send};
use crate::mesh::{DEADLINE, Side, World, until};
use crate::orders::Plane;
use crate::pki::Pki;

/// Open at the callee: events, a WebSocket, a call inside a tunnel, a gRPC stream, an upload.
const AT_THE_CALLEE: u64 = 5;
/// And at the caller the same, and a tunnel to an outside host.
const AT_THE_CALLER: u64 = 6;

/// A caller and a callee that obey a control plane.
struct Obeying {
    plane: Plane,
    caller: Side,
    callee: Side,
    agent: Agent,
    outside: SocketAddr,
    _data: [TempDir; 2],
}

impl Obeying {
    async fn start() -> Self {
        let (pki, agent, outside) = (Arc::new(Pki::new()), Agent::start().await, echo().await);
        let plane = Plane::start(&pki).await;
        let data = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let mut world = World::of(&["planner", "ledger"]);
        world.mesh.egress.push(EgressRule {
            host: "localhost".into(),
            port: outside.port(),
            allow_private: true,
        });
        let callee = plane.side("ledger", agent.address, world.clone(), data[0].path()).await;
        world.endpoints.push(("ledger".into(), callee.inbound));
        let nobody = "127.0.0.1:9".parse().unwrap();
        let caller = plane.side("planner", nobody, world, data[1].path()).await;
        Self {
            plane,
            caller,
            callee,
            agent,
            outside,
            _data: data,
        }
    }

    fn requests(side: &Side) -> u64 {
        side.proxy.connections()["requests"].as_u64().unwrap()
    }

    /// Opens one of everything, and waits until all of it flows.
    async fn open(&self) -> Open {
        let proxy = self.caller.outbound;
        self.agent.go();
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

        let mut tunnel = TcpStream::connect(proxy).await.unwrap();
        let authority = format!("localhost:{}", self.outside.port());
        raw_on(&mut tunnel, connect_to(&authority).as_bytes(), "\r\n\r\n").await;
        let hello = hello("localhost");
        tunnel.write_all(&hello).await.unwrap();
        tunnel.read_exact(&mut vec![0; hello.len()]).await.unwrap();

        until("all of it is open at both ends", async || {
            let open = (Self::requests(&self.caller), Self::requests(&self.callee));
            (open == (AT_THE_CALLER, AT_THE_CALLEE)).then_some(())
        })
        .await;
        Open {
            events,
            websocket,
            inside,
            say,
            grpc,
            upload,
            tunnel,
        }
    }
}

/// Everything at once.
struct Open {
    events: Response<Incoming>,
    websocket: TcpStream,
    inside: TcpStream,
    say: mpsc::Sender<Frame<Bytes>>,
    grpc: Response<Incoming>,
    upload: TcpStream,
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
fn hello(name: &str) -> Vec<u8> {
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
async fn echo() -> SocketAddr {
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
    /// Holds that all of it is cut; the tunnel to the outside where it is meant too, and else that it goes on.
    async fn end_cut(mut self, agent: &Agent, tunnel_too: bool) {
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
}

fn kill(scope: Scope) -> Order {
    Order {
        id: uuid::Uuid::now_v7().to_string(),
        scope,
        mode: Mode::Kill,
        reason: "a test".into(),
        issued_by: vec!["ann".into()],
        issued_at: 1,
        expires: None,
    }
}

/// Each level, and whether it means the caller's calls to outside hosts, too.
fn levels() -> [(Scope, bool); 5] {
    let named = |name: &str| name.parse().unwrap();
    let labels = [("team".to_owned(), "blue".to_owned())].into();
    [
        (Scope::Mesh {}, true),
        (Scope::Selector { labels }, true),
        (
            Scope::Agent {
                agent: named("planner"),
            },
            true,
        ),
        (Scope::Agent { agent: named("ledger") }, false),
        (
            Scope::Pair {
                source: named("planner"),
                destination: named("ledger"),
            },
            false,
        ),
    ]
}

async fn is_cut_at(name: &'static str) {
    let mesh = Obeying::start().await;
    for (scope, means_the_outside) in levels() {
        let open = mesh.open().await;
        let (at_the_caller, said) = (name == "planner", scope.to_string());
        let tunnel_too = at_the_caller && means_the_outside;
        let ack = mesh.plane.order(name, &[kill(scope)]).await;
        assert_eq!(ack.rejected, "", "{said} at {name}");
        let expected = AT_THE_CALLEE + u64::from(tunnel_too);
        assert_eq!(ack.streams_cut, expected, "{said} at {name}");
        open.end_cut(&mesh.agent, tunnel_too).await;
        until("calls are refused by the order", async || {
            let refused = send(mesh.caller.outbound, get("/x")).await;
            assert_ne!(refused.status, StatusCode::OK, "{said} at {name}");
            // The caller's side may still be on the connection that was cut.
            (refused.reason() == "killed").then_some(())
        })
        .await;

        let lifted = mesh.plane.order(name, &[]).await;
        assert_eq!((lifted.rejected.as_str(), lifted.streams_cut), ("", 0));
        until(
            "calls go through again, and nothing is left of the others",
            async || {
                let again = send(mesh.caller.outbound, get("/x")).await.status;
                let open = Obeying::requests(&mesh.caller) + Obeying::requests(&mesh.callee);
                (again == StatusCode::OK && open == 0).then_some(())
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_stream_is_cut_at_the_caller_by_every_level() {
    is_cut_at("planner").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_stream_is_cut_at_the_callee_by_every_level() {
    is_cut_at("ledger").await;
}

/// An order on others leaves all of it open, and a pause what is open already.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_order_does_not_mean_goes_on() {
    let mesh = Obeying::start().await;
    let mut open = mesh.open().await;
    let named = |name: &str| name.parse().unwrap();
    let labels = [("team".to_owned(), "red".to_owned())].into();
    let pause = Order {
        mode: Mode::Pause,
        ..kill(Scope::Mesh {})
    };
    let backwards = Scope::Pair {
        source: named("ledger"),
        destination: named("planner"),
    };
    for order in [
        kill(Scope::Agent {
            agent: named("stranger"),
        }),
        kill(Scope::Selector { labels }),
        kill(backwards),
        pause,
    ] {
        for name in ["planner", "ledger"] {
            let ack = mesh.plane.order(name, std::slice::from_ref(&order)).await;
            let cut = (ack.rejected.as_str(), ack.streams_cut, ack.connections_cut);
            assert_eq!(cut, ("", 0, 0), "{} at {name}", order.scope);
        }
    }
    mesh.agent.go();
    mesh.agent.go();
    let next = tokio::time::timeout(DEADLINE, open.events.body_mut().frame()).await;
    assert!(next.unwrap().unwrap().is_ok());
    open.websocket.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    tokio::time::timeout(DEADLINE, open.websocket.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&back, b"ping");
    open.say.send(Frame::data(Bytes::from_static(MESSAGE))).await.unwrap();
    let next = tokio::time::timeout(DEADLINE, open.grpc.body_mut().frame()).await;
    assert_eq!(next.unwrap().unwrap().unwrap().into_data().unwrap(), MESSAGE);
    let refused = send(mesh.caller.outbound, get("/x")).await;
    assert_eq!(refused.reason(), "paused");
}
