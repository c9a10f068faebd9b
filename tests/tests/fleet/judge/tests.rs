//! A history that keeps every promise, and what breaks each.

use std::time::Duration;

use super::*;

fn ms(at: u64) -> At {
    Duration::from_millis(at)
}

fn call(id: CallId, from: Member, to: Member, asked: u64, outcome: Outcome) -> Call {
    Call {
        id,
        from,
        to,
        asked: ms(asked),
        ended: ms(asked + 1),
        outcome,
    }
}

fn refused() -> Outcome {
    Outcome::Refused("killed".into())
}

/// Member 1 is stopped for a while; member 2 is revoked, and comes back.
fn history() -> History {
    let order = || "o".to_owned();
    let facts = [
        (
            20,
            Fact::Ordered {
                order: order(),
                scope: Scope::Agent(1),
            },
        ),
        (30, Fact::Enforced { order: order(), by: 1 }),
        (
            36,
            Fact::Listed {
                orders: vec![order()],
                asked: ms(35),
            },
        ),
        (50, Fact::Lifting { order: order() }),
        (
            55,
            Fact::Listed {
                orders: vec![],
                asked: ms(54),
            },
        ),
        (
            70,
            Fact::Revoked {
                member: 2,
                generation: 1,
                revision: 7,
            },
        ),
        (80, Fact::Holds { revision: 7, by: 0 }),
        (
            95,
            Fact::Signed {
                log: "log".into(),
                records: 5,
            },
        ),
        (100, Fact::Rejoining { member: 2 }),
    ];
    History {
        calls: vec![
            call(0, 0, 1, 10, Outcome::Answered),
            call(1, 0, 1, 40, refused()),
            call(2, 0, 1, 60, Outcome::Answered),
            call(3, 2, 0, 90, Outcome::Refused("revoked".into())),
            call(4, 2, 0, 110, Outcome::Answered),
        ],
        facts: facts.into_iter().map(|(at, fact)| (ms(at), fact)).collect(),
    }
}

fn record(at: Member, call: CallId, serials: [&str; 2]) -> Recorded {
    Recorded {
        at,
        call,
        allowed: true,
        serials: serials.map(str::to_owned),
        revision: 7,
        completed: true,
    }
}

fn evidence() -> Evidence {
    let stands = Standing {
        ready: true,
        ..Standing::default()
    };
    let ends = [
        (0, [0, 1], ["zero", "one"]),
        (2, [0, 1], ["zero", "one"]),
        (4, [2, 0], ["new", "zero"]),
    ];
    let recorded = ends
        .into_iter()
        .flat_map(|(call, ends, serials)| ends.map(|at| record(at, call, serials)));
    let svids = [("zero", (0, 1)), ("one", (1, 1)), ("old", (2, 1)), ("new", (2, 2))];
    Evidence {
        heard: HashSet::from([0, 2, 4]),
        recorded: recorded.collect(),
        svids: svids.map(|(serial, of)| (serial.to_owned(), of)).into(),
        logs: BTreeMap::from([("log".to_owned(), 9)]),
        faults: vec![],
        expected: stands.clone(),
        standing: vec![stands; 3],
    }
}

/// Which promises are broken once this has happened instead.
fn broken(change: impl FnOnce(&mut History, &mut Evidence)) -> Vec<&'static str> {
    let (mut history, mut evidence) = (history(), evidence());
    change(&mut history, &mut evidence);
    let mut all: Vec<_> = judge(&history, &evidence)
        .into_iter()
        .map(|broken| broken.promise)
        .collect();
    all.dedup();
    all
}

#[test]
fn a_history_that_keeps_every_promise_is_found_to() {
    assert_eq!(judge(&history(), &evidence()), []);
}

#[test]
fn a_stopped_call_that_comes_through_is_found_by_its_answer_or_by_the_agent() {
    // Without its records it is found twice.
    let answered = |history: &mut History, _: &mut Evidence| history.calls[1].outcome = Outcome::Answered;
    assert_eq!(broken(answered), [STOPPED, RECORDED]);
    assert_eq!(broken(|_, evidence| evidence.heard.extend([1])), [STOPPED]);
    // Either end's word counts, and no other's.
    let enforced_by = |by| {
        move |history: &mut History, evidence: &mut Evidence| {
            history.facts[1].1 = Fact::Enforced { order: "o".into(), by };
            evidence.heard.insert(1);
        }
    };
    assert_eq!(broken(enforced_by(0)), [STOPPED]);
    assert_eq!(broken(enforced_by(2)), [""; 0]);
}

