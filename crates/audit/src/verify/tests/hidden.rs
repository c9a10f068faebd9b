//! What one end's own key can say so that a hop which the other end saw whole would count as refused, cut, pending or excused.

use super::*;

/// The caller's agent asked and was answered, as its sidecar has it; the callee's decision is what `change` says it was told.
fn answered(mesh: &mut Mesh, hop: HopId, told: DecisionId, change: impl FnOnce(&mut End)) {
    let callee = mesh.researcher.id.clone();
    mesh.planner.ended(hop, Direction::Outbound, &callee, told, change);
}

/// What the researcher's sidecar writes of a request of the planner's, at its own time.
fn writes(mesh: &mut Mesh, hop: Option<HopId>, change: impl FnOnce(&mut Decision, &mut End)) -> DecisionId {
    let (own, caller) = (mesh.researcher.id.clone(), mesh.planner.id.clone());
    let mut decided = Decision {
        hop,
        ..decision(HopId::fresh(), Direction::Inbound, &own, &caller)
    };
    let mut end = mesh.researcher.end_of(&decided);
    change(&mut decided, &mut end);
    let (id, now) = (decided.id, mesh.researcher.now);
    for event in [Event::Decision(Box::new(decided)), Event::End(Box::new(end))] {
        mesh.researcher.writer.append(event, now).unwrap();
    }
    id
}

/// Only the decision of a hop at one end; the other end is as it was.
fn half(mesh: &mut Mesh, without: Direction, change: impl FnOnce(&mut End)) {
    let (hop, own) = (HopId::fresh(), without == Direction::Inbound);
    let (caller, callee) = (mesh.planner.id.clone(), mesh.researcher.id.clone());
    let (agent, id, peer) = match own {
        true => (&mut mesh.researcher, callee.clone(), &caller),
        false => (&mut mesh.planner, caller.clone(), &callee),
    };
    let decided = decision(hop, without, &id, peer);
    let told = decided.id;
    agent.now += 10;
    let now = agent.now;
    agent.writer.append(Event::Decision(Box::new(decided)), now).unwrap();
    match own {
        true => mesh.planner.ended(hop, Direction::Outbound, &callee, told, change),
        false => mesh.researcher.ended(hop, Direction::Inbound, &caller, told, change),
    };
}

fn refuse(decision: &mut Decision, end: &mut End, status: u16) {
    (decision.verdict, decision.reason) = ("deny".into(), "killed".into());
    end.status = status;
    (end.request_out, end.response_in) = (Passed::default(), Passed::default());
}

fn denied(end: &mut End, status: u16) {
    end.status = status;
    end.other = end.other.replace("allow", "deny");
}

/// Everybody signs that much later, and that there was nothing new.
fn later(mesh: &mut Mesh, millis: u64) {
    for agent in [&mut mesh.planner, &mut mesh.researcher] {
        agent.now += millis;
        let nothing = crate::record::Strangers {
            reason: "tls".into(),
            count: 1,
            sample: String::new(),
        };
        agent.writer.append(Event::Strangers(nothing), agent.now).unwrap();
        agent.checkpoint();
    }
}

#[test]
fn a_record_that_let_it_through_without_its_hop_is_no_refusal() {
    let mut mesh = Mesh::busy();
    let id = writes(&mut mesh, None, |decision, _| decision.tool = "other".into());
    answered(&mut mesh, HopId::fresh(), id, |_| {});
    later(&mut mesh, 60_000);
    assert_eq!(mesh.kinds(), [Kind::MissingAtCallee]);
    // Nor is one that was only observed, whatever its reason.
    let mut mesh = Mesh::busy();
    let hop = HopId::fresh();
    let id = writes(&mut mesh, Some(hop), |decision, _| {
        (decision.reason, decision.observed) = ("hop_replayed".into(), true);
    });
    answered(&mut mesh, hop, id, |_| {});
    mesh.checkpoints();
    assert!(mesh.verify().intact(), "{:?}", mesh.kinds());
    assert_eq!(mesh.verify().hops.agreed, 21);
}

