use std::collections::BTreeMap;

use aip_api::AgentName;
use aip_api::resource::Reputation;
use aip_api::resource::reputation::{Factor, Finding, ReputationSettings, Score, Severity};
use proptest::prelude::*;

use super::event::{Event, Observation, Report, Rules, What};
use super::ledger::{Ledger, MAX_REPORTERS, MAX_SLASHES};
use super::score::{Counted, factor_of, mean, reputation, worth_telling};
use super::tally::HOUR;

mod log;
mod once;

const NOW: u64 = 1_800_000_000 / HOUR * HOUR;

fn planner() -> AgentName {
    "planner".parse().unwrap()
}

fn settings() -> ReputationSettings {
    ReputationSettings::default()
}

fn counts(factor: Factor, n: u32) -> BTreeMap<Factor, u32> {
    BTreeMap::from([(factor, n)])
}

fn observed(peer: &str, good: BTreeMap<Factor, u32>, bad: BTreeMap<Factor, u32>) -> What {
    let of_peer = Observation {
        peer: peer.into(),
        weight: 100,
        good,
        bad,
    };
    What::Observed { by: vec![of_peer] }
}

fn all_bad(peer: &str, n: u32) -> What {
    let bad = Factor::ALL.into_iter().map(|f| (f, n)).collect();
    observed(peer, BTreeMap::new(), bad)
}

fn report(reporter: &str, n: u32, finding: Finding, severity: Severity) -> What {
    let points = match finding {
        Finding::Confirmed => Score::default(),
        _ => settings().slash.of(severity),
    };
    What::Report(Report {
        id: format!("{reporter}-{n:05}"),
        reporter: reporter.into(),
        finding,
        severity,
        points,
        weight: 100,
        evidence: "hop:0198f2f0-7d2b-7c3e-8a11-3b7d5b1f0a42"
            .to_owned()
            .try_into()
            .unwrap(),
        hop: String::new(),
        seen_by: Vec::new(),
        signed_by: None,
        claim: String::new(),
    })
}

fn event(seq: u64, at: u64, what: What) -> Event {
    Event {
        seq,
        at,
        rules: Rules::default(),
        what,
    }
}

/// The ledger of events at their times.
fn ledger(events: impl IntoIterator<Item = (u64, What)>) -> Ledger {
    let mut ledger = Ledger::default();
    for (at, what) in events {
        let seq = ledger.seq + 1;
        ledger.apply(&event(seq, at, what));
    }
    ledger
}

fn at(ledger: &Ledger, now: u64) -> Reputation {
    reputation(&planner(), ledger, &settings(), now)
}

#[test]
fn an_agent_without_a_history_is_at_the_prior() {
    let fresh = at(&Ledger::default(), NOW);
    assert_eq!((fresh.score, fresh.confidence), (Score::clamped(5.0), 0));
    assert_eq!(fresh.level.as_str(), "standard");
}

#[test]
fn a_slash_takes_off_what_its_severity_says_and_wears_off_by_half_in_thirty_days() {
    for (severity, points) in [
        (Severity::Critical, 2.0),
        (Severity::High, 1.0),
        (Severity::Medium, 0.5),
        (Severity::Low, 0.25),
    ] {
        let slashed = ledger([(NOW, report("v", 1, Finding::Hallucination, severity))]);
        let now = at(&slashed, NOW);
        // And one observation against the quality, which weighs a quarter: 5 * 20 / 21.
        let quality = 0.25 * (5.0 - 100.0 / 21.0);
        let expected = Score::clamped(5.0 - points - quality);
        assert_eq!(now.score, expected, "{severity:?}");
        assert_eq!(now.slashes.len(), 1);
        let later = at(&slashed, NOW + 30 * 86_400);
        let left = 5.0 - later.score.value();
        assert!(
            (left - points / 2.0).abs() < 0.02,
            "{severity:?}: {left} is left of {points}"
        );
        let much_later = at(&slashed, NOW + 400 * 86_400);
        assert!(much_later.slashes.is_empty() && much_later.score == Score::clamped(5.0));
    }
}

