//! What a hostile sidecar, or whoever has its key, can try on the Audit stream.

use aip_api::wire::{HeldLog, SegmentChunk};
use aip_audit::log::{Options, Writer, fresh_name};
use aip_audit::record::Direction;
use aip_audit::{Closing, Record};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::refused;
use crate::support::audit::{Audit, Log, decision, now, sign};
use crate::support::sidecar::why;
use crate::support::{Mesh, Sidecar};

/// A log with so many records, under a checkpoint that was taken.
async fn begun(sidecar: &Sidecar, records: u64) -> (Log, Audit) {
    let mut log = Log::fresh();
    log.fill(records);
    let (mut stream, _) = Audit::resumed(sidecar, &log).await;
    stream.checkpoint(log.checkpoint(sidecar)).await.unwrap();
    (log, stream)
}

async fn findings(mesh: &Mesh) -> Vec<String> {
    let page = mesh.admin.get("/v1/audit/findings").await;
    let rows = page["items"].as_array().unwrap();
    rows.iter()
        .map(|row| row["reason"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn only_who_shows_an_svid_of_the_mesh_is_heard() {
    let mesh = Mesh::dev().await;
    let token = mesh.token("planner").await;
    let stranger = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    let pin = mesh.plane.run.root;
    let channel = aip_runtime::grpc::channel(stranger.mesh, aip_runtime::tls::pinned_client(pin).unwrap());
    let mut client = aip_runtime::grpc::audit_client::AuditClient::new(channel.await.unwrap());
    let status = client.stream(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(why(&status), "credential_missing");
    let sidecar = mesh.joined("writer").await;
    mesh.admin.ok("POST", "/v1/agents/writer/revoke", json!({})).await;
    // At the handshake, or by the stream's first look: at the latest when the world has heard of it.
    crate::support::eventually("the refusal", async || Audit::open(&sidecar, vec![]).await.err()).await;
}

#[tokio::test]
async fn a_checkpoint_that_its_agent_did_not_sign_is_refused() {
    let mesh = Mesh::dev().await;
    let (planner, writer) = (mesh.joined("planner").await, mesh.joined("writer").await);
    let mut log = Log::fresh();
    log.fill(3);
    let (mut stream, _) = Audit::resumed(&planner, &log).await;
    let honest = log.unsigned(&planner, Closing::Periodic);
    let mut refused = async |signed| stream.checkpoint(signed).await.unwrap_err();
    // By another's key, under another's chain, and in another's name.
    assert_eq!(refused(sign(&writer, &honest)).await, "checkpoint_invalid");
    let mut other = sign(&planner, &honest);
    other.chain = sign(&writer, &honest).chain;
    assert_eq!(refused(other).await, "checkpoint_invalid");
    let mut foreign = honest.clone();
    foreign.agent = "spiffe://aip.internal/agent/writer".parse().unwrap();
    assert_eq!(refused(sign(&planner, &foreign)).await, "checkpoint_invalid");
    // Changed after it was signed, or not a checkpoint at all.
    let mut changed = sign(&planner, &honest);
    let mut bigger = honest.clone();
    bigger.size += 1;
    let body = sign(&planner, &bigger).statement.split('.').nth(1).unwrap().to_owned();
    let parts: Vec<_> = changed.statement.split('.').map(str::to_owned).collect();
    changed.statement = format!("{}.{body}.{}", parts[0], parts[2]);
    assert_eq!(refused(changed).await, "checkpoint_invalid");
    for change in [
        |s: &mut aip_api::wire::SignedCheckpoint| s.chain.clear(),
        |s: &mut aip_api::wire::SignedCheckpoint| s.chain.truncate(1),
        |s: &mut aip_api::wire::SignedCheckpoint| s.statement = "x".repeat(5_000),
        |s: &mut aip_api::wire::SignedCheckpoint| s.statement.clear(),
    ] {
        let mut signed = sign(&planner, &honest);
        change(&mut signed);
        assert_eq!(refused(signed).await, "checkpoint_invalid");
    }
    // Of a time at which the certificate was not in force, or that has not come.
    for at in [now() - 7 * 86_400_000, now() + 86_400_000] {
        let mut other = honest.clone();
        other.at = at;
        assert_eq!(refused(sign(&planner, &other)).await, "checkpoint_time");
    }
    let mut path = honest.clone();
    path.log = "../../../../etc".into();
    assert_eq!(refused(sign(&planner, &path)).await, "protocol_violation");
    assert_eq!(
        mesh.admin.refused("GET", "/v1/audit/tree-head", json!(null)).await.0,
        404
    );
    assert_eq!(
        stream.checkpoint(sign(&planner, &honest)).await,
        Ok(0),
        "and the honest one is taken"
    );
}

/// What comes with a certificate is kept for as long as records are: only what is signed is.
#[tokio::test]
async fn of_a_checkpoint_s_chain_only_what_leads_to_a_root_is_kept() {
    let mesh = Mesh::dev().await;
    let planner = mesh.joined("planner").await;
    let mut log = Log::fresh();
    log.fill(3);
    let (mut stream, _) = Audit::resumed(&planner, &log).await;
    let mut padded = log.checkpoint(&planner);
    let honest = padded.chain.clone();
    padded.chain.extend([vec![7; 16 * 1024], vec![8; 16 * 1024]]);
    stream.checkpoint(padded).await.unwrap();
    let shown = mesh.admin.get("/v1/audit/checkpoints").await;
    let chain = shown["items"][0]["chain"].as_str().unwrap_or_else(|| panic!("{shown}"));
    let kept = mesh.admin.get(&format!("/v1/audit/chains/{chain}")).await;
    let honest: Vec<_> = honest.iter().map(|der| STANDARD.encode(der)).collect();
    assert_eq!(kept["certificates"], json!(honest));
}

#[tokio::test]
async fn a_log_is_of_the_agent_that_opened_it_and_of_one_stream_at_a_time() {
    let mesh = Mesh::dev().await;
    let (planner, writer) = (mesh.joined("planner").await, mesh.joined("writer").await);
    let (log, stream) = begun(&planner, 3).await;
    let mut theirs = Audit::open(&writer, vec![log.held()]).await.unwrap();
    assert_eq!(refused(&mut theirs).await, "log_of_another");
    assert_eq!(theirs.chunk(log.whole(0, false)).await.unwrap_err(), "log_of_another");
    // The writer signs with its own key, in its own name, for the planner's log.
    let mut claims = log.unsigned(&planner, Closing::Periodic);
    claims.agent = "spiffe://aip.internal/agent/writer".parse().unwrap();
    assert_eq!(
        theirs.checkpoint(sign(&writer, &claims)).await.unwrap_err(),
        "log_of_another"
    );
    let mut second = Audit::open(&planner, vec![log.held()]).await.unwrap();
    assert_eq!(why(&second.answer().await.unwrap_err()), "log_in_use");
    drop((stream, second));
    crate::support::eventually("the log is free", async || {
        let mut again = Audit::open(&planner, vec![log.held()]).await.unwrap();
        again.answer().await.ok()
    })
    .await;
    let bad = HeldLog {
        log: "../writer".into(),
        size: 0,
    };
    let mut stream = Audit::open(&planner, vec![bad]).await.unwrap();
    assert_eq!(refused(&mut stream).await, "protocol_violation");
}

#[tokio::test]
async fn a_newer_stream_of_the_same_process_takes_its_log_over() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut log = Log::fresh();
    log.fill(2);
    let instance = uuid::Uuid::now_v7().to_string();
    let mut old = Audit::of(&sidecar, &instance, vec![log.held()]).await.unwrap();
    old.answer().await.unwrap();
    let mut new = Audit::of(&sidecar, &instance, vec![log.held()]).await.unwrap();
    assert!(matches!(
        new.answer().await,
        Ok(aip_api::wire::audit_response::Message::Resume(_))
    ));
    assert_eq!(why(&old.answer().await.unwrap_err()), "superseded");
    assert_eq!(new.checkpoint(log.checkpoint(&sidecar)).await, Ok(0));
}

#[tokio::test]
async fn two_histories_of_one_log_are_found_kept_and_told() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let (log, mut stream) = begun(&sidecar, 5).await;
    let mut forked = log.unsigned(&sidecar, Closing::Periodic);
    forked.root = aip_api::Digest::sha256(b"another history");
    let forked = sign(&sidecar, &forked);
    assert_eq!(stream.checkpoint(forked.clone()).await.unwrap_err(), "checkpoint_fork");
    let page = mesh.admin.get("/v1/audit/findings").await;
    assert_eq!(
        page["items"][0]["statement"], forked.statement,
        "it is the proof against its signer"
    );
    assert_eq!(page["items"][0]["against"], 0);
    let changes = mesh.admin.get("/v1/audit").await.to_string();
    assert!(
        changes.contains("audit.finding") && changes.contains("checkpoint_fork"),
        "{changes}"
    );
    // Nothing of that log is taken any more, by this stream or the next.
    assert_eq!(
        stream.checkpoint(log.checkpoint(&sidecar)).await.unwrap_err(),
        "log_broken"
    );
    assert_eq!(stream.chunk(log.whole(0, false)).await.unwrap_err(), "log_broken");
    let mut next = Audit::open(&sidecar, vec![log.held()]).await.unwrap();
    assert_eq!(refused(&mut next).await, "log_broken");
    assert_eq!(findings(&mesh).await, ["checkpoint_fork"], "once");
    begun(&sidecar, 2).await;
}

#[tokio::test]
async fn fewer_records_than_were_signed_are_a_truncation() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let (log, mut stream) = begun(&sidecar, 5).await;
    let mut behind = log.unsigned(&sidecar, Closing::Periodic);
    behind.size = 3;
    assert_eq!(
        stream.checkpoint(sign(&sidecar, &behind)).await.unwrap_err(),
        "checkpoint_behind"
    );
    drop(stream);
    let cut = HeldLog {
        log: log.name(),
        size: 3,
    };
    let reason = crate::support::eventually("the truncation", async || {
        let mut stream = Audit::open(&sidecar, vec![cut.clone()]).await.unwrap();
        match stream.answer().await {
            Ok(aip_api::wire::audit_response::Message::Refused(refused)) => Some(refused.reason),
            _ => None,
        }
    })
    .await;
    assert_eq!(reason, "log_truncated");
    assert_eq!(findings(&mesh).await, ["log_truncated"]);
}

#[tokio::test]
async fn a_chunk_twice_out_of_order_or_overlapping_changes_nothing() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let (log, mut stream) = begun(&sidecar, 20).await;
    let length = log.bytes(0).len();
    let half = length / 2;
    let here = Ok((0, half as u64));
    assert_eq!(stream.chunk(log.chunk(0, 0, half, false)).await, here);
    assert_eq!(stream.chunk(log.chunk(0, 0, half, false)).await, here, "twice");
    assert_eq!(
        stream.chunk(log.chunk(0, half - 10, length, false)).await,
        here,
        "overlapping"
    );
    assert_eq!(
        stream.chunk(log.chunk(0, half + 10, length, false)).await,
        here,
        "a hole"
    );
    let mut later = log.chunk(0, half, length, false);
    later.segment = 4;
    assert_eq!(stream.chunk(later).await, here, "another segment");
    assert_eq!(
        stream.chunk(log.chunk(0, half, length, false)).await,
        Ok((0, length as u64))
    );
    let copy = mesh
        .data
        .join("audit/planner")
        .join(log.name())
        .join("segment-00000000.jsonl");
    assert_eq!(std::fs::read(copy).unwrap(), log.bytes(0));
    assert!(findings(&mesh).await.is_empty());
}