#[test]
fn a_refusal_before_the_hop_was_known_is_held_to_what_the_caller_heard() {
    let kinds = |written: fn(&mut Decision, &mut End), heard: fn(&mut End)| {
        let mut mesh = Mesh::busy();
        let id = writes(&mut mesh, None, |decision, end| {
            refuse(decision, end, 503);
            written(decision, end);
        });
        answered(&mut mesh, HopId::fresh(), id, |end| {
            denied(end, 503);
            heard(end);
        });
        later(&mut mesh, 60_000);
        let report = mesh.verify();
        let kinds: Vec<_> = report.faults.iter().map(|f| f.kind).collect();
        assert!(!kinds.is_empty() || report.hops.one_end == 1, "{:#?}", report.hops);
        kinds
    };
    assert_eq!(kinds(|_, _| {}, |_| {}), []);
    let told = |end: &mut End| end.other = end.other.replace("deny", "allow");
    assert_eq!(kinds(|_, _| {}, told), [Kind::OtherDecision]);
    let no_verdict = |end: &mut End| end.other = end.other.replace("deny", "");
    assert_eq!(kinds(|_, _| {}, no_verdict), [Kind::OtherDecision]);
    assert_eq!(
        kinds(|decision, _| decision.method = "GET".into(), |_| {}),
        [Kind::EndsDiffer]
    );
    assert_eq!(
        kinds(|decision, _| decision.path = "/b".into(), |_| {}),
        [Kind::EndsDiffer]
    );
    assert_eq!(kinds(|_, end| end.response_out.bytes = 5, |_| {}), [Kind::EndsDiffer]);
    assert_eq!(kinds(|_, _| {}, |end| end.status = 403), [Kind::EndsDiffer]);
    let works = |_: &mut Decision, end: &mut End| end.request_out.bytes = 5;
    assert_eq!(kinds(works, |_| {}), [Kind::ContradictsItself]);
    let good = |decision: &mut Decision, end: &mut End| (decision.protocol, end.status) = ("mcp".into(), 200);
    assert_eq!(kinds(good, |end| end.status = 200), [Kind::ContradictsItself]);
    // The caller's agent went away before it came, or while it did.
    let leaves = |end: &mut End| {
        (end.status, end.end, end.blame) = (0, "aborted".into(), "caller".into());
        end.response_in = Passed::default();
    };
    assert_eq!(kinds(|_, _| {}, leaves), []);
}

#[test]
fn one_refusal_is_what_one_hop_came_to() {
    let mut mesh = Mesh::busy();
    let id = writes(&mut mesh, None, |decision, end| refuse(decision, end, 503));
    for _ in 0..3 {
        answered(&mut mesh, HopId::fresh(), id, |end| denied(end, 503));
    }
    later(&mut mesh, 60_000);
    assert_eq!(mesh.kinds(), [Kind::MissingAtCallee; 2]);
}

#[test]
fn an_answer_without_a_decision_is_an_answer() {
    let kinds = |change: fn(&mut End)| {
        let mut mesh = Mesh::busy();
        answered(&mut mesh, HopId::fresh(), DecisionId::fresh(), |end| {
            end.other = String::new();
            (end.status, end.response_in) = (202, Passed::default());
            change(end);
        });
        later(&mut mesh, 60_000);
        mesh.kinds()
    };
    assert_eq!(kinds(|_| {}), [Kind::MissingAtCallee]);
    let of_its_own = |end: &mut End| (end.status, end.response_in) = (400, Passed { bytes: 9, digest: None });
    assert_eq!(kinds(of_its_own), [Kind::MissingAtCallee]);
    // What the callee's parser gave, and what the caller's sidecar gave itself.
    assert_eq!(kinds(|end| end.status = 431), []);
    let own = |end: &mut End| (end.status, end.end, end.blame) = (502, "peer_unreachable".into(), "callee".into());
    assert_eq!(kinds(own), []);
    // One that records a denial told of it.
    let mut mesh = Mesh::busy();
    let silent = |_: &mut Decision, end: &mut End| end.other = String::new();
    mesh.at_both(HopId::fresh(), |decision, end| refuse(decision, end, 200), silent);
    mesh.checkpoints();
    assert_eq!(mesh.kinds(), [Kind::OtherDecision]);
}

