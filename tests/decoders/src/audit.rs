//! What was recorded: records, segments, checkpoints, and an export that is verified.

use std::cell::RefCell;
use std::path::PathBuf;

use aip_api::resource::KeyPurpose;
use aip_api::wire::SignedCheckpoint;
use aip_api::{Digest, SpiffeId};
use aip_audit::checkpoint::{CHECKPOINT_TYP, LedgerBegins, Retired, TreeHead};
use aip_audit::index::{Bounds, Filter, Log, find, rebuild};
use aip_audit::log::{CheckpointLines, Kept, Manifest, Options, Reader, Writer, claims_of, first_prev, segment_path};
use aip_audit::record::{Event, MAX_RECORD_BYTES, RECORD_VERSION};
use aip_audit::verify::{Keys, Sources, verify};
use aip_audit::{Checkpoint, Closing, Record, merkle};
use aip_control_plane::audit::statement;
use aip_runtime::jws::verify_es256;
use aip_runtime::x509::svid_signer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::mesh::{FRESH, MESH, NOW, SVID, is_signed, researcher};
use crate::split::{first, with};
use crate::{Seeds, in_memory};

/// The log's name.
const LOG: &str = "018f7c3e-0000-7000-8000-00000000000a";

/// One line of a segment.
pub(crate) fn audit_record(bytes: &[u8]) -> bool {
    let Ok(record) = Record::from_bytes(bytes) else {
        return false;
    };
    assert!(bytes.len() <= MAX_RECORD_BYTES && record.v == RECORD_VERSION);
    assert_eq!(record.to_bytes().unwrap(), bytes, "it has two spellings");
    let usual: Value = serde_json::from_slice(bytes).unwrap();
    assert_eq!(
        (usual["seq"].as_u64(), usual["at"].as_u64()),
        (Some(record.seq), Some(record.at))
    );
    assert_eq!(usual["prev"].as_str(), Some(record.prev.to_string().as_str()));
    let words = match &record.event {
        Event::Decision(decision) => [("verdict", decision.verdict.as_str()), ("tool", &decision.tool)],
        Event::End(end) => [("end", end.end.as_str()), ("other", &end.other)],
        _ => return true,
    };
    for (name, word) in words {
        assert_eq!(
            usual[name].as_str().unwrap_or_default(),
            word,
            "another reader sees another {name}"
        );
    }
    true
}

pub(crate) fn audit_record_seeds() -> Seeds {
    let record = |n: usize| lines_of(&events())[n].clone();
    let spaced = String::from_utf8(record(0)).unwrap().replacen(':', ": ", 1);
    let later = String::from_utf8(record(0)).unwrap().replacen("\"v\":1", "\"v\":2", 1);
    vec![
        ("decision", record(0)),
        ("end", record(1)),
        ("strangers", record(2)),
        ("gap", record(3)),
        ("dropped", record(4)),
        ("facts", record(5)),
        ("not_canonical", spaced.into_bytes()),
        ("later_version", later.into_bytes()),
    ]
}

