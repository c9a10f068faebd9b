//! Both ends of hops, and one of them alone.

use std::cell::Cell;

use super::*;

#[test]
fn the_other_end_is_pending_until_it_could_have_signed_and_then_it_is_missing() {
    let mut mesh = Mesh::busy();
    let hop = HopId::fresh();
    let callee = mesh.researcher.id.clone();
    mesh.planner.one(hop, Direction::Outbound, &callee, DecisionId::fresh());
    mesh.planner.checkpoint();
    let report = mesh.verify();
    assert!(report.intact(), "{:#?}", report.faults);
    assert_eq!(report.hops.pending, 1);
    mesh.researcher.now += 60_000;
    mesh.researcher.checkpoint();
    let report = mesh.verify();
    assert_eq!(report.faults[0].kind, Kind::MissingAtCallee);
    assert!(report.faults[0].detail.contains(&hop.to_string()));
    assert!(report.faults[0].decision.is_some());
}

#[test]
fn a_hop_that_only_the_callee_recorded_is_missing_at_the_caller() {
    let mut mesh = Mesh::busy();
    let caller = mesh.planner.id.clone();
    mesh.researcher
        .one(HopId::fresh(), Direction::Inbound, &caller, DecisionId::fresh());
    mesh.researcher.checkpoint();
    mesh.planner.now += 60_000;
    mesh.planner.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::MissingAtCaller]);
}

#[test]
fn ends_that_differ_and_hops_used_twice_are_named() {
    let mut mesh = Mesh::busy();
    let (hop, caller, callee) = (HopId::fresh(), mesh.planner.id.clone(), mesh.researcher.id.clone());
    let other = |_: &mut Decision, end: &mut End| end.request_in.digest = Some(Digest::sha256(b"other"));
    mesh.at_both(hop, other, |_, _| {});
    mesh.checkpoints();
    assert_eq!(mesh.kinds(), [Kind::EndsDiffer]);
    mesh.researcher
        .one(hop, Direction::Inbound, &caller, DecisionId::fresh());
    mesh.researcher.checkpoint();
    assert!(mesh.kinds().contains(&Kind::HopReused));
    let again = HopId::fresh();
    mesh.researcher
        .one(again, Direction::Inbound, &caller, DecisionId::fresh());
    mesh.planner
        .one(again, Direction::Outbound, &callee, DecisionId::fresh());
    mesh.checkpoints();
    assert!(mesh.kinds().contains(&Kind::OtherDecision));
}

/// A hop that the planner's sidecar records with `change`, and the researcher's as it was.
fn told(change: impl FnOnce(&mut Decision, &mut End)) -> Mesh {
    let mut mesh = Mesh::busy();
    mesh.at_both(HopId::fresh(), |_, _| {}, change);
    mesh.checkpoints();
    mesh
}

#[test]
fn what_was_asked_and_how_it_came_out_is_the_same_at_both_ends() {
    let differs = |change: fn(&mut Decision, &mut End), what: &str| {
        let faults = told(change).verify().faults;
        assert_eq!(faults.len(), 1, "{what}: {faults:#?}");
        assert_eq!(faults[0].kind, Kind::EndsDiffer);
        assert!(
            faults[0].detail.contains(&format!("({what})")),
            "{what}: {}",
            faults[0].detail
        );
    };
    assert!(told(|_, _| {}).verify().intact());
    differs(|decision, _| decision.method = "GET".into(), "method");
    differs(|decision, _| decision.path = "/other".into(), "path");
    // The callee's says that it refused: the caller's, that it had an answer.
    differs(|_, end| end.status = 403, "status");
    differs(
        |_, end| {
            (end.end, end.blame) = ("aborted".into(), "caller".into());
            end.request_out.digest = None;
        },
        "request_digest",
    );
}

#[test]
fn a_body_that_one_end_did_not_see_whole_is_counted_as_unproven() {
    let mesh = told(|_, end| {
        (end.end, end.blame) = ("aborted".into(), "caller".into());
        end.response_in = Passed { bytes: 3, digest: None };
    });
    let report = mesh.verify();
    assert!(report.intact(), "{:#?}", report.faults);
    assert_eq!((report.hops.agreed, report.hops.unproven), (21, 1));
}

