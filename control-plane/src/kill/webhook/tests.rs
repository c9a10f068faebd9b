//! A receiver of the test's own is told what happened, and can tell from whom.

use aip_api::kill::webhook::{DELIVERY_HEADER, EVENT_HEADER, SIGNATURE_HEADER, signature};
use aip_api::kill::{Mode, Scope};
use aip_api::resource::MeshMode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::registry::Actor;
use crate::registry::kills::Wanted;
use crate::store::Expect;
use crate::testing;

const SECRET: &[u8] = b"a secret of thirty-two bytes: ok";
/// Generous: a busy machine is no failure.
const DEADLINE: Duration = Duration::from_secs(60);

/// A request, as it came.
#[derive(Debug)]
struct Got {
    head: String,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> String {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found
            .next()
            .unwrap_or_else(|| panic!("{name} in {}", self.head))
            .1
            .to_owned()
    }
}

/// Reads a request and answers it.
async fn serve(mut io: impl AsyncRead + AsyncWrite + Unpin, status: u16) -> Got {
    let mut read = Vec::new();
    loop {
        let mut buffer = [0; 4_096];
        let n = io.read(&mut buffer).await.unwrap();
        assert!(n > 0, "the request ends early");
        read.extend_from_slice(&buffer[..n]);
        let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(read[..at].to_vec()).unwrap();
        let got = Got {
            head,
            body: read[at + 4..].to_vec(),
        };
        if got.body.len() == got.header("content-length").parse::<usize>().unwrap() {
            let answer = format!("HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n");
            io.write_all(answer.as_bytes()).await.unwrap();
            let _ = io.shutdown().await;
            return got;
        }
    }
}

struct Set {
    registry: Registry,
    _secrets: tempfile::TempDir,
    _tasks: tokio::task::JoinSet<()>,
}

/// A control plane that tells `url`.
async fn telling(url: String, ca: Option<String>) -> Set {
    let mesh = testing::mesh(MeshMode::Dev).await;
    let registry = mesh.registry.clone();
    let publisher = Publisher::new(registry.clone(), mesh.ca.clone()).await.unwrap();
    let mut config = registry.mesh_config().await.unwrap().value;
    let secret = "on-call".to_owned();
    config.kill.webhook = Some(Webhook { url, secret, ca });
    let draft = registry.change(&Actor::admin("x"), "t", "t");
    draft.resource(&config, Expect::Any).commit().await.unwrap();
    let secrets = tempfile::tempdir().unwrap();
    std::fs::write(secrets.path().join("on-call"), [SECRET, b"\n"].concat()).unwrap();
    let teller = Teller {
        registry: registry.clone(),
        secrets: secrets.path().to_owned(),
        publisher: publisher.clone(),
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(publisher.follow());
    tasks.spawn(teller.run());
    Set {
        registry,
        _secrets: secrets,
        _tasks: tasks,
    }
}

async fn stop(registry: &Registry) -> String {
    // The teller compares with what stood when it began.
    tokio::task::yield_now().await;
    let wanted = Wanted {
        scope: Scope::Mesh {},
        mode: Mode::Kill,
        reason: "leaks".into(),
        seconds: None,
    };
    registry.stop("ann", wanted).await.unwrap().1
}

async fn accepted(listener: &TcpListener) -> tokio::net::TcpStream {
    let accepted = tokio::time::timeout(DEADLINE, listener.accept()).await;
    accepted.expect("a webhook comes in time").unwrap().0
}

#[tokio::test]
async fn a_receiver_is_told_again_until_it_takes_it_and_knows_from_whom() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let set = telling(format!("http://{at}/hook?x=1"), None).await;
    let order = stop(&set.registry).await;
    let first = serve(accepted(&listener).await, 503).await;
    let second = serve(accepted(&listener).await, 204).await;
    assert!(first.head.starts_with("POST /hook?x=1 HTTP/1.1"), "{}", first.head);
    assert_eq!(first.body, second.body);
    for got in [&first, &second] {
        assert_eq!(got.header(EVENT_HEADER), "kill.activated");
        assert_eq!(got.header(DELIVERY_HEADER), format!("{order}.kill.activated"));
        let signed = got.header(SIGNATURE_HEADER);
        let time = signed.strip_prefix("t=").unwrap().split(',').next().unwrap();
        assert_eq!(signed, signature(SECRET, time.parse().unwrap(), &got.body));
        assert!(!got.head.contains("secret") && !got.body.windows(8).any(|w| w == b"a secret"));
    }
    let event: Event = serde_json::from_slice(&second.body).unwrap();
    assert_eq!(
        (event.event, event.order.id.as_str()),
        (What::Activated, order.as_str())
    );
    assert_eq!((event.order.reason.as_str(), event.epoch), ("leaks", 1));

    set.registry.resume("ann", vec![order.clone()]).await.unwrap();
    let lifted = serve(accepted(&listener).await, 200).await;
    assert_eq!(lifted.header(EVENT_HEADER), "kill.lifted");
    assert_eq!(lifted.header(DELIVERY_HEADER), format!("{order}.kill.lifted"));
}

/// A receiver that takes the connection and says nothing holds nobody up, and a redirect leads nowhere.
#[tokio::test]
async fn a_kill_waits_for_no_receiver_and_a_redirect_is_not_followed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let set = telling(format!("http://{at}/"), None).await;
    let first = stop(&set.registry).await;
    let silent = accepted(&listener).await;
    let second = stop(&set.registry).await;
    assert_eq!(set.registry.kill_set().await.unwrap().set.orders.len(), 2);
    drop(silent);
    let got = serve(accepted(&listener).await, 302).await;
    assert_eq!(got.header(DELIVERY_HEADER), format!("{first}.kill.activated"));
    let next = serve(accepted(&listener).await, 200).await;
    assert_eq!(
        next.header(DELIVERY_HEADER),
        format!("{second}.kill.activated"),
        "not the first again"
    );
}
