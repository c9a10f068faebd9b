//! A sidecar's side of the Audit stream: a log on disk, checkpoints by the SVID's key, chunks.

use std::path::PathBuf;

use aip_api::id::{DecisionId, HopId};
use aip_api::wire::audit_request::Message;
use aip_api::wire::audit_response::Message as Answer;
use aip_api::wire::{AuditHello, AuditRequest, AuditResponse, HeldLog, SegmentChunk, SignedCheckpoint};
use aip_audit::checkpoint::CHECKPOINT_TYP;
use aip_audit::log::{Options, Writer, fresh_name, segment_path};
use aip_audit::record::{Decision, Direction, End, Event, Facts, Party, Passed};
use aip_audit::{Checkpoint, Closing};
use aip_runtime::grpc::audit_client::AuditClient;
use aip_runtime::jws;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Sidecar;

pub fn now() -> u64 {
    aip_runtime::unix_now() * 1_000
}

/// A log of a sidecar, on disk.
pub struct Log {
    pub writer: Writer,
    _dir: tempfile::TempDir,
}

impl Log {
    pub fn fresh() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::open(&dir.path().join(fresh_name()), Options::default())
            .unwrap()
            .0;
        Self { writer, _dir: dir }
    }

    pub fn name(&self) -> String {
        self.writer.log().to_owned()
    }

    pub fn add(&mut self, event: Event) {
        self.writer.append(event, now()).unwrap();
    }

    /// Records of requests that were decided, and no more.
    pub fn fill(&mut self, count: u64) {
        for _ in 0..count {
            self.add(decision("planner", "researcher", Direction::Outbound, None));
        }
    }

    pub fn path(&self, segment: u64) -> PathBuf {
        segment_path(self.writer.dir(), segment)
    }

    pub fn bytes(&self, segment: u64) -> Vec<u8> {
        std::fs::read(self.path(segment)).unwrap()
    }

    pub fn unsigned(&self, sidecar: &Sidecar, closing: Closing) -> Checkpoint {
        let svid = sidecar.svid.current().unwrap();
        self.writer.unsigned(svid.id(), closing, now())
    }

    pub fn checkpoint(&self, sidecar: &Sidecar) -> SignedCheckpoint {
        sign(sidecar, &self.unsigned(sidecar, Closing::Periodic))
    }

    pub fn chunk(&self, segment: u64, from: usize, to: usize, last: bool) -> SegmentChunk {
        SegmentChunk {
            log: self.name(),
            segment,
            offset: from as u64,
            data: self.bytes(segment)[from..to].to_vec(),
            last,
        }
    }

    pub fn whole(&self, segment: u64, last: bool) -> SegmentChunk {
        self.chunk(segment, 0, self.bytes(segment).len(), last)
    }

    pub fn held(&self) -> HeldLog {
        HeldLog {
            log: self.name(),
            size: self.writer.size(),
        }
    }
}

/// A checkpoint by the key of this sidecar's SVID.
pub fn sign(sidecar: &Sidecar, claims: &Checkpoint) -> SignedCheckpoint {
    let svid = sidecar.svid.current().unwrap();
    SignedCheckpoint {
        statement: jws::sign_es256(svid.pkcs8(), CHECKPOINT_TYP, claims).unwrap(),
        chain: svid.chain.clone(),
    }
}

fn party(agent: &str) -> Party {
    Party {
        id: format!("spiffe://aip.internal/agent/{agent}"),
        serial: String::new(),
    }
}

/// A decision about a call of `caller` to `callee`.
pub fn decision(caller: &str, callee: &str, direction: Direction, hop: Option<HopId>) -> Event {
    Event::Decision(Box::new(Decision {
        id: DecisionId::fresh(),
        hop,
        trace: "0af7651916cd43dd8448eb211c80319c".into(),
        direction,
        source: party(caller),
        destination: party(callee),
        method: "POST".into(),
        path: "/mcp".into(),
        protocol: "mcp".into(),
        call: "tools/call".into(),
        tool: "search".into(),
        verdict: "allow".into(),
        reason: String::new(),
        rule: String::new(),
        tags: vec![],
        observed: false,
        policies: vec![],
        mesh_revision: 1,
        revision: 1,
        facts: Facts::default(),
    }))
}