#[test]
fn evidence_counts_half_after_a_week() {
    let events = (0..10).map(|i| {
        (
            NOW,
            observed(&format!("p{i}"), counts(Factor::Quality, 4), BTreeMap::new()),
        )
    });
    let ledger = ledger(events);
    let good = |now| {
        let value = at(&ledger, now).factors[&Factor::Quality].value();
        // 5 * 20 + 10 g = value (20 + g), solved for g.
        20.0 * (value - 5.0) / (10.0 - value)
    };
    assert!((good(NOW) - 4.0).abs() < 0.05, "the hour's cap: {}", good(NOW));
    assert!((good(NOW + 7 * 86_400) - 2.0).abs() < 0.05);
    assert_eq!(at(&ledger, NOW + 700 * 86_400).score, Score::clamped(5.0));
}

#[test]
fn each_factor_moves_the_score_by_itself() {
    for factor in Factor::ALL {
        let good = ledger([(NOW, observed("p", counts(factor, 4), BTreeMap::new()))]);
        let bad = ledger([(NOW, observed("p", BTreeMap::new(), counts(factor, 4)))]);
        let (good, bad) = (at(&good, NOW), at(&bad, NOW));
        assert!(
            good.score > Score::clamped(5.0) && bad.score < Score::clamped(5.0),
            "{factor:?}"
        );
        for other in Factor::ALL.into_iter().filter(|f| *f != factor) {
            assert_eq!(bad.factors[&other], Score::clamped(5.0), "{factor:?} moved {other:?}");
        }
    }
}

#[test]
fn no_hour_of_automatic_signals_carries_an_agent_below_the_floor() {
    let flood = (0..1_000).map(|i| (NOW + i % HOUR, all_bad(&format!("peer{i}"), 1_000_000)));
    let flooded = at(&ledger(flood), NOW);
    assert!(flooded.score >= settings().floor, "{}", flooded.score);
}

#[test]
fn no_single_reporter_carries_an_agent_below_the_floor_by_what_it_observes() {
    let flood = (0..1_000).map(|i| (NOW + i * HOUR, all_bad("one", 1_000_000)));
    let ledger = ledger(flood);
    let flooded = at(&ledger, ledger.at);
    assert!(flooded.score >= settings().floor, "{}", flooded.score);
}

/// Many reporters over many hours do: the floor is for real.
#[test]
fn what_many_see_over_many_hours_does() {
    let events = (0..20).map(|i| (NOW + i * HOUR, all_bad(&format!("p{i}"), 4)));
    let ledger = ledger(events);
    assert!(at(&ledger, ledger.at).score < settings().floor);
}

/// Peers that praise one another count no more than each of them may; made-up ones count as one.
#[test]
fn colluding_reporters_count_within_their_weights() {
    let week = 7 * 24;
    let ring = |n: u64| {
        let events = (0..week).map(|i| {
            let good = counts(Factor::Quality, 1_000);
            (
                NOW + i * HOUR,
                observed(&format!("friend{}", i % n), good, BTreeMap::new()),
            )
        });
        let ledger = ledger(events);
        at(&ledger, ledger.at).factors[&Factor::Quality].value()
    };
    // One friend: at most 4 observations, so (5 * 20 + 10 * 4) / 24.
    assert!(ring(1) <= 140.0 / 24.0 + 0.01, "{}", ring(1));
    assert!(ring(3) <= (100.0 + 120.0) / 32.0 + 0.01, "{}", ring(3));
    let mut crowd = Ledger::default();
    for i in 0..10_000_u64 {
        let what = observed(&format!("sybil{i}"), counts(Factor::Quality, 1), BTreeMap::new());
        let seq = i + 1;
        crowd.apply(&event(seq, NOW, what));
    }
    assert!(crowd.reporters.len() <= MAX_REPORTERS + 1, "{}", crowd.reporters.len());
}