/// Events as they are written, without what places them.
fn events() -> Vec<Value> {
    let id = "018f7c3e-0000-7000-8000-000000000001";
    let decision = json!({"kind": "decision", "id": id, "hop": id, "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
        "direction": "inbound", "source": {"id": "spiffe://aip.internal/agent/writer", "serial": "1163"},
        "destination": {"id": "spiffe://aip.internal/agent/researcher"}, "method": "POST", "path": "/mcp", "protocol": "mcp",
        "call": "tools/call", "tool": "pay", "verdict": "allow", "rule": "baseline/attested-peer",
        "policies": [{"name": "baseline", "revision": 3}], "mesh_revision": 1, "revision": 9});
    let mut facts = decision.clone();
    facts["verdict"] = "deny".into();
    facts["reason"] = "policy".into();
    facts["facts"] = json!({"kept": {"protocol": {"arguments": {"amount": 0.1, "to": "ü"}}}, "dropped": ["request.headers"],
        "sealed": {"key": "0011223344556677", "data": "AAAA"}});
    let digest = Digest::sha256(b"body");
    let end = json!({"kind": "end", "id": id, "hop": id, "direction": "inbound", "status": 200, "end": "complete",
        "other": format!("{id};allow"), "ms": 12, "salt": "00112233445566778899aabbccddeeff",
        "request_in": {"bytes": 4, "digest": digest}, "request_out": {"bytes": 4, "digest": digest},
        "response_in": {"bytes": 0}, "response_out": {"bytes": 0}});
    vec![
        decision,
        end,
        json!({"kind": "strangers", "reason": "certificate_expired", "count": 3, "sample": "10.0.0.9"}),
        json!({"kind": "gap", "lost": 2, "reason": "disk_full"}),
        json!({"kind": "dropped", "first": 0, "records": 2, "until": 1_800_000_000_000_u64, "quota": "size"}),
        facts,
    ]
}

/// The lines of a log with these events.
fn lines_of(events: &[Value]) -> Vec<Vec<u8>> {
    let mut prev = first_prev(LOG);
    let mut lines = Vec::new();
    for (seq, event) in (0..).zip(events) {
        let Ok(event) = serde_json::from_value::<Event>(event.clone()) else {
            continue;
        };
        let record = Record {
            v: RECORD_VERSION,
            seq,
            prev,
            at: NOW * 1_000 + seq,
            event,
        };
        let Ok(line) = record.to_bytes() else { continue };
        prev = merkle::leaf(&line);
        lines.push(line);
    }
    lines
}

fn joined(lines: &[Vec<u8>]) -> Vec<u8> {
    lines
        .iter()
        .flat_map(|line| [line.as_slice(), b"\n"].concat())
        .collect()
}

thread_local! {
    static RECEIVING: RefCell<Option<(TempDir, Writer)>> = const { RefCell::new(None) };
}

/// A segment that a sidecar sends. First byte 0: as it is. Else: events, a line each, which are put in their places for us.
pub(crate) fn audit_segment(bytes: &[u8]) -> bool {
    let (mode, rest) = first(bytes);
    let segment = match mode {
        0 => rest.to_vec(),
        _ => joined(&lines_of(
            &serde_json::Deserializer::from_slice(rest)
                .into_iter()
                .map_while(Result::ok)
                .collect::<Vec<_>>(),
        )),
    };
    let staged = RECEIVING.with_borrow_mut(|receiving| {
        let (_, writer) = receiving.get_or_insert_with(|| {
            let dir = in_memory();
            let (writer, _) = Writer::open(&dir.path().join(LOG), Options::default()).unwrap();
            (dir, writer)
        });
        writer.stage(segment.clone()).ok()
    });
    is_searched(&segment, staged.is_some());
    let Some(staged) = staged else { return false };
    let lines: Vec<&[u8]> = segment.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(
        (staged.records.len(), staged.leaves.len(), staged.len()),
        (lines.len(), lines.len(), segment.len())
    );
    let mut prev = first_prev(LOG);
    for (seq, (line, (_, record))) in (0..).zip(lines.iter().zip(&staged.records)) {
        assert!(
            record.seq == seq && record.prev == prev,
            "record {seq} is out of its chain"
        );
        prev = merkle::leaf(line.strip_suffix(b"\n").unwrap_or(line));
    }
    !segment.is_empty()
}