#[test]
fn a_callee_that_leaves_out_its_ends_is_not_excused_by_the_crash_that_it_signs() {
    let mut mesh = Mesh::busy();
    for _ in 0..3 {
        half(&mut mesh, Direction::Inbound, |_| {});
    }
    mesh.planner.closing(Closing::Close);
    mesh.researcher.closing(Closing::Recovery);
    mesh.researcher.closing(Closing::Close);
    assert_eq!(mesh.kinds(), [Kind::EndMissing; 3]);
    // Nor of what its caller saw cut off, long before.
    let mut mesh = Mesh::busy();
    half(&mut mesh, Direction::Inbound, |end| {
        (end.end, end.blame) = ("aborted".into(), "caller".into());
    });
    later(&mut mesh, 100_000);
    mesh.researcher.now += 10;
    mesh.researcher.closing(Closing::Recovery);
    mesh.researcher.closing(Closing::Close);
    assert_eq!(mesh.kinds(), [Kind::EndMissing]);
    // What both decided is compared, also where one end is missing.
    let mut mesh = Mesh::busy();
    half(&mut mesh, Direction::Inbound, |end| {
        (end.end, end.blame) = ("connection_broken".into(), "callee".into());
        end.other = heard(DecisionId::fresh(), "allow");
    });
    mesh.researcher.closing(Closing::Recovery);
    mesh.planner.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::OtherDecision]);
}

#[test]
fn what_a_disk_lost_after_its_decision_is_the_sidecars_word_and_nothing_else() {
    let mut mesh = Mesh::busy();
    half(&mut mesh, Direction::Inbound, |_| {});
    let now = mesh.researcher.now;
    mesh.researcher.writer.append(gap(), now).unwrap();
    mesh.researcher.closing(Closing::Recovery);
    mesh.researcher.now += 10;
    mesh.researcher.closing(Closing::Close);
    mesh.planner.checkpoint();
    let report = mesh.verify();
    assert!(report.intact() && !report.is_whole(), "{:#?}", report.faults);
    assert_eq!((report.hops.lost, report.hops.cut), (1, 0));
    // One record was lost, and no more.
    half(&mut mesh, Direction::Inbound, |_| {});
    mesh.researcher.closing(Closing::Recovery);
    mesh.planner.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::EndMissing]);
}

#[test]
fn a_log_that_was_closed_without_an_end_is_named_once() {
    let mut mesh = Mesh::busy();
    half(&mut mesh, Direction::Inbound, |_| {});
    mesh.planner.checkpoint();
    mesh.researcher.closing(Closing::Close);
    assert_eq!(mesh.kinds(), [Kind::EndMissing]);
    assert_eq!(mesh.verify().hops.cut, 1);
}

#[test]
fn a_caller_that_never_says_how_a_request_ended_is_found() {
    let mut mesh = Mesh::busy();
    half(&mut mesh, Direction::Outbound, |_| {});
    mesh.checkpoints();
    assert_eq!(mesh.verify().hops.pending, 1, "{:?}", mesh.kinds());
    // Its agent may take its time.
    later(&mut mesh, 100_000);
    assert_eq!(mesh.verify().hops.pending, 1, "{:?}", mesh.kinds());
    later(&mut mesh, 600_000);
    assert_eq!(mesh.kinds(), [Kind::EndMissing]);
    // Nor does a crash excuse what ended long before it.
    mesh.planner.now += 10;
    mesh.planner.closing(Closing::Recovery);
    mesh.planner.closing(Closing::Close);
    assert_eq!(mesh.kinds(), [Kind::EndMissing]);
    // One whose sidecar signs nothing more.
    let mut mesh = Mesh::busy();
    half(&mut mesh, Direction::Outbound, |_| {});
    mesh.checkpoints();
    mesh.researcher.now += 600_000;
    let now = mesh.researcher.now;
    mesh.researcher.writer.append(gap(), now).unwrap();
    mesh.researcher.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::Late]);
}

#[test]
fn a_caller_that_crashed_is_cut_and_the_trail_is_not_called_whole() {
    let mut mesh = Mesh::busy();
    half(&mut mesh, Direction::Outbound, |_| {});
    // It crashes a moment later, and comes back after a day.
    mesh.planner.now += 86_400_000;
    mesh.planner.closing(Closing::Recovery);
    mesh.planner.closing(Closing::Close);
    mesh.researcher.checkpoint();
    super::kept::Listed::beside(&mut mesh);
    let report = mesh.verify();
    assert!(report.intact(), "{:#?}", report.faults);
    assert_eq!(report.hops.cut, 1);
    assert!(!report.is_whole());
}