#[test]
fn what_is_kept_of_slashes_is_bounded_and_the_heaviest_stay() {
    let events = (0..500).map(|n| {
        let severity = if n < 10 { Severity::Critical } else { Severity::Low };
        (NOW, report("v", n, Finding::Hallucination, severity))
    });
    let ledger = ledger(events);
    assert_eq!(ledger.slashes.len(), MAX_SLASHES);
    let critical = ledger.slashes.iter().filter(|s| s.severity == Severity::Critical);
    assert_eq!(critical.count(), 10);
    assert_eq!(at(&ledger, NOW).score, Score::default());
}

#[test]
fn a_reset_forgets_everything_but_that_it_happened() {
    let reset = What::Reset {
        by: "admin:a".into(),
        reason: "t".into(),
    };
    let slash = report("v", 1, Finding::Hallucination, Severity::Critical);
    let ceiling = What::Imported {
        score: Score::clamped(1.0),
        events: 9,
        by: "a".into(),
    };
    let ledger = ledger([(NOW, slash), (NOW, ceiling), (NOW, all_bad("p", 4)), (NOW, reset)]);
    let after = at(&ledger, NOW);
    assert_eq!(
        (after.score, after.confidence, after.events),
        (Score::clamped(5.0), 0, 4)
    );
}

#[test]
fn sidecars_are_told_when_a_level_changes_and_not_at_every_event() {
    let told = |before: f64, after: f64| {
        let with = |score| {
            let score = Score::clamped(score);
            Reputation::new(planner(), score, NOW)
        };
        worth_telling(&with(before), &with(after), &settings())
    };
    assert!(!told(5.0, 5.9) && !told(5.0, 4.0) && !told(7.9, 6.0));
    assert!(told(5.0, 3.99), "a fall is told at once");
    assert!(
        !told(3.99, 4.05) && told(3.99, 4.1),
        "a rise when it is past the border"
    );
    let high = ReputationSettings {
        floor: Score::clamped(4.5),
        ..settings()
    };
    let (above, below) = (Score::clamped(4.6), Score::clamped(4.4));
    let with = |score| Reputation::new(planner(), score, NOW);
    assert!(
        worth_telling(&with(above), &with(below), &high),
        "the floor is a border too"
    );
}

/// What so many peers observed at once: of some factors each, by their weights.
fn observations(peers: u8) -> impl Strategy<Value = What> {
    let factor = || prop::sample::select(Factor::ALL.to_vec());
    let amounts = move || prop::collection::btree_map(factor(), 0..9_u32, 0..3);
    let one = (0..peers, 0..=100_u8, amounts(), amounts());
    let one = one.prop_map(|(peer, weight, good, bad)| Observation {
        peer: format!("p{peer}"),
        weight,
        good,
        bad,
    });
    prop::collection::vec(one, 1..4).prop_map(|by| What::Observed { by })
}

/// A report by a reporter of some weight, of one of a few hops.
fn reports() -> impl Strategy<Value = What> {
    let finding = prop::sample::select(Finding::ALL.to_vec());
    let severity = prop::sample::select(Severity::ALL.to_vec());
    let made = (0..3_u8, 0..99_u32, finding, severity, 0..=100_u8, 0..4_u8);
    made.prop_map(|(by, n, finding, severity, weight, hop)| {
        let What::Report(whole) = report(&format!("v{by}"), n, finding, severity) else {
            unreachable!("a report is one")
        };
        What::Report(Report {
            points: Score::clamped(whole.points.value() * f64::from(weight) / 100.0),
            weight,
            hop: format!("hop {hop}"),
            ..whole
        })
    })
}

/// Anything but a reset, of few peers.
fn no_reset() -> impl Strategy<Value = What> {
    prop_oneof![
        8 => observations(6),
        3 => reports(),
        1 => Just(What::Drift),
        1 => (0..1_000_u16).prop_map(|s| What::Imported { score: Score::of_hundredths(s), events: 0, by: "a".into() }),
    ]
}

fn some_what() -> impl Strategy<Value = What> {
    let reset = What::Reset {
        by: "admin:a".into(),
        reason: "t".into(),
    };
    prop_oneof![20 => no_reset(), 1 => Just(reset)]
}

/// Some events in forty days, at any second of them.
fn history() -> impl Strategy<Value = Vec<(u64, What)>> {
    of_forty_days(some_what(), 0..40)
}