#[test]
fn a_refusal_that_the_callee_hides_is_missed_and_one_that_it_recorded_is_not() {
    let (hop, mut mesh) = (HopId::fresh(), Mesh::busy());
    let (caller, callee) = (mesh.planner.id.clone(), mesh.researcher.id.clone());
    let refusal = DecisionId::fresh();
    let refused = |_: &mut Decision, end: &mut End| {
        end.status = 403;
        (end.request_out, end.response_in) = (Passed::default(), Passed { bytes: 5, digest: None });
        hears_a_denial(end);
    };
    mesh.planner
        .recorded(hop, Direction::Outbound, &callee, refusal, refused);
    mesh.planner.checkpoint();
    mesh.researcher.now += 600_000;
    mesh.researcher.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::MissingAtCallee]);
    // Before it knew of a hop, the callee's sidecar refused and recorded it, as another outcome than the caller's.
    let mut told = decision(hop, Direction::Inbound, &callee, &caller);
    (told.id, told.hop, told.reason) = (refusal, None, "killed".into());
    told.verdict = "deny".into();
    let mut end = mesh.researcher.end_of(&told);
    end.status = 503;
    (end.request_out, end.response_in) = (Passed::default(), Passed::default());
    let now = mesh.researcher.now;
    let mut append = |event| mesh.researcher.writer.append(event, now).unwrap();
    append(Event::Decision(Box::new(told.clone())));
    append(Event::End(Box::new(end)));
    mesh.researcher.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::EndsDiffer]);
}

#[test]
fn a_refusal_that_was_only_counted_is_excused_as_often_as_it_was_counted() {
    let mut mesh = Mesh::busy();
    let callee = mesh.researcher.id.clone();
    for _ in 0..2 {
        let refused = |_: &mut Decision, end: &mut End| {
            end.status = 429;
            (end.request_out, end.response_in) = (Passed::default(), Passed { bytes: 5, digest: None });
            hears_a_denial(end);
        };
        let hop = HopId::fresh();
        mesh.planner
            .recorded(hop, Direction::Outbound, &callee, DecisionId::fresh(), refused);
    }
    mesh.planner.checkpoint();
    mesh.researcher.now += 30_000;
    let now = mesh.researcher.now;
    let counted = crate::record::Strangers {
        reason: "rate_limited".into(),
        count: 1,
        sample: String::new(),
    };
    mesh.researcher.writer.append(Event::Strangers(counted), now).unwrap();
    mesh.researcher.now += 570_000;
    mesh.researcher.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::MissingAtCallee]);
}

#[test]
fn a_record_is_pending_only_as_long_as_it_may_be_on_its_way() {
    let mut mesh = Mesh::busy();
    let callee = mesh.researcher.id.clone();
    mesh.planner
        .one(HopId::fresh(), Direction::Outbound, &callee, DecisionId::fresh());
    mesh.planner.checkpoint();
    assert_eq!(mesh.verify().hops.pending, 1);
    // The callee's sidecar signs nothing any more, while others go on.
    mesh.planner.now += 600_000;
    let hop = mesh.planner.now;
    mesh.planner.writer.append(gap(), hop).unwrap();
    mesh.planner.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::Late]);
}

#[test]
fn a_hop_that_is_used_again_after_both_ends_were_read_is_found() {
    let mut mesh = Mesh::busy();
    let hop = HopId::fresh();
    let (caller, callee) = (mesh.planner.id.clone(), mesh.researcher.id.clone());
    mesh.at_both(hop, |_, _| {}, |_, _| {});
    mesh.planner.one(hop, Direction::Outbound, &callee, DecisionId::fresh());
    mesh.researcher
        .one(hop, Direction::Inbound, &caller, DecisionId::fresh());
    mesh.checkpoints();
    assert_eq!(mesh.kinds(), [Kind::HopReused, Kind::HopReused]);
    // A replay that the callee's sidecar refused is no second use, whatever the records of it say.
    let mut mesh = Mesh::busy();
    let hop = HopId::fresh();
    mesh.at_both(hop, |_, _| {}, |_, _| {});
    let mut replayed = decision(hop, Direction::Inbound, &callee, &caller);
    (replayed.reason, replayed.verdict) = ("hop_replayed".into(), "deny".into());
    let mut end = mesh.researcher.end_of(&replayed);
    end.status = 409;
    (end.request_out, end.response_in) = (Passed::default(), Passed::default());
    let now = mesh.researcher.now;
    for event in [Event::Decision(Box::new(replayed)), Event::End(Box::new(end))] {
        mesh.researcher.writer.append(event, now).unwrap();
    }
    mesh.checkpoints();
    let report = mesh.verify();
    assert!(report.intact(), "{:#?}", report.faults);
    assert_eq!(report.hops.both, 21);
}