/// The researcher's sidecar says that it refused so many by rate.
fn counts(mesh: &mut Mesh, count: u64) {
    let counted = crate::record::Strangers {
        reason: "rate_limited".into(),
        count,
        sample: String::new(),
    };
    let now = mesh.researcher.now;
    mesh.researcher.writer.append(Event::Strangers(counted), now).unwrap();
}

#[test]
fn refusals_that_were_counted_excuse_nothing_that_was_allowed_and_nothing_of_another_time() {
    let kinds = |later: u64, change: fn(&mut Decision, &mut End)| {
        let mut mesh = Mesh::busy();
        let callee = mesh.researcher.id.clone();
        let denied = |decision: &mut Decision, end: &mut End| {
            denied(end, 429);
            change(decision, end);
        };
        let hop = HopId::fresh();
        mesh.planner
            .recorded(hop, Direction::Outbound, &callee, DecisionId::fresh(), denied);
        mesh.researcher.now += later;
        counts(&mut mesh, 1_000_000);
        super::hidden::later(&mut mesh, 600_000);
        mesh.kinds()
    };
    assert_eq!(kinds(5_000, |_, _| {}), []);
    assert_eq!(kinds(5_000, |_, end| end.status = 0), []);
    let of_grpc = |decision: &mut Decision, end: &mut End| {
        decision.protocol = "grpc".into();
        (end.status, end.response_in) = (200, Passed::default());
    };
    assert_eq!(kinds(5_000, of_grpc), []);
    assert_eq!(kinds(100_000, |_, _| {}), [Kind::MissingAtCallee]);
    assert_eq!(kinds(5_000, |_, end| end.status = 200), [Kind::MissingAtCallee]);
    let allowed: [fn(&mut Decision, &mut End); 3] = [
        |_, end| end.other = end.other.replace("deny", "allow"),
        |_, end| (end.status, end.response_in) = (202, Passed::default()),
        |decision, end| {
            decision.protocol = "grpc".into();
            (end.status, end.response_in) = (200, Passed::default());
            end.other = end.other.replace("deny", "allow");
        },
    ];
    for change in allowed {
        assert_eq!(kinds(5_000, change), [Kind::MissingAtCallee]);
    }
    assert_eq!(kinds(5_000, |_, end| end.response_in = Passed::default()), []);
}

#[test]
fn a_quota_took_nothing_that_is_newer_than_what_it_left() {
    let mut mesh = Mesh::busy();
    let options = Options {
        segment_bytes: 6000,
        total_bytes: 16_000,
        ..Options::default()
    };
    let (mut writer, _) = Writer::open(mesh.researcher.writer.dir(), options).unwrap();
    writer.sweep(u64::MAX, 9).unwrap().unwrap();
    let manifest = crate::log::Manifest::read(writer.dir()).unwrap();
    let gone = manifest.of(manifest.begins() - 1).unwrap().end();
    mesh.researcher.writer = writer;
    mesh.planner.now += 50_000;
    answered(&mut mesh, HopId::fresh(), DecisionId::fresh(), |_| {});
    mesh.planner.checkpoint();
    mesh.researcher.now += 100_000;
    let now = mesh.researcher.now;
    let says = crate::record::Dropped {
        log: None,
        first: 0,
        records: gone,
        until: now,
        quota: "size".into(),
    };
    mesh.researcher.writer.append(Event::Dropped(says), now).unwrap();
    mesh.researcher.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::MissingAtCallee]);
    assert!(mesh.verify().hops.dropped > 0);
}

#[test]
fn a_callee_alone_can_not_call_a_request_a_switch_of_protocols() {
    let switch = |decision: &mut Decision, end: &mut End| {
        decision.protocol = "websocket".into();
        (end.status, end.end, end.blame) = (421, "aborted".into(), "caller".into());
        end.response_out.digest = None;
    };
    let mut mesh = Mesh::busy();
    mesh.at_both(HopId::fresh(), switch, |_, _| {});
    mesh.checkpoints();
    let faults = mesh.verify().faults;
    let differ = |what: &str| {
        faults
            .iter()
            .any(|f| f.kind == Kind::EndsDiffer && f.detail.contains(what))
    };
    assert!(differ("(status)") && differ("(response_digest)"), "{faults:#?}");
}
