//! The memory of a control plane under control streams of sidecars that do not behave: what they take is given back, round
//! for round, and whoever behaves is served. A process of its own, since tests have memory, too.

use std::collections::{BTreeMap, BTreeSet};

use aip_api::resource::Kind;
use aip_api::wire::audit_request::Message as Sent;
use aip_api::wire::config_request::Message as Asked;
use aip_api::wire::kill_request::Message as Said;
use aip_api::wire::{
    Ack, AuditHello, AuditRequest, Beat, ConfigRequest, EndpointLease, HeldLog, Hello, KillAck, KillHello, KillRequest,
    Rejection, SegmentChunk, SignedKillSet, Subscribe,
};
use axum::body::{Body, to_bytes};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::kills;
use crate::support::audit::Log;
use crate::support::sidecar::{Stream, hello};
use crate::support::{Admin, DEADLINE, Process, Sidecar, eventually};
use crate::wild::{Dice, open};

/// Who attacks the stream of configuration.
const ATTACKER: &str = "one";
const ROUNDS: usize = 6;
/// Streams of each attack and round; of messages that were changed, since each ends with the first that is none.
const STREAMS: usize = 8;
const CHANGED: usize = 40;
/// Bytes that later rounds may have more than the second: a KiB for each of their messages would be more.
const ROOM: u64 = 12 << 20;

/// What the messages of an attack are made from.
struct Known {
    dice: Dice,
    /// The process of somebody else.
    other: String,
    /// By service: messages that a good sidecar of the attacker's sends, or might.
    good: BTreeMap<&'static str, Vec<Vec<u8>>>,
}

impl Known {
    /// A good message with one to four changes: a bit, a byte, a piece that goes, comes twice, or is another message's.
    fn mutated(&mut self, service: &str) -> Vec<u8> {
        let dice = &mut self.dice;
        let of = |dice: &mut Dice, all: &[Vec<u8>]| all[dice.below(all.len() as u64) as usize].clone();
        let all = &self.good[service];
        let mut bytes = of(dice, all);
        for _ in 0..=dice.below(4) {
            let at = dice.below(bytes.len() as u64 + 1) as usize;
            let end = (at + 1 + dice.below(16) as usize).min(bytes.len());
            let piece = bytes.get(at..end).unwrap_or_default().to_vec();
            match dice.below(5) {
                0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
                1 if at < bytes.len() => bytes[at] = dice.roll() as u8,
                2 if at < end => drop(bytes.drain(at..end)),
                3 => drop(bytes.splice(at..at, piece)),
                _ => {
                    let other = of(dice, all);
                    let from = dice.below(other.len() as u64 + 1) as usize;
                    bytes.splice(at..at, other[from..].iter().copied().take(64));
                }
            }
        }
        bytes
    }
}

fn config(message: Asked) -> Vec<u8> {
    let message = Some(message);
    ConfigRequest { message }.encode_to_vec()
}

fn kill(message: Said) -> Vec<u8> {
    let message = Some(message);
    KillRequest { message }.encode_to_vec()
}

fn audit(message: Sent) -> Vec<u8> {
    let message = Some(message);
    AuditRequest { message }.encode_to_vec()
}

fn config_hello(instance: &str) -> Vec<u8> {
    let instance = instance.to_owned();
    config(Asked::Hello(Hello { instance, ..hello() }))
}

fn kill_hello(instance: String, held: Option<SignedKillSet>) -> Vec<u8> {
    let unwritten = held.clone();
    kill(Said::Hello(KillHello {
        instance,
        held,
        unwritten,
    }))
}

fn audit_hello(logs: Vec<HeldLog>) -> Vec<u8> {
    let instance = kills::fresh();
    audit(Sent::Hello(AuditHello { instance, logs }))
}

/// An attack: its name, the service, how many streams, and the messages of one.
type Attack = (&'static str, &'static str, usize, fn(&mut Known) -> Vec<Vec<u8>>);

