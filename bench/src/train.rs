//! Traffic that a build learns from: the sidecar that ships is optimised by what an instrumented one was seen to do here.
//!
//! The mix is broad on purpose. What a profile never saw is built to be small rather than fast, and a profile of the
//! benchmark's one request would make the benchmark faster and little else. So a real pair of a real mesh carries many
//! kinds of requests ([`mix`]), over many kinds of connections ([`STAGES`]), with and without a policy that reads bodies,
//! in each durability. Nothing is measured here; every answer is looked at.

mod agent;
mod mix;
mod socket;
mod wire;

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::load::Target;
use crate::rig::Pair;
use crate::rig::admin::Admin;
use mix::Mix;
use wire::Wire;

/// Answers of a hundred that may be others than expected: a pushed setting can meet a request on its way, but a mesh that
/// refuses is nothing to learn from.
const MAX_UNEXPECTED_PERCENT: u64 = 1;

/// What refuses by the head of a request.
const HEAD_POLICY: &str = r#"package aip.policy.train

rules contains {"rule": "train/no-delete", "verdict": "deny", "reason": "nothing is deleted here"} if {
	input.request.method == "DELETE"
}
"#;

/// What has bodies read, and refuses by what they say.
const BODY_POLICY: &str = r#"package aip.policy.train_tools

rules contains {"rule": "train-tools/amount", "verdict": "deny", "reason": "too much at once"} if {
	input.protocol.tool == "transfer"
	input.protocol.arguments.amount > 1000
}
"#;

/// How callers connect.
#[derive(Debug, Clone, Copy)]
enum Callers {
    /// HTTP/1.1, kept alive.
    Http1 { connections: usize },
    /// HTTP/2 with prior knowledge.
    Http2 { connections: usize, streams: usize },
    /// HTTP/1.1, a new connection for each request.
    Fresh { at_once: usize },
    /// WebSocket-like: HTTP/1.1 that switches, then messages both ways.
    Upgraded { connections: usize },
}

/// A while of one kind of load.
struct Stage {
    name: &'static str,
    callers: Callers,
    /// Requests due each second, whatever the answers do; without it the next goes out when the answer is there.
    per_second: Option<u32>,
    /// Whether a policy has bodies read; once one has, all later stages must.
    bodies: bool,
    durability: &'static str,
}

const PLAIN: Stage = Stage {
    name: "1 connection",
    callers: Callers::Http1 { connections: 1 },
    per_second: None,
    bodies: false,
    durability: "buffered",
};

/// One after the other, all of the same length.
const STAGES: [Stage; 12] = [
    PLAIN,
    Stage {
        name: "8 connections",
        callers: Callers::Http1 { connections: 8 },
        ..PLAIN
    },
    Stage {
        name: "32 connections",
        callers: Callers::Http1 { connections: 32 },
        ..PLAIN
    },
    Stage {
        name: "32 connections, 500 requests per second",
        callers: Callers::Http1 { connections: 32 },
        per_second: Some(500),
        ..PLAIN
    },
    Stage {
        name: "HTTP/2, 4 connections of 8 streams",
        callers: Callers::Http2 {
            connections: 4,
            streams: 8,
        },
        ..PLAIN
    },
    Stage {
        name: "a connection for each request, 4 at once",
        callers: Callers::Fresh { at_once: 4 },
        ..PLAIN
    },
    Stage {
        name: "4 switched connections",
        callers: Callers::Upgraded { connections: 4 },
        ..PLAIN
    },
    Stage {
        name: "bodies read, 8 connections",
        callers: Callers::Http1 { connections: 8 },
        bodies: true,
        ..PLAIN
    },
    Stage {
        name: "bodies read, HTTP/2, 2 connections of 8 streams",
        callers: Callers::Http2 {
            connections: 2,
            streams: 8,
        },
        bodies: true,
        ..PLAIN
    },
    Stage {
        name: "bodies read, 16 connections, 300 requests per second",
        callers: Callers::Http1 { connections: 16 },
        per_second: Some(300),
        bodies: true,
        ..PLAIN
    },
    Stage {
        name: "bodies read, `grouped`, 8 connections",
        callers: Callers::Http1 { connections: 8 },
        bodies: true,
        durability: "grouped",
        ..PLAIN
    },
    Stage {
        name: "bodies read, `required`, 8 connections",
        callers: Callers::Http1 { connections: 8 },
        bodies: true,
        durability: "required",
        ..PLAIN
    },
];

/// What the workers of a stage share; all on one thread.
struct Shared {
    target: Target,
    mix: Mix,
    bodies: bool,
    until: Instant,
    sent: Cell<usize>,
    unexpected: Cell<u64>,
    first: RefCell<Option<String>>,
}