#[test]
fn what_was_asked_before_a_word_or_ended_after_it_was_taken_back_is_not_held_against_anybody() {
    let heard = |asked: u64, ended: u64, outcome: Outcome| {
        move |history: &mut History, evidence: &mut Evidence| {
            evidence.heard.insert(1);
            (history.calls[1].asked, history.calls[1].ended) = (ms(asked), ms(ended));
            history.calls[1].outcome = outcome;
        }
    };
    assert_eq!(broken(heard(29, 41, refused())), [""; 0]);
    assert_eq!(broken(heard(31, 49, refused())), [STOPPED]);
    assert_eq!(broken(heard(40, 51, refused())), [""; 0]);
    // Its sidecar may have gone on with it after that.
    assert_eq!(broken(heard(40, 41, Outcome::Broken)), [""; 0]);
    let never_lifted = |history: &mut History, evidence: &mut Evidence| {
        heard(40, 41, Outcome::Broken)(history, evidence);
        history
            .facts
            .retain(|(_, fact)| !matches!(fact, Fact::Lifting { .. } | Fact::Listed { .. }));
        history.calls.truncate(2);
        evidence.recorded.retain(|record| record.call == 0);
    };
    assert_eq!(broken(never_lifted), [STOPPED]);
}

#[test]
fn each_scope_stops_what_it_covers() {
    let (other, all) = (
        (3, 4),
        [Scope::Mesh, Scope::Group(1), Scope::Agent(1), Scope::Pair(0, 1)],
    );
    assert!(all.iter().all(|scope| scope.covers(0, 1)));
    assert_eq!(all.map(|scope| scope.covers(1, 0)), [true, true, true, false]);
    assert_eq!(
        all.map(|scope| scope.covers(other.0, other.1)),
        [true, false, false, false]
    );
    assert!(Scope::Group(1).covers(6, 0));
}

#[test]
fn an_order_that_is_gone_is_found() {
    let gone = |history: &mut History, _: &mut Evidence| {
        history.facts[2].1 = Fact::Listed {
            orders: vec![],
            asked: ms(35),
        };
    };
    assert_eq!(broken(gone), [IN_FORCE]);
    let not_yet = |history: &mut History, _: &mut Evidence| {
        history.facts[2] = (
            ms(21),
            Fact::Listed {
                orders: vec![],
                asked: ms(19),
            },
        );
    };
    assert_eq!(broken(not_yet), [""; 0]);
}

#[test]
fn a_revoked_svid_that_is_served_is_found_before_its_agent_is_back_and_after() {
    assert_eq!(broken(|_, evidence| evidence.heard.extend([3])), [REVOKED]);
    let old = |serial: usize| {
        move |_: &mut History, evidence: &mut Evidence| {
            let mut records = evidence.recorded.iter_mut();
            let record = records.find(|record| record.call == 4 && record.at == 0).unwrap();
            record.serials[serial] = "old".into();
        }
    };
    assert_eq!(broken(old(0)), [REVOKED]);
    assert_eq!(broken(old(1)), [REVOKED]);
    // Whoever has not said that it knows may serve it.
    let unaware = |history: &mut History, evidence: &mut Evidence| {
        history.facts.retain(|(_, fact)| !matches!(fact, Fact::Holds { .. }));
        evidence.heard.insert(3);
        old(0)(history, evidence);
    };
    assert_eq!(broken(unaware), [""; 0]);
}

#[test]
fn a_decision_by_an_older_world_than_was_held_is_found() {
    let older = |_: &mut History, evidence: &mut Evidence| {
        for record in &mut evidence.recorded {
            record.revision = 6;
        }
    };
    // Only one end of only one call was asked after it had said that it holds it.
    let (history, mut changed) = (history(), evidence());
    older(&mut history.clone(), &mut changed);
    let found = judge(&history, &changed);
    assert_eq!((found.len(), found[0].promise), (1, AT_LEAST));
}

#[test]
fn an_answered_call_that_is_not_in_both_logs_with_its_end_is_found() {
    assert_eq!(broken(|_, evidence| drop(evidence.recorded.remove(0))), [RECORDED]);
    assert_eq!(broken(|_, evidence| evidence.recorded[1].completed = false), [RECORDED]);
    assert_eq!(broken(|_, evidence| evidence.recorded[1].allowed = false), [RECORDED]);
}

#[test]
fn a_log_that_does_not_verify_or_is_shorter_than_it_was_is_found() {
    assert_eq!(broken(|_, evidence| evidence.faults.push("torn".into())), [VERIFIABLE]);
    assert_eq!(
        broken(|_, evidence| evidence.logs.extend([("log".into(), 4)])),
        [VERIFIABLE]
    );
    assert_eq!(broken(|_, evidence| evidence.logs.clear()), [VERIFIABLE]);
}

#[test]
fn whoever_stands_otherwise_is_found() {
    let other = |change: fn(&mut Standing)| broken(move |_, evidence| change(&mut evidence.standing[2]));
    assert_eq!(other(|one| one.ready = false), [CONVERGED]);
    assert_eq!(other(|one| one.acknowledged = true), [CONVERGED]);
    assert_eq!(other(|one| one.policy = Some(1)), [CONVERGED]);
    assert_eq!(other(|one| one.kill = (1, 1)), [CONVERGED]);
    assert_eq!(other(|one| one.orders = 1), [CONVERGED]);
    assert_eq!(other(|one| one.reaches = true), [CONVERGED]);
    assert_eq!(broken(|_, evidence| evidence.standing.clear()), [CONVERGED]);
}