/// The index of a segment finds what a reader of the segment reads, whatever is in it.
fn is_searched(segment: &[u8], whole: bool) {
    let (_dir, log) = log_with(&[("segment-00000000.jsonl", segment)]);
    let read = Reader::open(&log).unwrap().map_while(Result::ok).count();
    let rows = rebuild(&log, 0).map_or(0, |rows| rows.len() / aip_audit::index::ROW_BYTES);
    assert!(
        !whole || !segment.ends_with(b"\n") || rows == read,
        "{rows} rows of {read} records"
    );
    let logs = [Log {
        agent: "researcher".into(),
        dir: log,
    }];
    let bounds = Bounds {
        limit: 1_000,
        bytes: 1 << 20,
        rows: 10_000,
        after: None,
    };
    let filter = Filter {
        verdict: Some("allow".into()),
        ..Filter::default()
    };
    for filter in [Filter::default(), filter] {
        if let Ok(found) = find(&logs, &filter, &bounds) {
            assert!(
                found
                    .hits
                    .iter()
                    .all(|hit| filter.matches(&hit.record) && hit.place.offset < segment.len() as u64)
            );
        }
    }
}

/// A log with these files.
fn log_with(files: &[(&str, &[u8])]) -> (TempDir, PathBuf) {
    let dir = in_memory();
    let log = dir.path().join(LOG);
    std::fs::create_dir(&log).unwrap();
    for (name, bytes) in files {
        std::fs::write(log.join(name), bytes).unwrap();
    }
    (dir, log)
}

pub(crate) fn audit_segment_seeds() -> Seeds {
    let segment = joined(&lines_of(&events()));
    let texts: Vec<Vec<u8>> = events().iter().map(|event| event.to_string().into_bytes()).collect();
    let mut swapped = lines_of(&events());
    swapped.swap(1, 2);
    vec![
        ("segment", with(0, &segment)),
        ("events", with(1, joined(&texts))),
        ("swapped", with(0, joined(&swapped))),
        ("cut", with(0, &segment[..segment.len() - 9])),
        ("empty_lines", with(0, b"\n\n")),
    ]
}

/// A checkpoint that a sidecar sends. First byte 0: a JWS as it is. Else: claims that its SVID's key signs.
pub(crate) fn audit_checkpoint(bytes: &[u8]) -> bool {
    let (mode, rest) = first(bytes);
    let statement = match (mode, std::str::from_utf8(rest)) {
        (0, Ok(text)) => text.to_owned(),
        (0, Err(_)) => return false,
        _ => SVID.sign(CHECKPOINT_TYP, rest),
    };
    let signed = SignedCheckpoint {
        statement: statement.clone(),
        chain: chain(),
    };
    let Ok(taken) = statement::verify(signed, &researcher(), MESH.trust(), NOW) else {
        return false;
    };
    let signer = svid_signer(&chain(), MESH.trust(), NOW).unwrap();
    assert!(is_signed(&statement, |message, signature| {
        use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &signer.point)
            .verify(message, signature)
            .is_ok()
    }));
    assert_eq!(
        claims_of(&statement),
        Some(taken.claims.clone()),
        "what was read unsigned is not what was signed"
    );
    assert!(taken.claims.v == 1 && taken.claims.agent == signer.id && taken.claims.size <= 1 << 48);
    assert!(taken.claims.at <= NOW * 1_000 + 300_000 && taken.claims.log.len() == 36);
    true
}

/// Of the base log: all of its records.
fn checkpoint() -> Vec<u8> {
    let lines = lines_of(&events());
    let mut tree = merkle::Tree::default();
    lines.iter().for_each(|line| tree.append(merkle::leaf(line)));
    let checkpoint = Checkpoint {
        v: 1,
        log: LOG.into(),
        agent: SpiffeId::new(crate::mesh::domain(), researcher()),
        size: lines.len() as u64,
        root: tree.root(),
        at: NOW * 1_000 + 100,
        closing: Closing::Close,
    };
    serde_json::to_vec(&checkpoint).unwrap()
}

/// The checkpoint of the base log, signed.
pub(crate) fn checkpoint_statement() -> String {
    SVID.sign(CHECKPOINT_TYP, &checkpoint())
}

/// The certificates that signed it.
pub(crate) fn chain() -> Vec<Vec<u8>> {
    vec![MESH.leaf.clone(), MESH.intermediate.clone()]
}

