use std::fs;
use std::path::{Path, PathBuf};

use aip_api::id::{DecisionId, HopId};
use aip_api::{Digest, SpiffeId};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;

use super::*;
use crate::Closing;
use crate::log::{Options, Writer, fresh_name, segment_path};
use crate::record::{Decision, Direction, End, Event, Party, Passed, sample};

mod broken;
mod copies;
mod ends;
mod hidden;
mod hops;
mod kept;
mod others;

/// Stands for signatures: a digest over the claims and a key that the test alone knows.
struct TestKeys;

const KEY: &[u8] = b"key of ";

fn sign<C: serde::Serialize>(by: &str, claims: &C) -> String {
    let claims = serde_json::to_vec(claims).unwrap();
    let mark = Digest::of_parts(&[KEY, by.as_bytes(), &claims]);
    format!("e30.{}.{mark}", B64.encode(claims))
}

fn open<C: serde::de::DeserializeOwned>(by: &str, statement: &str) -> Result<C, String> {
    let parts: Vec<_> = statement.split('.').collect();
    let claims = B64
        .decode(parts.get(1).ok_or("no claims")?)
        .map_err(|e| e.to_string())?;
    let signature = *parts.get(2).ok_or("no signature")?;
    if signature != Digest::of_parts(&[KEY, by.as_bytes(), &claims]).to_string() {
        return Err("the signature does not verify".into());
    }
    serde_json::from_slice(&claims).map_err(|e| e.to_string())
}

impl Keys for TestKeys {
    fn checkpoint(&self, kept: &Kept) -> Result<(Checkpoint, SpiffeId), String> {
        let by = String::from_utf8(kept.chain.first().ok_or("no certificate")?.clone());
        let by = by.map_err(|_| "no text")?;
        Ok((open(&by, &kept.statement)?, by.parse().map_err(|_| "no agent")?))
    }

    fn tree_head(&self, statement: &str) -> Result<TreeHead, String> {
        open("control plane", statement)
    }

    fn ledger_begins(&self, statement: &str) -> Result<LedgerBegins, String> {
        open("control plane", statement)
    }

    fn retired(&self, statement: &str) -> Result<Retired, String> {
        open("control plane", statement)
    }
}

fn id(agent: &str) -> SpiffeId {
    format!("spiffe://aip.internal/agent/{agent}").parse().unwrap()
}

struct Agent {
    id: SpiffeId,
    writer: Writer,
    now: u64,
}

impl Agent {
    fn new(home: &Path, name: &str) -> Self {
        Self::with_log(home, name, &fresh_name())
    }

    fn with_log(home: &Path, name: &str, log: &str) -> Self {
        let options = Options {
            segment_bytes: 6000,
            ..Options::default()
        };
        let (writer, _) = Writer::open(&home.join(name).join(log), options).unwrap();
        Self {
            id: id(name),
            writer,
            now: 1_000_000,
        }
    }

    fn sign_as(&mut self, by: &str, claims: &Checkpoint) {
        self.writer.keep(&sign(by, claims), &[by.as_bytes().to_vec()]).unwrap();
    }

    fn checkpoint(&mut self) -> Checkpoint {
        self.closing(Closing::Periodic)
    }

    fn closing(&mut self, closing: Closing) -> Checkpoint {
        let claims = self.writer.unsigned(&self.id, closing, self.now);
        self.sign_as(&self.id.to_string(), &claims);
        claims
    }

    fn one(&mut self, hop: HopId, direction: Direction, peer: &SpiffeId, other: DecisionId) -> DecisionId {
        self.ended(hop, direction, peer, other, |_| {})
    }

    fn ended(
        &mut self,
        hop: HopId,
        direction: Direction,
        peer: &SpiffeId,
        other: DecisionId,
        change: impl FnOnce(&mut End),
    ) -> DecisionId {
        self.recorded(hop, direction, peer, other, |_, end| change(end))
    }

    /// Both records of a hop, with what is changed in them.
    fn recorded(
        &mut self,
        hop: HopId,
        direction: Direction,
        peer: &SpiffeId,
        other: DecisionId,
        change: impl FnOnce(&mut Decision, &mut End),
    ) -> DecisionId {
        let mut decision = decision(hop, direction, &self.id, peer);
        let own = decision.id;
        let mut end = self.end_of(&decision);
        if direction == Direction::Outbound {
            end.other = heard(other, "allow");
        }
        change(&mut decision, &mut end);
        self.now += 10;
        self.writer
            .append(Event::Decision(Box::new(decision)), self.now)
            .unwrap();
        self.writer.append(Event::End(Box::new(end)), self.now).unwrap();
        own
    }

    fn end_of(&self, decision: &Decision) -> End {
        let bytes = |text: &[u8]| Passed {
            bytes: text.len() as u64,
            digest: Some(Digest::sha256(text)),
        };
        End {
            id: decision.id,
            hop: decision.hop,
            direction: decision.direction,
            status: 200,
            end: "complete".into(),
            blame: String::new(),
            other: String::new(),
            ms: 1,
            salt: "00".repeat(16),
            request_in: bytes(b"question"),
            request_out: bytes(b"question"),
            response_in: bytes(b"answer"),
            response_out: bytes(b"answer"),
        }
    }
}

