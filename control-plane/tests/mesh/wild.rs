//! What no sidecar would send, by the real SVID of one: bytes that are no message, messages in no order, values that are no
//! values, on each of the three streams. Whoever sends them is told why and cut off, and nobody else notices.

use aip_api::resource::Kind;
use aip_control_plane::refusal::Reason;
use bytes::{Buf as _, BufMut as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::kills;
use crate::support::sidecar::hello;
use crate::support::{DEADLINE, Mesh, eventually};

const STREAMS: [&str; 3] = ["Config", "Kill", "Audit"];
/// Streams of each kind that are tried; each is made from its number alone.
const TRIED: u64 = 100;

/// Messages as bytes, whatever they are.
#[derive(Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Ok(Some(bytes.to_vec()))
    }
}

/// The same numbers for the same seed (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    pub(crate) fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.roll() as u8).collect()
    }

    /// A number as the far ends of types have it, or a small one.
    pub(crate) fn number(&mut self) -> u64 {
        let far = [
            0,
            1,
            2,
            3,
            u64::MAX,
            i64::MAX as u64,
            u64::from(u32::MAX),
            1 << 31,
            1 << 63,
        ];
        match self.below(2) {
            0 => far[self.below(far.len() as u64) as usize],
            _ => self.below(20),
        }
    }

    fn text(&mut self) -> Vec<u8> {
        match self.below(9) {
            0 => hello().instance.into_bytes(),
            1 => b"researcher".to_vec(),
            2 => b"127.0.0.1:15006".to_vec(),
            3 => b"..%2f../\0\n\"".to_vec(),
            4 => vec![b'a'; 1 << self.below(18)],
            5 => b"not_persisted".to_vec(),
            6 => json!({"v": 1, "trust_domain": "aip.internal", "term": self.number(), "epoch": self.number(), "orders": []})
                .to_string()
                .into_bytes(),
            _ => self.bytes(40),
        }
    }

    /// Fields as protobuf writes them, by numbers that the messages of the three streams have, and by others.
    fn message(&mut self, depth: u32) -> Vec<u8> {
        let mut out = Vec::new();
        for _ in 0..=self.below(5) {
            let field = 1 + self.below(9);
            match self.below(8) {
                0 | 1 => {
                    varint(field << 3, &mut out);
                    varint(self.number(), &mut out);
                }
                2 | 3 => length_delimited(field, &self.text(), &mut out),
                4 | 5 if depth > 0 => length_delimited(field, &self.message(depth - 1), &mut out),
                // A length that says more than comes, and the wire types that none of ours has.
                6 => {
                    varint(field << 3 | 2, &mut out);
                    varint(self.number(), &mut out);
                }
                _ => {
                    varint(field << 3 | self.below(8), &mut out);
                    out.extend(self.bytes(12));
                }
            }
        }
        out
    }
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn length_delimited(field: u64, bytes: &[u8], out: &mut Vec<u8>) {
    varint(field << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A hello that each of the three streams takes.
fn good_hello() -> Vec<u8> {
    let mut body = Vec::new();
    length_delimited(1, hello().instance.as_bytes(), &mut body);
    let mut message = Vec::new();
    length_delimited(1, &body, &mut message);
    message
}

/// A stream of this service, of messages as they are.
pub(crate) async fn open(
    channel: &Channel,
    service: &str,
    sent: ReceiverStream<Vec<u8>>,
) -> Result<Streaming<Vec<u8>>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = format!("/aip.mesh.v1.{service}/Stream").parse().unwrap();
    let answers = grpc.streaming(Request::new(sent), path, Raw).await?;
    Ok(answers.into_inner())
}

/// One stream of nonsense to its end; answers why it ended, where it was not the sender who closed it.
async fn nonsense(channel: &Channel, service: &str, dice: &mut Dice) -> Option<Status> {
    let (send, sent) = mpsc::channel(64);
    if dice.below(4) > 0 {
        send.send(good_hello()).await.unwrap();
    }
    for _ in 0..dice.below(12) {
        let message = match dice.below(6) {
            0 => dice.bytes(200),
            1 => good_hello(),
            _ => dice.message(3),
        };
        send.send(message).await.unwrap();
    }
    drop(send);
    let read = async {
        let mut answers = open(channel, service, ReceiverStream::new(sent)).await?;
        while answers.message().await?.is_some() {}
        Ok(())
    };
    let ended: Result<(), Status> = tokio::time::timeout(DEADLINE, read).await.expect("an end in time");
    ended.err()
}

/// Everything in the mesh that one agent might have changed of the others.
async fn of_others(mesh: &Mesh) -> Value {
    let items = async |path: &str| mesh.admin.get(path).await["items"].clone();
    let (agents, drift, revocations) = (
        items("/v1/agents").await,
        items("/v1/drift").await,
        items("/v1/revocations").await,
    );
    let of_ledger = |all: Value| -> Vec<Value> {
        let all = all.as_array().unwrap().clone();
        all.into_iter()
            .filter(|one| one.to_string().contains("ledger"))
            .collect()
    };
    let kills = mesh.admin.get("/v1/kills").await["orders"].clone();
    let endpoints = of_ledger(items("/v1/endpoints").await);
    let logs = of_ledger(items("/v1/audit/logs").await);
    json!([agents, drift, revocations, kills, endpoints, logs])
}

#[tokio::test]
async fn whatever_an_agent_sends_on_a_control_stream_nobody_else_notices() {
    let mesh = Mesh::dev().await;
    let (planner, ledger) = (mesh.joined("planner").await, mesh.joined("ledger").await);
    let mut config = ledger.stream().await;
    config.synced().await;
    config.lease("127.0.0.1:15099").await;
    eventually("the endpoint", async || {
        let all = mesh.admin.get("/v1/endpoints").await["items"].clone();
        (all.as_array()?.len() == 1).then_some(())
    })
    .await;
    let mut orders = kills::Stream::open(&ledger, &kills::fresh(), None).await.unwrap();
    let (set, _) = orders.set().await;
    orders.ack(&set).await;
    let before = of_others(&mesh).await;

    let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.row().reason).collect();
    let mut violations = 0;
    for service in STREAMS {
        for seed in 0..TRIED {
            // A connection for each: what is no HTTP/2 to the other end would take the next stream with it.
            let channel = planner.connected().await.unwrap();
            let Some(status) = nonsense(&channel, service, &mut Dice(seed)).await else {
                continue;
            };
            let reason = aip_runtime::grpc::reason(&status).unwrap_or_default().to_owned();
            assert!(known.contains(&reason.as_str()), "{service} {seed}: {status:?}");
            assert_ne!(reason, "internal", "{service} {seed}: {status:?}");
            violations += u64::from(reason == "protocol_violation");
        }
    }
    assert!(violations > TRIED / 2, "most of it was read: {violations}");

    assert_eq!(of_others(&mesh).await, before);
    mesh.admin
        .ok(
            "PUT",
            "/v1/traffic/default",
            json!({"agent": "default", "max_concurrency": 9}),
        )
        .await;
    loop {
        let pushed = config.push().await.unwrap();
        config.ack(pushed.nonce).await;
        if pushed
            .resources
            .iter()
            .any(|r| r.kind == Kind::Traffic.to_wire() as i32)
        {
            break;
        }
    }
    kills::kill(&mesh, json!({"kind": "agent", "agent": "ledger"})).await;
    assert_eq!(orders.set().await.0.orders.len(), 1);
}