/// Puts a pair under every stage for `length` each, and ends it in order.
pub(crate) async fn run(bin_dir: &Path, length: Duration) -> anyhow::Result<()> {
    let pair = Pair::start(agent::start().await?, bin_dir).await?;
    let policy = json!({"name": "train", "rego": HEAD_POLICY});
    held(&pair.admin, &pair.admin.put("/v1/policies/train", &policy).await?).await?;
    let mut before = &PLAIN;
    for stage in &STAGES {
        change(&pair.admin, before, stage).await?;
        let requests = under(stage, &pair.target, length)
            .await
            .with_context(|| stage.name.to_owned())?;
        println!("{}: {requests} requests", stage.name);
        before = stage;
    }
    pair.end().await
}

/// Changes what the mesh asks for between two stages.
async fn change(admin: &Admin, before: &Stage, stage: &Stage) -> anyhow::Result<()> {
    if stage.bodies && !before.bodies {
        let policy = json!({"name": "train-tools", "rego": BODY_POLICY});
        held(admin, &admin.put("/v1/policies/train-tools", &policy).await?).await?;
    }
    if stage.durability != before.durability {
        let mut config = admin.get("/v1/mesh-config").await?["resource"].take();
        config["audit"]["durability"] = stage.durability.into();
        held(admin, &admin.put("/v1/mesh-config", &config).await?).await?;
    }
    Ok(())
}

async fn held(admin: &Admin, put: &serde_json::Value) -> anyhow::Result<()> {
    admin.held(put["revision"].as_u64().context("a revision")?).await
}

/// One stage; how many requests were answered.
async fn under(stage: &Stage, target: &Target, length: Duration) -> anyhow::Result<usize> {
    let shared = Rc::new(Shared {
        target: target.clone(),
        mix: Mix::new(),
        bodies: stage.bodies,
        until: Instant::now() + length,
        sent: Cell::new(0),
        unexpected: Cell::new(0),
        first: RefCell::new(None),
    });
    let mut workers = JoinSet::new();
    match stage.callers {
        Callers::Http1 { connections } => {
            for _ in 0..connections {
                let wire = Wire::http1(target.addr).await?;
                workers.spawn_local(work(
                    Rc::clone(&shared),
                    Some(wire),
                    pace(stage.per_second, connections),
                ));
            }
        }
        Callers::Http2 { connections, streams } => {
            for _ in 0..connections {
                let wire = Wire::http2(target.addr).await?;
                for _ in 0..streams {
                    let wire = wire.another().context("HTTP/2 has streams")?;
                    workers.spawn_local(work(Rc::clone(&shared), Some(wire), None));
                }
            }
        }
        Callers::Fresh { at_once } => {
            for _ in 0..at_once {
                workers.spawn_local(work(Rc::clone(&shared), None, None));
            }
        }
        Callers::Upgraded { connections } => {
            for _ in 0..connections {
                workers.spawn_local(switch(Rc::clone(&shared)));
            }
        }
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    shared.verdict()
}

/// How often each of `workers` sends, so that together they send `per_second`.
fn pace(per_second: Option<u32>, workers: usize) -> Option<Interval> {
    let mut due = interval(Duration::from_secs(1) * workers as u32 / per_second?);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    Some(due)
}

/// Sends what is next in the mix until the stage is over; without `kept`, each request over a connection of its own.
async fn work(shared: Rc<Shared>, mut kept: Option<Wire>, mut due: Option<Interval>) -> anyhow::Result<()> {
    while Instant::now() < shared.until {
        if let Some(due) = &mut due {
            due.tick().await;
        }
        let number = shared.next();
        let errand = shared.mix.at(number);
        let expected = errand.expected(shared.bodies);
        let answered = match &mut kept {
            Some(wire) => wire.exchange(&shared.target, errand, number).await,
            None => {
                let mut wire = Wire::http1(shared.target.addr).await?;
                wire.exchange(&shared.target, errand, number).await
            }
        };
        // A connection that broke is no answer but the end of the training.
        let status = answered.with_context(|| errand.name.to_owned())?;
        if status != expected {
            shared.note(&format!("{}: {status}, not {expected}", errand.name));
        }
    }
    Ok(())
}

/// Switches a connection, has messages echoed over it, and begins anew, until the stage is over.
async fn switch(shared: Rc<Shared>) -> anyhow::Result<()> {
    while Instant::now() < shared.until {
        shared.next();
        socket::exchange(&shared.target).await?;
    }
    Ok(())
}

impl Shared {
    fn next(&self) -> usize {
        self.sent.replace(self.sent.get() + 1)
    }

    fn note(&self, what: &str) {
        self.unexpected.set(self.unexpected.get() + 1);
        self.first.borrow_mut().get_or_insert_with(|| what.to_owned());
    }

    fn verdict(&self) -> anyhow::Result<usize> {
        let (sent, unexpected) = (self.sent.get(), self.unexpected.get());
        let first = self.first.borrow();
        ensure!(
            unexpected * 100 <= sent as u64 * MAX_UNEXPECTED_PERCENT,
            "{unexpected} of {sent} answers were not as expected, first: {}",
            first.as_deref().unwrap_or_default()
        );
        Ok(sent)
    }
}

#[cfg(test)]
mod tests;