/// As a sidecar records what the other one's answer says.
fn heard(decision: DecisionId, verdict: &str) -> String {
    End::heard(&format!("{decision};{verdict};callee"))
}

fn gap() -> Event {
    Event::Gap(crate::record::Gap {
        lost: 1,
        reason: "io".into(),
    })
}

fn decision(hop: HopId, direction: Direction, own: &SpiffeId, peer: &SpiffeId) -> Decision {
    let party = |id: &SpiffeId| Party {
        id: id.to_string(),
        serial: "1f".into(),
    };
    let (source, destination) = match direction {
        Direction::Outbound => (party(own), party(peer)),
        Direction::Inbound => (party(peer), party(own)),
    };
    Decision {
        hop: Some(hop),
        source,
        destination,
        path: "/".into(),
        protocol: "http".into(),
        call: String::new(),
        tool: String::new(),
        ..sample::decision(direction)
    }
}

struct Mesh {
    home: tempfile::TempDir,
    planner: Agent,
    researcher: Agent,
}

impl Mesh {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (planner, researcher) = (
            Agent::new(home.path(), "planner"),
            Agent::new(home.path(), "researcher"),
        );
        Self {
            home,
            planner,
            researcher,
        }
    }

    fn hop(&mut self) {
        self.at_both(HopId::fresh(), |_, _| {}, |_, _| {});
    }

    /// A hop that both record, with what is changed in the callee's records and in the caller's; the callee's decision.
    fn at_both(
        &mut self,
        hop: HopId,
        callees: impl FnOnce(&mut Decision, &mut End),
        callers: impl FnOnce(&mut Decision, &mut End),
    ) -> DecisionId {
        let (caller, callee) = (self.planner.id.clone(), self.researcher.id.clone());
        let decided = self
            .researcher
            .recorded(hop, Direction::Inbound, &caller, DecisionId::fresh(), callees);
        self.planner
            .recorded(hop, Direction::Outbound, &callee, decided, callers);
        decided
    }

    fn checkpoints(&mut self) {
        self.planner.checkpoint();
        self.researcher.checkpoint();
    }

    /// 20 hops, signed after each four, over several segments.
    fn busy() -> Self {
        let mut mesh = Self::new();
        for n in 0..20 {
            mesh.hop();
            if n % 4 == 3 {
                mesh.checkpoints();
            }
        }
        assert!(crate::log::segments(mesh.planner.writer.dir()).unwrap().len() >= 3);
        mesh
    }

    fn verify(&self) -> Report {
        verify(&Sources::find(self.home.path()).unwrap(), &TestKeys, &mut |_| {})
    }

    fn dir(&self) -> PathBuf {
        self.planner.writer.dir().to_owned()
    }

    fn kinds(&self) -> Vec<Kind> {
        self.verify().faults.iter().map(|f| f.kind).collect()
    }
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn write(path: &Path, lines: &[String]) {
    fs::write(path, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
}

#[test]
fn an_untouched_mesh_verifies_and_says_what_it_rests_on() {
    let mesh = Mesh::busy();
    let sources = Sources::find(mesh.home.path()).unwrap();
    let mut last = None;
    let report = verify(&sources, &TestKeys, &mut |p| last = Some(p));
    assert!(report.intact(), "{:#?}", report.faults);
    assert_eq!((report.hops.both, report.hops.agreed, report.hops.pending), (20, 20, 0));
    for log in &report.logs {
        assert_eq!((log.records, log.signed, log.checkpoints), (40, 40, 5));
    }
    assert_eq!(last.map(|p| p.done), last.map(|p| p.all));
    assert!(!Report::default().intact(), "no log at all proves nothing");
}

#[test]
fn a_byte_that_was_changed_anywhere_is_found_in_its_line() {
    let mesh = Mesh::busy();
    let path = segment_path(&mesh.dir(), 1);
    let whole = fs::read(&path).unwrap();
    let ends: Vec<_> = (0..whole.len()).filter(|n| whole[*n] == b'\n').collect();
    for at in (0..whole.len()).step_by(37) {
        let mut bent = whole.clone();
        bent[at] ^= 1;
        fs::write(&path, &bent).unwrap();
        let report = mesh.verify();
        let line = ends.iter().filter(|end| **end < at).count() as u64 + 1;
        let near = |f: &Fault| {
            f.file.ends_with("segment-00000001.jsonl") && f.line.is_some_and(|l| l == line || l == line + 1)
        };
        // Of the last line, the next segment's first record says that it was changed.
        let next = |f: &Fault| f.kind == Kind::SegmentBorder && line == ends.len() as u64;
        assert!(
            report.faults.iter().any(|f| near(f) || next(f)),
            "byte {at}, line {line}: {:#?}",
            report.faults
        );
        assert!(report.faults.iter().any(|f| f.kind == Kind::Rewritten), "byte {at}");
    }
}

#[test]
fn a_record_that_was_taken_out_put_in_or_moved_is_named() {
    let mesh = Mesh::busy();
    let path = segment_path(&mesh.dir(), 1);
    let whole = lines(&path);
    let first = crate::Record::from_bytes(whole[0].as_bytes()).unwrap().seq;
    let mut cut = whole.clone();
    cut.remove(2);
    write(&path, &cut);
    let report = mesh.verify();
    let fault = report.faults.iter().find(|f| f.kind == Kind::RecordsMissing).unwrap();
    assert_eq!((fault.line, fault.seq), (Some(3), Some(first + 2)));
    let mut doubled = whole.clone();
    doubled.insert(2, whole[2].clone());
    write(&path, &doubled);
    assert!(mesh.kinds().contains(&Kind::OutOfOrder));
    let mut moved = whole.clone();
    moved.swap(1, 2);
    write(&path, &moved);
    assert!(mesh.kinds().contains(&Kind::OutOfOrder) || mesh.kinds().contains(&Kind::RecordsMissing));
    fs::remove_file(&path).unwrap();
    let report = mesh.verify();
    assert_eq!(report.faults[0].kind, Kind::SegmentMissing);
    assert!(report.faults[0].file.ends_with("segment-00000001.jsonl"));
}

#[test]
fn a_tail_that_was_cut_is_found_by_what_was_signed() {
    let mesh = Mesh::busy();
    let last = *crate::log::segments(&mesh.dir()).unwrap().last().unwrap();
    let path = segment_path(&mesh.dir(), last);
    let whole = lines(&path);
    write(&path, &whole[..whole.len() - 1]);
    let report = mesh.verify();
    let fault = report.faults.iter().find(|f| f.kind == Kind::Truncated).unwrap();
    assert_eq!(fault.seq, Some(39));
    assert!(fault.detail.contains("40 records were signed"), "{}", fault.detail);
    fs::remove_file(&path).unwrap();
    assert!(mesh.kinds().contains(&Kind::Truncated));
}

/// Changes a record and writes everything after it anew, so that the chain fits.
fn rewrite(dir: &Path, from: u64) {
    let mut prev: Option<Digest> = None;
    for number in crate::log::segments(dir).unwrap() {
        let path = segment_path(dir, number);
        let mut out = Vec::new();
        for line in lines(&path) {
            let mut record = crate::Record::from_bytes(line.as_bytes()).unwrap();
            if record.seq == from {
                record.at += 1;
            }
            record.prev = prev.unwrap_or(record.prev);
            let bytes = record.to_bytes().unwrap();
            prev = Some(crate::merkle::leaf(&bytes));
            out.push(String::from_utf8(bytes).unwrap());
        }
        write(&path, &out);
    }
}

#[test]
fn a_rewritten_history_with_a_valid_chain_is_found_by_the_signed_root() {
    let mesh = Mesh::busy();
    rewrite(&mesh.dir(), 17);
    fs::remove_file(mesh.dir().join("segments.jsonl")).unwrap();
    let report = mesh.verify();
    let kinds: Vec<_> = report.faults.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [Kind::Rewritten]);
    let fault = &report.faults[0];
    assert!(
        fault.detail.starts_with("records 16 to 23 in segment-"),
        "{}",
        fault.detail
    );
    assert_eq!(
        report.logs.iter().map(|l| l.signed).min(),
        Some(16),
        "what was signed before still holds"
    );
}