/// A hop that the planner's sidecar ended, and of which the researcher's says nothing.
fn unheard(mesh: &mut Mesh) {
    let callee = mesh.researcher.id.clone();
    mesh.planner
        .one(HopId::fresh(), Direction::Outbound, &callee, DecisionId::fresh());
}

#[test]
fn what_the_other_end_says_it_could_not_write_is_no_fault_as_often_as_it_says() {
    let mut mesh = Mesh::busy();
    unheard(&mut mesh);
    mesh.planner.checkpoint();
    mesh.researcher.now += 60_000;
    let now = mesh.researcher.now;
    mesh.researcher.writer.append(gap(), now).unwrap();
    mesh.researcher.checkpoint();
    let report = mesh.verify();
    assert!(report.intact(), "{:#?}", report.faults);
    assert_eq!(report.hops.lost, 1);
    // One record was lost, and no more.
    unheard(&mut mesh);
    mesh.planner.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::MissingAtCallee]);
}

#[test]
fn a_gap_excuses_nothing_that_happened_after_it() {
    let mut mesh = Mesh::busy();
    let now = mesh.researcher.now;
    mesh.researcher.writer.append(gap(), now).unwrap();
    mesh.planner.now += 60_000;
    unheard(&mut mesh);
    mesh.planner.checkpoint();
    mesh.researcher.now += 120_000;
    mesh.researcher.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::MissingAtCallee]);
}

/// The caller was told of a denial.
fn hears_a_denial(end: &mut End) {
    end.other = end.other.replace("allow", "deny");
}

/// A hop that the researcher's sidecar says it refused, with an end that is changed.
fn refused(change: impl FnOnce(&mut Decision, &mut End)) -> Mesh {
    let mut mesh = Mesh::busy();
    let answer = Cell::new((0, Passed::default()));
    let refuses = |decision: &mut Decision, end: &mut End| {
        (decision.verdict, decision.reason) = ("deny".into(), "policy_denied".into());
        end.status = 403;
        (end.request_out, end.response_in) = (Passed::default(), Passed::default());
        change(decision, end);
        answer.set((end.status, end.response_out));
    };
    let hears = |_: &mut Decision, end: &mut End| {
        (end.status, end.response_in) = answer.get();
        hears_a_denial(end);
    };
    mesh.at_both(HopId::fresh(), refuses, hears);
    mesh.checkpoints();
    mesh
}

#[test]
fn a_refusal_whose_end_says_that_it_was_none_is_named() {
    assert!(refused(|_, _| {}).verify().intact());
    let contradicts = |change: fn(&mut Decision, &mut End)| {
        assert_eq!(refused(change).kinds(), [Kind::ContradictsItself]);
    };
    let some = Passed { bytes: 6, digest: None };
    contradicts(|_, end| end.status = 204);
    contradicts(|decision, end| (decision.protocol, end.status) = ("mcp".into(), 200));
    contradicts(|_, end| end.request_out = Passed { bytes: 6, digest: None });
    contradicts(|_, end| end.response_in = Passed { bytes: 6, digest: None });
    // A2A and gRPC say it in 200; what was only observed was answered.
    assert!(
        refused(|decision, end| (decision.protocol, end.status) = ("a2a".into(), 200))
            .verify()
            .intact()
    );
    let observed = refused(|decision, end| {
        (decision.observed, end.status) = (true, 200);
        (end.request_out, end.response_in) = (some, some);
    });
    assert!(observed.verify().intact());
}

#[test]
fn a_callee_that_says_allowed_and_records_a_denial_is_found() {
    let mut mesh = Mesh::busy();
    let denies = |decision: &mut Decision, end: &mut End| {
        (decision.verdict, decision.reason) = ("deny".into(), "policy_denied".into());
        (end.request_out, end.response_in) = (Passed::default(), Passed::default());
    };
    mesh.at_both(HopId::fresh(), denies, |_, _| {});
    mesh.checkpoints();
    let faults = mesh.verify().faults;
    assert_eq!(faults.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::OtherDecision]);
    let detail = &faults[0].detail;
    assert!(
        detail.contains("heard that it was allowed; the callee recorded a denial"),
        "{detail}"
    );
    // What was heard is what the callee recorded: an observed denial, too.
    let mut mesh = Mesh::busy();
    mesh.at_both(HopId::fresh(), |_, _| {}, |_, end| hears_a_denial(end));
    mesh.checkpoints();
    assert_eq!(mesh.kinds(), [Kind::OtherDecision]);
}