#[tokio::test]
async fn records_that_no_checkpoint_covers_wait_for_it() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let (mut log, mut stream) = begun(&sidecar, 2).await;
    log.fill(2);
    assert_eq!(
        stream.chunk(log.whole(0, false)).await.unwrap_err(),
        "checkpoint_missing"
    );
    stream.checkpoint(log.checkpoint(&sidecar)).await.unwrap();
    assert_eq!(
        stream.chunk(log.whole(0, false)).await,
        Ok((0, log.bytes(0).len() as u64))
    );
}

/// A chunk whose bytes were changed by `change`.
async fn changed(records: u64, change: impl FnOnce(&Log, Vec<u8>) -> Vec<u8>) -> (Mesh, String) {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let (log, mut stream) = begun(&sidecar, records).await;
    let chunk = SegmentChunk {
        data: change(&log, log.bytes(0)),
        ..log.whole(0, false)
    };
    let reason = stream.chunk(chunk).await.unwrap_err();
    assert_eq!(findings(&mesh).await, std::slice::from_ref(&reason));
    let copy = mesh.data.join("audit/planner").join(log.name());
    assert!(!copy.exists(), "nothing of it is kept");
    (mesh, reason)
}

#[tokio::test]
async fn a_line_that_was_changed_removed_or_moved_breaks_the_chain() {
    let word = |_: &Log, bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).unwrap();
        text.replacen("\"allow\"", "\"agree\"", 1).into_bytes()
    };
    assert_eq!(changed(4, word).await.1, "chain_broken");
    let without = |_: &Log, bytes: Vec<u8>| {
        let lines: Vec<_> = bytes.split_inclusive(|b| *b == b'\n').collect();
        [lines[0], lines[2], lines[3]].concat()
    };
    assert_eq!(changed(4, without).await.1, "chain_broken");
    let swapped = |_: &Log, bytes: Vec<u8>| {
        let lines: Vec<_> = bytes.split_inclusive(|b| *b == b'\n').collect();
        [lines[0], lines[2], lines[1], lines[3]].concat()
    };
    assert_eq!(changed(4, swapped).await.1, "chain_broken");
    let garbage = |_: &Log, _: Vec<u8>| b"{}\n".to_vec();
    assert_eq!(changed(4, garbage).await.1, "chain_broken");
}