#[test]
fn forged_foreign_and_forked_checkpoints_are_found() {
    let mut mesh = Mesh::busy();
    let good = mesh.planner.checkpoint();
    let forged = Checkpoint {
        root: Digest::sha256(b"x"),
        ..good.clone()
    };
    mesh.planner
        .writer
        .keep(
            &format!("{}x", sign("nobody", &forged)),
            &[mesh.planner.id.to_string().into_bytes()],
        )
        .unwrap();
    assert_eq!(mesh.kinds(), [Kind::CheckpointInvalid]);
    mesh.planner.sign_as(&id("researcher").to_string(), &good);
    assert_eq!(mesh.kinds(), [Kind::CheckpointInvalid, Kind::CheckpointOfAnother]);
    mesh.planner.sign_as(&mesh.planner.id.to_string(), &forged);
    assert_eq!(
        mesh.kinds(),
        [Kind::CheckpointInvalid, Kind::CheckpointOfAnother, Kind::Forked]
    );
}

#[test]
fn what_nobody_signed_is_not_intact() {
    let mut mesh = Mesh::new();
    mesh.hop();
    assert_eq!(mesh.kinds(), [Kind::Unsigned, Kind::Unsigned]);
}

#[test]
fn every_kind_has_its_name_and_a_meaning() {
    let docs = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/audit.md")).unwrap();
    for kind in Kind::ALL {
        let name = serde_json::to_value(kind).unwrap();
        assert_eq!(name, kind.as_str());
        assert!(
            docs.contains(&format!("| `{}` | {} |", kind.as_str(), kind.means())),
            "docs/audit.md: {name}"
        );
    }
}