fn of_forty_days(
    what: impl Strategy<Value = What>,
    many: std::ops::Range<usize>,
) -> impl Strategy<Value = Vec<(u64, What)>> {
    prop::collection::vec((0..40 * 24 * HOUR, what), many).prop_map(|mut events| {
        events.sort_by_key(|(second, _)| *second);
        let at = |(second, what)| (NOW + second, what);
        events.into_iter().map(at).collect()
    })
}

/// Fading rounds by the millionth of an observation, which can tip the last digit of a score.
fn about(score: Score) -> u16 {
    score.hundredths() + 1
}

proptest! {
    #[test]
    fn a_score_is_monotone_in_each_factor(
        good in prop::array::uniform5(0.0..50.0_f64),
        bad in prop::array::uniform5(0.0..50.0_f64),
        which in 0..5_usize,
        more in 0.0..50.0_f64,
    ) {
        let score = |good: [f64; 5], bad: [f64; 5]| {
            let factors = Factor::ALL.into_iter().enumerate().map(|(i, factor)| {
                (factor, factor_of(Counted { good: good[i], bad: bad[i] }, &settings()))
            });
            mean(&factors.collect(), &settings())
        };
        let before = score(good, bad);
        let (mut better, mut worse) = (good, bad);
        better[which] += more;
        worse[which] += more;
        prop_assert!(score(better, bad) >= before - 1e-9);
        prop_assert!(score(good, worse) <= before + 1e-9);
        prop_assert!((0.0..=10.0).contains(&before));
    }

    /// One more bad event never raises a score, one more good one never lowers it, whatever came before.
    #[test]
    fn one_more_event_moves_the_score_its_own_way(
        events in history(),
        factor in prop::sample::select(Factor::ALL.to_vec()),
        peer in 0..8_u8,
        n in 1..99_u32,
    ) {
        let now = NOW + 40 * 24 * HOUR;
        let before = at(&ledger(events.clone()), now).score;
        let peer = format!("p{peer}");
        let with = |what: What| at(&ledger(events.iter().cloned().chain([(now, what)])), now).score;
        prop_assert!(with(observed(&peer, BTreeMap::new(), counts(factor, n))).hundredths() <= about(before));
        prop_assert!(about(with(observed(&peer, counts(factor, n), BTreeMap::new()))) >= before.hundredths());
        prop_assert!(with(report("v", 1_000, Finding::Hallucination, Severity::Low)).hundredths() <= about(before));
    }

    /// More peers than are told apart, at any time: what is kept is bounded, the score is one, and it follows from the log.
    #[test]
    fn a_crowd_of_peers_is_bounded_and_follows_from_the_log(
        events in of_forty_days(observations(200), 100..300),
        cut in 0..100_usize,
    ) {
        let whole = ledger(events.clone());
        prop_assert!(whole.reporters.len() <= MAX_REPORTERS + 1);
        let mut base = ledger(events[..cut].to_vec());
        for (at, what) in events[cut..].iter().cloned() {
            base = serde_json::from_str(&serde_json::to_string(&base).unwrap()).unwrap();
            base.apply(&event(base.seq + 1, at, what));
        }
        prop_assert_eq!(&base, &whole);
        let score = at(&whole, whole.at + 1).score.value();
        prop_assert!((0.0..=10.0).contains(&score));
    }

    /// A reset leaves nothing of what came before it.
    #[test]
    fn after_a_reset_only_what_came_later_counts(before in history(), after in history()) {
        let reset = What::Reset { by: "admin:a".into(), reason: "t".into() };
        let then = NOW + 40 * 24 * HOUR;
        let later: Vec<_> = after.into_iter().map(|(at, what)| (at + 40 * 24 * HOUR, what)).collect();
        let with = ledger(before.into_iter().chain([(then, reset.clone())]).chain(later.iter().cloned()));
        let without = ledger([(then, reset)].into_iter().chain(later));
        let now = with.at + HOUR;
        let (with, without) = (at(&with, now), at(&without, now));
        prop_assert_eq!((with.score, with.factors, with.slashes.len()), (without.score, without.factors, without.slashes.len()));
    }

    /// Where nothing spoke against an agent before, one hour of automatic signals, and one reporter, takes off no more
    /// than its cap.
    #[test]
    fn one_hour_and_one_reporter_take_off_no_more_than_their_caps(
        good in prop::collection::vec((0..500_u64, 0..9_u8, 1..99_u32, prop::sample::select(Factor::ALL.to_vec())), 0..30),
        flood in prop::collection::vec((0..100_u8, 1..1_000_000_u32), 1..50),
    ) {
        let mut good = good;
        good.sort_by_key(|(hour, ..)| *hour);
        let history: Vec<_> = good
            .into_iter()
            .map(|(hour, peer, n, f)| (NOW + hour * HOUR, observed(&format!("p{peer}"), counts(f, n), BTreeMap::new())))
            .collect();
        let now = NOW + 501 * HOUR;
        let hour = flood.iter().map(|(peer, n)| (now, all_bad(&format!("f{peer}"), *n)));
        let one = flood.iter().enumerate().map(|(i, (_, n))| (now + i as u64 * HOUR, all_bad("one", *n)));
        for (ledger, when) in [
            (ledger(history.iter().cloned().chain(hour)), now),
            (ledger(history.iter().cloned().chain(one)), now + flood.len() as u64 * HOUR),
        ] {
            let before = at(&super::tests::ledger(history.clone()), when).score.value();
            let after = at(&ledger, when).score.value();
            // One cap of observations against every factor, at ten, is 10 - 10 * 20 / 24.
            prop_assert!(before - after <= 10.0 - 200.0 / 24.0 + 0.02, "{} -> {}", before, after);
        }
    }

    #[test]
    fn events_of_the_same_moment_come_to_the_same_in_any_order(
        events in prop::collection::vec(no_reset(), 0..30),
        seed in any::<u64>(),
    ) {
        let mut shuffled = events.clone();
        let mut state = seed | 1;
        for i in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            shuffled.swap(i, (state >> 33) as usize % (i + 1));
        }
        let of = |events: Vec<What>| at(&ledger(events.into_iter().map(|what| (NOW, what))), NOW + 5 * HOUR);
        let (a, b) = (of(events), of(shuffled));
        prop_assert_eq!(a.score, b.score);
        prop_assert_eq!(a.factors, b.factors);
    }

    /// A base and the rest of the events are all of the events; and a ledger survives being written down.
    #[test]
    fn a_ledger_from_its_log_is_the_ledger(events in history(), cut in 0..40_usize) {
        let whole = ledger(events.clone());
        let cut = cut.min(events.len());
        let mut rest = events;
        let tail = rest.split_off(cut);
        let base = serde_json::to_string(&ledger(rest)).unwrap();
        let mut again: Ledger = serde_json::from_str(&base).unwrap();
        for (at, what) in tail {
            let event = event(again.seq + 1, at, what);
            let event: Event = serde_json::from_str(&serde_json::to_string(&event).unwrap()).unwrap();
            again.apply(&event);
        }
        prop_assert_eq!(&again, &whole);
        let now = whole.at + 3 * HOUR;
        prop_assert_eq!(at(&again, now), at(&whole, now));
    }

    /// Time alone never makes a bad score worse, nor a good one better.
    #[test]
    fn time_leads_back_to_the_prior(bad in any::<bool>(), n in 1..9_u32, hours in 0..2_000_u64, more in 0..2_000_u64) {
        let counts: BTreeMap<Factor, u32> = Factor::ALL.into_iter().map(|f| (f, n)).collect();
        let (good, bad_counts) = if bad { (BTreeMap::new(), counts) } else { (counts, BTreeMap::new()) };
        let ledger = ledger((0..5).map(|i| (NOW + i * HOUR, observed(&format!("p{i}"), good.clone(), bad_counts.clone()))));
        let (then, later) = (ledger.at + hours * HOUR, ledger.at + (hours + more) * HOUR);
        let (then, later) = (at(&ledger, then).score, at(&ledger, later).score);
        let towards = if bad { later >= then } else { later <= then };
        prop_assert!(towards, "{} then, {} later", then, later);
    }
}
