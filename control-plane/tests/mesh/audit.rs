//! What sidecars recorded, as the control plane takes it: and what it does not take.

mod attacks;
mod copies;
mod query;
mod upkeep;

use aip_api::id::HopId;
use aip_api::wire::audit_response::Message as Answer;
use aip_audit::record::Direction;
use aip_audit::{Closing, merkle};

use crate::support::audit::{Audit, Log, decision, end, sign};
use crate::support::{Mesh, eventually};

#[tokio::test]
async fn a_log_is_taken_segment_by_segment_and_stands_as_it_was_written() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut log = Log::fresh();
    log.fill(20);
    let (mut stream, place) = Audit::resumed(&sidecar, &log).await;
    assert_eq!(place, (0, 0));
    let first = log.checkpoint(&sidecar);
    assert_eq!(stream.checkpoint(first.clone()).await, Ok(0));
    assert_eq!(
        stream.checkpoint(first).await,
        Ok(0),
        "one that is sent again is the same one"
    );
    let length = log.bytes(0).len();
    let half = length / 2 + 7;
    assert_eq!(stream.chunk(log.chunk(0, 0, half, false)).await, Ok((0, half as u64)));
    assert_eq!(
        stream.chunk(log.chunk(0, half, length, false)).await,
        Ok((0, length as u64))
    );
    log.fill(5);
    log.writer.rotate().unwrap();
    log.fill(3);
    assert_eq!(stream.checkpoint(log.checkpoint(&sidecar)).await, Ok(1));
    let all = log.bytes(0).len();
    assert_eq!(stream.chunk(log.chunk(0, length, all, true)).await, Ok((1, 0)));
    assert_eq!(
        stream.chunk(log.whole(1, false)).await,
        Ok((1, log.bytes(1).len() as u64))
    );
    let close = sign(&sidecar, &log.unsigned(&sidecar, Closing::Close));
    assert_eq!(
        stream.checkpoint(close).await,
        Ok(2),
        "the last word, though nothing was added"
    );

    let copy = mesh.data.join("audit/planner").join(log.name());
    for segment in [0, 1] {
        let name = format!("segment-{segment:08}.jsonl");
        assert_eq!(std::fs::read(copy.join(name)).unwrap(), log.bytes(segment));
    }
}

#[tokio::test]
async fn a_stream_goes_on_where_the_one_before_ended_also_after_a_restart_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mesh = Mesh::start(crate::support::settings(&data)).await;
    let sidecar = mesh.joined("planner").await;
    let mut log = Log::fresh();
    log.fill(40);
    let (mut stream, _) = Audit::resumed(&sidecar, &log).await;
    stream.checkpoint(log.checkpoint(&sidecar)).await.unwrap();
    let bytes = log.bytes(0);
    let line = bytes.iter().take(bytes.len() / 2).rposition(|b| *b == b'\n').unwrap() + 1;
    // The second chunk ends inside a line: what a restart has of it is whole lines.
    stream.chunk(log.chunk(0, 0, line, false)).await.unwrap();
    stream.chunk(log.chunk(0, line, line + 10, false)).await.unwrap();
    let head = mesh.admin.get("/v1/audit/tree-head").await;
    mesh.plane.kill().await;

    let mesh = Mesh::start(crate::support::settings(&data)).await;
    assert_eq!(
        mesh.admin.get("/v1/audit/tree-head").await,
        head,
        "the head that was signed"
    );
    let sidecar = crate::support::Sidecar {
        mesh: mesh.plane.run.mesh,
        ..sidecar
    };
    let (mut stream, place) = Audit::resumed(&sidecar, &log).await;
    assert_eq!(place, (0, line as u64));
    let rest = log.chunk(0, line, bytes.len(), false);
    assert_eq!(stream.chunk(rest).await, Ok((0, bytes.len() as u64)));
    log.fill(1);
    assert_eq!(stream.checkpoint(log.checkpoint(&sidecar)).await, Ok(1));
    let proof = mesh.admin.get("/v1/audit/consistency?from=1&to=2").await;
    let digest = |v: &serde_json::Value| v.as_str().unwrap().parse().unwrap();
    let now = mesh.admin.get("/v1/audit/tree-head").await;
    let path: Vec<_> = proof["proof"].as_array().unwrap().iter().map(digest).collect();
    let (old, new) = (digest(&head["head"]["root"]), digest(&now["head"]["root"]));
    merkle::verify_consistency(1, 2, &old, &new, &path).unwrap();
}

#[tokio::test]
async fn both_ends_of_a_hop_are_held_against_each_other() {
    let mesh = Mesh::dev().await;
    let (planner, researcher) = (mesh.joined("planner").await, mesh.joined("researcher").await);
    let mut matched = mesh.plane.audit.hops.subscribe();
    let (mut ours, mut theirs) = (Log::fresh(), Log::fresh());
    let (good, bad) = (HopId::fresh(), HopId::fresh());
    for (hop, answer) in [(good, b"answer"), (bad, b"anSwer")] {
        let out = decision("planner", "researcher", Direction::Outbound, Some(hop));
        ours.add(out.clone());
        ours.add(end(&out, b"question", b"answer"));
        let inbound = decision("planner", "researcher", Direction::Inbound, Some(hop));
        theirs.add(inbound.clone());
        theirs.add(end(&inbound, b"question", answer));
    }
    Audit::resumed(&planner, &ours).await.0.all(&planner, &ours).await;
    assert!(matched.try_recv().is_err(), "one end says nothing yet");
    Audit::resumed(&researcher, &theirs)
        .await
        .0
        .all(&researcher, &theirs)
        .await;
    let first = matched.recv().await.unwrap();
    assert_eq!((first.hop, first.agreed), (good, true));
    assert_eq!(
        (first.caller.as_str(), first.callee.as_str()),
        ("planner", "researcher")
    );
    let second = matched.recv().await.unwrap();
    assert_eq!((second.hop, second.agreed), (bad, false));
    assert_eq!(second.contradicts, ["response_digest"]);
    let shown = eventually("the mismatch", async || {
        let page = mesh.admin.get("/v1/audit/mismatches").await;
        page["items"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(shown["hop"], bad.to_string());
    assert_eq!(shown["differs"], serde_json::json!(["response_digest"]));
}

#[tokio::test]
async fn a_hop_that_an_outsider_claims_to_have_been_an_end_of_matches_nothing() {
    let mesh = Mesh::dev().await;
    let (planner, writer) = (mesh.joined("planner").await, mesh.joined("writer").await);
    let mut matched = mesh.plane.audit.hops.subscribe();
    let hop = HopId::fresh();
    let out = decision("planner", "researcher", Direction::Outbound, Some(hop));
    let mut ours = Log::fresh();
    ours.add(out.clone());
    ours.add(end(&out, b"question", b"answer"));
    // The writer's sidecar records an inbound end of the same hop: the call was not to it.
    let inbound = decision("planner", "researcher", Direction::Inbound, Some(hop));
    let mut theirs = Log::fresh();
    theirs.add(inbound.clone());
    theirs.add(end(&inbound, b"question", b"answer"));
    Audit::resumed(&planner, &ours).await.0.all(&planner, &ours).await;
    Audit::resumed(&writer, &theirs).await.0.all(&writer, &theirs).await;
    assert!(matched.try_recv().is_err());
}

/// The refusal of the log of a stream's Hello.
async fn refused(stream: &mut Audit) -> String {
    match stream.answer().await.unwrap() {
        Answer::Refused(refused) => refused.reason,
        other => panic!("not refused: {other:?}"),
    }
}
