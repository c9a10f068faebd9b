//! How logs end: what waits for a signature, and requests without an end.

use super::*;

#[test]
fn records_that_wait_too_long_for_a_checkpoint_are_not_vouched_for() {
    let mut mesh = Mesh::busy();
    // Nothing happens for a while, and then something that is not signed yet.
    mesh.planner.now += 100_000;
    mesh.researcher.now += 100_000;
    mesh.hop();
    assert!(mesh.verify().intact(), "{:?}", mesh.kinds());
    mesh.planner.now += 100_000;
    mesh.researcher.now += 100_000;
    mesh.hop();
    assert_eq!(mesh.kinds(), [Kind::TailUnsigned, Kind::TailUnsigned]);
}

#[test]
fn an_id_that_decides_again_after_its_end_is_found() {
    let mut mesh = Mesh::busy();
    let (caller, own) = (mesh.planner.id.clone(), mesh.researcher.id.clone());
    let first = decision(HopId::fresh(), Direction::Inbound, &own, &caller);
    let again = Decision {
        hop: None,
        ..first.clone()
    };
    for decided in [Decision { hop: None, ..first }, again] {
        let now = mesh.researcher.now;
        mesh.researcher
            .writer
            .append(Event::Decision(Box::new(decided)), now)
            .unwrap();
    }
    mesh.researcher.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::DecisionTwice]);
}

#[test]
fn a_tail_that_nobody_signs_while_others_go_on_is_not_vouched_for() {
    let mut mesh = Mesh::busy();
    mesh.hop();
    mesh.researcher.checkpoint();
    let tail = mesh.planner.now;
    // Nothing more comes of the planner's sidecar; the researcher's signs on.
    for later in [100_000, 360_000] {
        mesh.researcher.now = tail + later;
        let now = mesh.researcher.now;
        mesh.researcher.writer.append(gap(), now).unwrap();
        mesh.researcher.checkpoint();
        assert!(mesh.verify().intact(), "{:?}", mesh.kinds());
    }
    mesh.researcher.now = tail + 361_000;
    let now = mesh.researcher.now;
    mesh.researcher.writer.append(gap(), now).unwrap();
    mesh.researcher.checkpoint();
    assert_eq!(mesh.kinds()[0], Kind::TailUnsigned, "{:?}", mesh.kinds());
}

/// A request that the researcher's sidecar decided, and of which it says nothing more.
fn undone(mesh: &mut Mesh) -> (HopId, DecisionId) {
    let hop = HopId::fresh();
    let (own, caller) = (mesh.researcher.id.clone(), mesh.planner.id.clone());
    let decided = decision(hop, Direction::Inbound, &own, &caller);
    let id = decided.id;
    mesh.researcher.now += 10;
    let now = mesh.researcher.now;
    mesh.researcher
        .writer
        .append(Event::Decision(Box::new(decided)), now)
        .unwrap();
    (hop, id)
}

#[test]
fn a_log_that_was_closed_has_an_end_of_each_request_or_says_that_records_are_lost() {
    let mut mesh = Mesh::busy();
    undone(&mut mesh);
    mesh.researcher.checkpoint();
    assert!(mesh.verify().intact(), "it may be under way");
    mesh.researcher.closing(Closing::Close);
    assert_eq!(mesh.kinds()[0], Kind::EndMissing);
    let mut mesh = Mesh::busy();
    undone(&mut mesh);
    let now = mesh.researcher.now;
    mesh.researcher.writer.append(gap(), now).unwrap();
    mesh.researcher.closing(Closing::Close);
    let kinds = mesh.kinds();
    assert!(!kinds.contains(&Kind::EndMissing), "{kinds:?}");
}

#[test]
fn what_a_crash_cut_has_no_end_unless_the_other_end_saw_it() {
    let mut mesh = Mesh::busy();
    let (hop, id) = undone(&mut mesh);
    let callee = mesh.researcher.id.clone();
    mesh.planner.ended(hop, Direction::Outbound, &callee, id, |end| {
        (end.end, end.blame) = ("connection_broken".into(), "callee".into());
    });
    mesh.researcher.closing(Closing::Recovery);
    mesh.planner.checkpoint();
    let report = mesh.verify();
    assert!(report.intact(), "{:#?}", report.faults);
    assert_eq!(report.hops.cut, 1);
    mesh.researcher.closing(Closing::Close);
    assert!(mesh.verify().intact(), "{:?}", mesh.kinds());
    // The caller's sidecar saw the answer to its end: then the callee's had recorded that.
    let mut mesh = Mesh::busy();
    let (hop, id) = undone(&mut mesh);
    mesh.planner.one(hop, Direction::Outbound, &callee, id);
    mesh.researcher.closing(Closing::Recovery);
    mesh.planner.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::EndMissing]);
}

#[test]
fn a_callee_that_never_says_how_a_request_ended_is_found() {
    let mut mesh = Mesh::busy();
    let (hop, id) = undone(&mut mesh);
    let callee = mesh.researcher.id.clone();
    mesh.planner.ended(hop, Direction::Outbound, &callee, id, |end| {
        (end.end, end.blame) = ("aborted".into(), "caller".into());
    });
    mesh.planner.checkpoint();
    mesh.researcher.checkpoint();
    assert_eq!(mesh.verify().hops.pending, 1, "{:?}", mesh.kinds());
    mesh.planner.now += 100_000;
    mesh.researcher.now += 100_000;
    mesh.hop();
    mesh.checkpoints();
    assert_eq!(mesh.kinds(), [Kind::EndMissing]);
}

#[test]
fn a_record_is_as_old_as_the_checkpoints_around_it_allow_and_not_as_it_says() {
    let mut mesh = Mesh::busy();
    let (callee, now) = (mesh.researcher.id.clone(), mesh.planner.now);
    mesh.planner.now = u64::MAX / 2;
    mesh.planner
        .one(HopId::fresh(), Direction::Outbound, &callee, DecisionId::fresh());
    mesh.planner.now = now + 100;
    mesh.planner.checkpoint();
    mesh.researcher.now += 600_000;
    mesh.researcher.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::MissingAtCallee]);
}