const ATTACKS: &[Attack] = &[
    ("rejects for ever", "Config", STREAMS, |_| {
        let rejection = |kind: Kind, name: &str| Rejection {
            kind: kind.to_wire() as i32,
            name: name.into(),
            revision: 1,
            reason: "r".repeat(1_000),
            detail: "d".repeat(10_000),
        };
        let mut all = vec![config_hello(&kills::fresh())];
        for nonce in 1..60 {
            let rejected = vec![rejection(Kind::Agent, ATTACKER), rejection(Kind::Agent, "ledger")];
            all.push(config(Asked::Ack(Ack { nonce, rejected })));
            all.push(subscribe(Kind::Agent, &[format!("nobody-{nonce}")]));
        }
        all
    }),
    ("subscribes without end", "Config", STREAMS, |known| {
        let mut all = vec![config_hello(&kills::fresh())];
        for _ in 0..15 {
            let names: Vec<_> = (0..1_000).map(|_| format!("n-{:x}", known.dice.roll())).collect();
            all.push(subscribe(Kind::Endpoint, &names));
        }
        all
    }),
    ("another's endpoint", "Config", STREAMS, |known| {
        let mut all = vec![config_hello(&known.other)];
        for port in 1..12 {
            let address = format!("127.0.0.9:{port}");
            all.push(config(Asked::Endpoint(EndpointLease { address })));
        }
        all
    }),
    ("changed", "Config", CHANGED, |known| {
        let mut all = vec![config_hello(&kills::fresh())];
        all.extend((0..60).map(|_| known.mutated("Config")));
        all
    }),
    ("a set that is none", "Kill", STREAMS, |known| {
        let held = SignedKillSet {
            payload: known.dice.bytes(aip_api::kill::MAX_KILL_SET_BYTES as u64),
            kid: "k".repeat(1_000),
            signature: vec![7; 64],
        };
        let mut all = vec![kill_hello(known.other.clone(), Some(held.clone()))];
        let ack = KillAck {
            rejected: "fork".into(),
            detail: "d".repeat(10_000),
            held: Some(held),
            ..KillAck::default()
        };
        all.push(kill(Said::Ack(ack)));
        all
    }),
    ("beats without end", "Kill", STREAMS, |_| {
        let mut all = vec![kill_hello(kills::fresh(), None)];
        all.extend((1..100).map(|sequence| kill(Said::Beat(Beat { sequence, granted: 0 }))));
        all
    }),
    ("changed", "Kill", CHANGED, |known| {
        let mut all = vec![kill_hello(kills::fresh(), None)];
        all.extend((0..50).map(|_| known.mutated("Kill")));
        all
    }),
    ("logs without end", "Audit", STREAMS, |known| {
        let logs = (0..64).map(|_| HeldLog {
            log: kills::fresh(),
            size: known.dice.number(),
        });
        vec![audit_hello(logs.collect())]
    }),
    ("garbage", "Audit", STREAMS, |known| {
        let log = kills::fresh();
        let mut all = vec![audit_hello(vec![HeldLog {
            log: log.clone(),
            size: 0,
        }])];
        for n in 0..50 {
            let chunk = SegmentChunk {
                log: log.clone(),
                segment: n % 2,
                offset: 0,
                data: known.dice.bytes(64 * 1024),
                last: n % 3 == 0,
            };
            all.push(audit(Sent::Chunk(chunk)));
        }
        all
    }),
    ("changed", "Audit", CHANGED, |known| {
        let mut all = vec![audit_hello(Vec::new())];
        all.extend((0..60).map(|_| known.mutated("Audit")));
        all
    }),
];

/// What counts them, and what stands in its labels.
const COUNTED: &[(&str, &str)] = &[
    ("aip_config_nacks_total", "kind"),
    ("aip_config_streams_ended_total", "protocol_violation"),
    ("aip_config_streams_ended_total", "subscription_limit"),
    ("aip_config_streams_ended_total", "rate_exceeded"),
    ("aip_kill_streams_ended_total", "protocol_violation"),
    ("aip_audit_streams_ended_total", "protocol_violation"),
    ("aip_audit_rejected_total", "reason"),
];

fn subscribe(kind: Kind, names: &[String]) -> Vec<u8> {
    config(Asked::Subscribe(Subscribe {
        kind: kind.to_wire() as i32,
        names: names.to_vec(),
    }))
}

/// Sends all of it, for as long as it is taken, and reads to the end: how it ended.
async fn sent(sidecar: &Sidecar, service: &str, messages: Vec<Vec<u8>>) -> String {
    let channel = sidecar.connected().await.unwrap();
    let (send, outgoing) = mpsc::channel(8);
    let sending = tokio::spawn(async move {
        for message in messages {
            if send.send(message).await.is_err() {
                return;
            }
        }
    });
    let read = async {
        let mut answers = open(&channel, service, ReceiverStream::new(outgoing)).await?;
        while answers.message().await?.is_some() {}
        Ok(())
    };
    let ended: Result<(), Status> = tokio::time::timeout(3 * DEADLINE, read).await.expect("an end in time");
    sending.await.unwrap();
    ended.map_or_else(|status| status.message().to_owned(), |()| "closed".to_owned())
}