pub(crate) fn audit_checkpoint_seeds() -> Seeds {
    let text = String::from_utf8(checkpoint()).unwrap();
    vec![
        ("signed", with(0, checkpoint_statement())),
        ("claims", with(1, &text)),
        ("other_key", with(0, FRESH.sign(CHECKPOINT_TYP, &checkpoint()))),
        ("to_come", with(1, text.replace("1800000000100", "1900000000100"))),
        ("other_agent", with(1, text.replace("researcher", "writer"))),
        ("path", with(1, text.replace(LOG, "../../etc"))),
    ]
}

/// Who verifies an export.
struct Auditor;

impl Keys for Auditor {
    fn checkpoint(&self, kept: &Kept) -> Result<(Checkpoint, SpiffeId), String> {
        let at = claims_of(&kept.statement).ok_or("no checkpoint")?.at;
        let signer = svid_signer(&kept.chain, MESH.trust(), at / 1_000).map_err(|e| e.to_string())?;
        let claims = verify_es256(&kept.statement, CHECKPOINT_TYP, &signer.point).map_err(|e| e.to_string())?;
        Ok((claims, signer.id))
    }
    fn tree_head(&self, statement: &str) -> Result<TreeHead, String> {
        let key_of = |kid: &str| MESH.trust().key(KeyPurpose::Audit, kid);
        aip_runtime::jws::verify_eddsa(statement, "aip-tree-head+jwt", key_of).map_err(|e| e.to_string())
    }
    fn ledger_begins(&self, _: &str) -> Result<LedgerBegins, String> {
        Err("there is none".into())
    }
    fn retired(&self, _: &str) -> Result<Retired, String> {
        Err("there is none".into())
    }
}

/// The files of a log, with 0xff between them: segment, checkpoints, manifest. A log whose checkpoint is good holds the
/// records that were signed, and nothing was signed but the six of the base.
pub(crate) fn audit_export(bytes: &[u8]) -> bool {
    let mut parts = bytes.split(|byte| *byte == 0xff);
    let mut next = || parts.next().unwrap_or_default();
    let (segment, checkpoints, manifest) = (next(), next(), next());
    let files = [
        ("segment-00000000.jsonl", segment),
        ("checkpoints.jsonl", checkpoints),
        ("segments.jsonl", manifest),
    ];
    let (dir, log) = log_with(&files);
    let report = verify(&Sources::find(dir.path()).unwrap(), &Auditor, &mut |_| ());
    let base = joined(&lines_of(&events()));
    let signed = report.logs.iter().any(|log| log.signed > 0);
    if signed {
        assert!(
            segment.starts_with(&base),
            "other records pass for those that were signed"
        );
    }
    if let Ok(known) = Manifest::read(&log) {
        assert!(known.closed.windows(2).all(|pair| pair[1].first == pair[0].end()));
    }
    if Writer::open(&log, Options::default()).is_err() {
        let left = std::fs::read(segment_path(&log, 0)).unwrap();
        assert_eq!(left, segment, "what is kept for the auditor was changed");
    }
    signed
}

pub(crate) fn audit_export_seeds() -> Seeds {
    let lines = lines_of(&events());
    let segment = joined(&lines);
    let checkpoints = CheckpointLines::default().add(&checkpoint_statement(), &chain());
    let export = |parts: &[&[u8]]| parts.join(&0xff);
    let changed = String::from_utf8(segment.clone())
        .unwrap()
        .replacen("\"pay\"", "\"buy\"", 1);
    vec![
        ("whole", export(&[&segment, &checkpoints])),
        ("cut_off", export(&[&joined(&lines[..4]), &checkpoints])),
        ("changed", export(&[changed.as_bytes(), &checkpoints])),
        ("unsigned", export(&[&segment])),
        ("torn", export(&[&segment[..segment.len() - 5], &checkpoints])),
        (
            "dropped_without_a_word_of_how_it_ended",
            export(&[
                &segment,
                &checkpoints,
                b"{\"dropped\":{\"through\":0,\"at\":1,\"quota\":\"size\"}}\n",
            ]),
        ),
    ]
}