/// The end of a decided request, over which these bytes passed.
pub fn end(decision: &Event, request: &[u8], response: &[u8]) -> Event {
    let Event::Decision(decision) = decision else {
        panic!("not a decision")
    };
    let passed = |bytes: &[u8]| Passed {
        bytes: bytes.len() as u64,
        digest: Some(aip_api::Digest::of_parts(&[b"0123456789abcdef", bytes])),
    };
    Event::End(Box::new(End {
        id: decision.id,
        hop: decision.hop,
        direction: decision.direction,
        status: 200,
        end: "complete".into(),
        blame: String::new(),
        other: String::new(),
        ms: 3,
        salt: hex::encode(b"0123456789abcdef"),
        request_in: passed(request),
        request_out: passed(request),
        response_in: passed(response),
        response_out: passed(response),
    }))
}

/// An open audit stream.
pub struct Audit {
    send: mpsc::Sender<AuditRequest>,
    answers: Streaming<AuditResponse>,
}

impl Audit {
    /// A stream of a process of its own.
    pub async fn open(sidecar: &Sidecar, logs: Vec<HeldLog>) -> Result<Self, Status> {
        Self::of(sidecar, &uuid::Uuid::now_v7().to_string(), logs).await
    }

    pub async fn of(sidecar: &Sidecar, instance: &str, logs: Vec<HeldLog>) -> Result<Self, Status> {
        let channel = sidecar
            .connected()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let (send, requests) = mpsc::channel(16);
        let hello = AuditHello {
            instance: instance.to_owned(),
            logs,
        };
        let first = AuditRequest {
            message: Some(Message::Hello(hello)),
        };
        send.send(first).await.unwrap();
        let mut client = AuditClient::new(channel);
        let answers = client.stream(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Self { send, answers })
    }

    /// A stream for a log, and where it goes on.
    pub async fn resumed(sidecar: &Sidecar, log: &Log) -> (Self, (u64, u64)) {
        let mut stream = Self::open(sidecar, vec![log.held()]).await.unwrap();
        match stream.answer().await {
            Ok(Answer::Resume(resume)) => (stream, (resume.segment, resume.offset)),
            other => panic!("not resumed: {other:?}"),
        }
    }

    pub async fn say(&self, message: Message) {
        // A stream that was cut takes nothing; the test then reads why.
        let _ = self.send.send(AuditRequest { message: Some(message) }).await;
    }

    pub async fn answer(&mut self) -> Result<Answer, Status> {
        let next = tokio::time::timeout(super::DEADLINE, self.answers.message()).await;
        let next = next.expect("an answer in time")?;
        Ok(next.ok_or_else(|| Status::unavailable("closed"))?.message.unwrap())
    }

    /// Sends a checkpoint; answers its place, or the reason of the refusal.
    pub async fn checkpoint(&mut self, signed: SignedCheckpoint) -> Result<u64, String> {
        self.say(Message::Checkpoint(signed)).await;
        match self.answer().await.unwrap() {
            Answer::Checkpoint(taken) => Ok(taken.index),
            Answer::Refused(refused) => Err(refused.reason),
            Answer::Resume(_) => panic!("a checkpoint was answered by Resume"),
        }
    }

    /// Sends a chunk; answers where to go on, or the reason of the refusal.
    pub async fn chunk(&mut self, chunk: SegmentChunk) -> Result<(u64, u64), String> {
        self.say(Message::Chunk(chunk)).await;
        match self.answer().await.unwrap() {
            Answer::Resume(resume) => Ok((resume.segment, resume.offset)),
            Answer::Refused(refused) => Err(refused.reason),
            Answer::Checkpoint(_) => panic!("a chunk was answered by CheckpointTaken"),
        }
    }

    /// Sends the open segment of a log, under a checkpoint.
    pub async fn all(&mut self, sidecar: &Sidecar, log: &Log) {
        self.checkpoint(log.checkpoint(sidecar)).await.unwrap();
        self.chunk(log.whole(0, false)).await.unwrap();
    }
}