struct Rig {
    process: Process,
    admin: Admin,
    _dir: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(&dir.path().join("data"), &["--mode", "dev"]).await;
        let admin = process.admin();
        Self {
            process,
            admin,
            _dir: dir,
        }
    }

    async fn joined(&self, agent: &str) -> Sidecar {
        self.admin.ok("POST", "/v1/agents", json!({"name": agent})).await;
        let made = self.admin.ok("POST", "/v1/tokens", json!({"agent": agent})).await;
        let token = made["token"].as_str().unwrap();
        let mut sidecar = Sidecar::new(self.process.mesh(), agent, token).await;
        sidecar.join(token).await.unwrap();
        sidecar
    }

    /// The sum of a metric's samples with this in their labels.
    async fn counted(&self, name: &str, label: &str) -> f64 {
        let request = self.admin.request("GET", "/metrics", &Value::Null);
        let answer = self.admin.raw(request.body(Body::empty()).unwrap()).await;
        let page = to_bytes(answer.into_body(), 16 << 20).await.unwrap();
        let page = String::from_utf8(page.to_vec()).unwrap();
        let of = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{'])) && line.contains(label)
        };
        let samples = page.lines().filter(of);
        samples
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Nothing is open but what a good sidecar has.
    async fn is_idle(&self) {
        for (gauge, open) in [
            ("aip_config_sessions", 1.0),
            ("aip_kill_streams", 1.0),
            ("aip_audit_streams", 0.0),
        ] {
            eventually(gauge, async || (self.counted(gauge, "").await == open).then_some(())).await;
        }
    }

    /// What is changed is pushed to who behaves.
    async fn serves(&self, config: &mut Stream, round: usize) {
        let limits = json!({"agent": "ledger", "max_concurrency": round + 1});
        let changed = self.admin.ok("PUT", "/v1/traffic/ledger", limits).await;
        loop {
            let pushed = config.push().await.unwrap();
            config.ack(pushed.nonce).await;
            let revision = changed["revision"].as_u64().unwrap();
            if pushed.resources.iter().any(|resource| resource.revision == revision) {
                return;
            }
        }
    }
}

fn known(attacker: &Sidecar, other: &str) -> Known {
    let mut log = Log::fresh();
    log.fill(3);
    let held = SignedKillSet {
        payload: json!({"v": 1, "trust_domain": "aip.internal", "term": 1, "epoch": 0, "orders": []})
            .to_string()
            .into_bytes(),
        kid: "k".into(),
        signature: vec![7; 64],
    };
    let ack = Ack {
        nonce: 1,
        rejected: vec![],
    };
    let address = "127.0.0.1:15006".to_owned();
    let names = ["ledger".to_owned(), "nobody".to_owned()];
    let good = [
        (
            "Config",
            vec![
                config(Asked::Ack(ack)),
                subscribe(Kind::Agent, &names),
                subscribe(Kind::Endpoint, &names),
                config(Asked::Endpoint(EndpointLease { address })),
                config_hello(&kills::fresh()),
            ],
        ),
        (
            "Kill",
            vec![
                kill(Said::Beat(Beat {
                    sequence: 1,
                    granted: 0,
                })),
                kill(Said::Ack(KillAck {
                    held: Some(held.clone()),
                    ..KillAck::default()
                })),
                kill_hello(kills::fresh(), Some(held)),
            ],
        ),
        (
            "Audit",
            vec![
                audit(Sent::Chunk(log.whole(0, false))),
                audit(Sent::Checkpoint(log.checkpoint(attacker))),
                audit_hello(vec![log.held()]),
            ],
        ),
    ];
    Known {
        dice: Dice(7),
        other: other.to_owned(),
        good: good.into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hostile_control_streams_take_is_given_back() {
    let rig = Rig::start().await;
    let ledger = rig.joined("ledger").await;
    let mut config = ledger.stream().await;
    config.synced().await;
    config.lease("127.0.0.1:15099").await;
    let mut orders = kills::Stream::open(&ledger, &kills::fresh(), None).await.unwrap();
    let (set, _) = orders.set().await;
    orders.ack(&set).await;
    // An attacker for each service, so that none is stopped by what another did.
    let mut attackers = BTreeMap::new();
    for (service, agent) in [("Config", ATTACKER), ("Kill", "two"), ("Audit", "three")] {
        let sidecar = rig.joined(agent).await;
        let known = known(&sidecar, &config.instance);
        attackers.insert(service, (sidecar, known));
    }
    let (mut resident, mut ends) = (Vec::new(), BTreeSet::new());
    for round in 0..ROUNDS {
        for (what, service, streams, messages) in ATTACKS {
            let (sidecar, known) = attackers.get_mut(service).unwrap();
            for _ in 0..*streams {
                ends.insert((*service, *what, sent(sidecar, service, messages(known)).await));
            }
        }
        rig.is_idle().await;
        rig.serves(&mut config, round).await;
        resident.push(rig.process.resident());
    }
    println!("resident after each round: {resident:?}");
    let last = resident[ROUNDS - 1].min(resident[ROUNDS - 2]);
    assert!(last < resident[1] + ROOM, "{resident:?}");
    let mut counts = Vec::new();
    for (metric, label) in COUNTED {
        counts.push((metric, label, rig.counted(metric, label).await));
    }
    let few = counts.iter().any(|(.., count)| *count < (ROUNDS * STREAMS / 2) as f64);
    assert!(!few, "{counts:?}: {ends:#?}");
    // Of beats more come than are answered, or may: what it is depends on who is faster.
    let beats = ("Kill", "beats without end", "closed".to_owned());
    assert!(!ends.contains(&beats), "{ends:#?}");
    let endpoints = rig.admin.get("/v1/endpoints").await["items"].to_string();
    assert!(endpoints.contains("127.0.0.1:15099"), "{endpoints}");
    let order = json!({"scope": {"kind": "agent", "agent": "ledger"}, "mode": "kill", "reason": "a test"});
    rig.admin.ok("POST", "/v1/kills", order).await;
    assert_eq!(orders.set().await.0.orders.len(), 1);
}