#[tokio::test]
async fn a_log_that_was_rewritten_with_a_valid_chain_is_not_the_one_that_was_signed() {
    let rewritten = |log: &Log, _: Vec<u8>| {
        // The same name, as many records, each naming the one before: another history.
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(&dir.path().join(log.name()), Options::default())
            .unwrap()
            .0;
        for _ in 0..4 {
            let event = decision("planner", "writer", Direction::Outbound, None);
            writer.append(event, now()).unwrap();
        }
        std::fs::read(dir.path().join(log.name()).join("segment-00000000.jsonl")).unwrap()
    };
    assert_eq!(changed(4, rewritten).await.1, "root_mismatch");
}

#[tokio::test]
async fn a_flood_of_checkpoints_and_logs_has_bounds() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let many = |count: usize| -> Vec<HeldLog> {
        let held = |_| HeldLog {
            log: fresh_name(),
            size: 0,
        };
        (0..count).map(held).collect()
    };
    let mut stream = Audit::open(&sidecar, many(65)).await.unwrap();
    assert_eq!(why(&stream.answer().await.unwrap_err()), "audit_log_limit");
    let mut stream = Audit::open(&sidecar, many(64)).await.unwrap();
    for _ in 0..64 {
        stream.answer().await.unwrap();
    }
    let mut log = Log::fresh();
    log.fill(1);
    assert_eq!(
        stream.checkpoint(log.checkpoint(&sidecar)).await.unwrap_err(),
        "audit_log_limit"
    );
    let mut stream = Audit::open(&sidecar, vec![log.held()]).await.unwrap();
    stream.answer().await.unwrap();
    let large = SegmentChunk {
        log: log.name(),
        segment: 0,
        offset: 0,
        data: vec![b'x'; 1024 * 1024 + 1],
        last: false,
    };
    stream.say(aip_api::wire::audit_request::Message::Chunk(large)).await;
    assert_eq!(why(&stream.answer().await.unwrap_err()), "protocol_violation");
    // A line without end is not held in memory without end.
    let (log, mut stream) = begun(&sidecar, 1).await;
    let endless = SegmentChunk {
        log: log.name(),
        segment: 0,
        offset: 0,
        data: vec![b'x'; 600 * 1024],
        last: false,
    };
    assert_eq!(stream.chunk(endless).await.unwrap_err(), "chain_broken");
}