#[tokio::test]
async fn who_reads_no_answer_is_not_answered_without_end() {
    let mesh = Mesh::dev().await;
    let (planner, ledger) = (mesh.joined("planner").await, mesh.joined("ledger").await);
    let channel = planner.connected().await.unwrap();
    // A chunk of a log that nobody opened: each is answered, and none of the answers is read.
    let mut chunk = Vec::new();
    length_delimited(1, hello().instance.as_bytes(), &mut chunk);
    let mut message = Vec::new();
    length_delimited(3, &chunk, &mut message);
    let (send, sent) = mpsc::channel(1);
    send.send(good_hello()).await.unwrap();
    let mut answers = open(&channel, "Audit", ReceiverStream::new(sent)).await.unwrap();
    let mut taken = 0_u32;
    while taken < 1_000_000 {
        // It ends, or nothing more of it is taken.
        let room = tokio::time::timeout(std::time::Duration::from_secs(2), send.send(message.clone())).await;
        match room {
            Ok(Ok(())) => taken += 1,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    assert!(taken < 1_000_000, "all was taken");
    let end = async {
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return String::new(),
                Err(status) => return aip_runtime::grpc::reason(&status).unwrap_or_default().to_owned(),
            }
        }
    };
    let reason = tokio::time::timeout(DEADLINE, end).await.expect("an end in time");
    // What says why may find no room among the answers that nobody read.
    assert!(["", "overloaded"].contains(&reason.as_str()), "{reason}");
    ledger.stream().await.synced().await;
}