#[tokio::test]
async fn what_is_recorded_is_for_auditors() {
    let mesh = Mesh::dev().await;
    let made = mesh
        .admin
        .ok("POST", "/v1/admin-tokens", json!({"sub": "v", "role": "viewer"}))
        .await;
    let viewer = mesh.admin.with(made["token"].as_str().unwrap());
    for path in [
        "/v1/audit/records",
        "/v1/audit/logs",
        "/v1/audit/mismatches",
        "/v1/audit/records/watch",
    ] {
        assert_eq!(
            viewer.refused("GET", path, json!(null)).await,
            (403, "role_forbidden".into())
        );
    }
    for log in ["..%2f..%2fetc", "..", "x"] {
        let path = format!("/v1/audit/logs/{log}/segments/0");
        assert_eq!(mesh.admin.refused("GET", &path, json!(null)).await.0, 404, "{log}");
    }
    let line: Record = {
        let sidecar = mesh.joined("planner").await;
        let (log, mut stream) = begun(&sidecar, 1).await;
        stream.chunk(log.whole(0, false)).await.unwrap();
        Record::from_bytes(log.bytes(0).strip_suffix(b"\n").unwrap()).unwrap()
    };
    let page = mesh
        .admin
        .get("/v1/audit/records?verdict=allow&tool=search&agent=planner")
        .await;
    assert_eq!(page["items"][0]["record"], serde_json::to_value(&line).unwrap());
    for nothing in ["verdict=deny", "tool=none", "agent=writer", "until=1"] {
        let page = mesh.admin.get(&format!("/v1/audit/records?{nothing}")).await;
        assert_eq!(page["items"], json!([]), "{nothing}");
    }
}
