//! What a log comes to: the same after a restart, a compaction and a change of settings; and with a clock that was wrong.

use aip_api::resource::{Agent, MeshMode};
use proptest::prelude::*;

use super::*;
use crate::clock::Clock;
use crate::registry::{Actor, Registry};
use crate::reputation::book::Book;
use crate::store::Store;
use crate::store::disk::DiskStore;
use crate::testing::{mesh, mesh_in};

fn rules() -> impl Strategy<Value = Rules> {
    (1..9_u32, 1..9_u32, 1..60_u32, 1..60_u32).prop_map(
        |(hour_cap, reporter_cap, half_life_days, slash_half_life_days)| Rules {
            hour_cap,
            reporter_cap,
            half_life_days,
            slash_half_life_days,
        },
    )
}

fn fold(ledger: &mut Ledger, events: &[Event]) {
    for event in events {
        let written = serde_json::to_string(event).unwrap();
        ledger.apply(&serde_json::from_str(&written).unwrap());
    }
}

proptest! {
    /// Settings change between events, the clock is set back between them, and the older ones move into the base at any
    /// time: the ledger follows from the log alone, and so does the score.
    #[test]
    fn a_ledger_follows_from_its_log_alone(
        events in prop::collection::vec((0..40 * 24 * HOUR, some_what(), rules()), 0..40),
        cut in 0..40_usize,
    ) {
        let events: Vec<Event> = events
            .into_iter()
            .enumerate()
            .map(|(i, (second, what, rules))| Event { seq: i as u64 + 1, at: NOW + second, rules, what })
            .collect();
        let (older, newer) = events.split_at(cut.min(events.len()));
        let mut whole = Ledger::default();
        fold(&mut whole, &events);
        let mut base = Ledger::default();
        fold(&mut base, older);
        let mut again: Ledger = serde_json::from_str(&serde_json::to_string(&base).unwrap()).unwrap();
        fold(&mut again, newer);
        prop_assert_eq!(&again, &whole);
        let now = NOW + 41 * 24 * HOUR;
        prop_assert_eq!(at(&again, now), at(&whole, now));
    }

    /// The lower of two statements holds, whatever came before and after; until a reset.
    #[test]
    fn of_all_statements_the_lowest_holds(
        before in history(),
        scores in prop::collection::vec(0..1_000_u16, 1..5),
        higher in 0..1_000_u16,
    ) {
        let imported = |score| What::Imported { score: Score::of_hundredths(score), events: 0, by: "a".into() };
        let lowest = *scores.iter().min().unwrap();
        let now = NOW + 41 * 24 * HOUR;
        let all = before.iter().cloned().chain(scores.iter().map(|score| (now, imported(*score))));
        let all: Vec<_> = all.collect();
        let known = at(&ledger(all.clone()), now).score;
        prop_assert!(known <= Score::of_hundredths(lowest));
        let more = all.into_iter().chain([(now, imported(higher.max(known.hundredths())))]);
        prop_assert_eq!(at(&ledger(more), now).score, known, "a higher one changes nothing");
    }
}

proptest! {
    // Each case is some hundred commits on a disk.
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// What a restarted control plane reads from its file is what all events come to, and so is the score: though the older
    /// ones have moved into the base meanwhile, and are gone.
    #[test]
    fn a_restart_finds_the_score_in_the_file(
        steps in prop::collection::vec((0..48 * HOUR, some_what()), 130..160),
        restart in 0..130_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = || Store::new(DiskStore::open(&dir.path().join("store")).unwrap()).unwrap();
            let mut registry = mesh_in(store(), MeshMode::Dev).await.registry;
            registry.create_agent(&Actor::admin("a"), Agent::new(planner())).await.unwrap();
            let (mut whole, mut seconds) = (Ledger::default(), 0);
            for (n, (more, what)) in steps.into_iter().enumerate() {
                seconds += more;
                registry.clock.advance(more);
                whole.apply(&record(&registry, what).await);
                if n == restart {
                    registry = restarted(registry, &store, seconds).await;
                }
            }
            let told = book(&registry).await;
            registry = restarted(registry, &store, seconds).await;
            let again = book(&registry).await;
            assert!(again.events.len() < whole.seq as usize, "the older ones are in the base");
            assert_eq!((&again.ledger, &again.events), (&whole, &told.events));
            let at = whole.at + HOUR;
            assert_eq!(again.reputation(&settings(), at), told.reputation(&settings(), at));
        });
    }
}

/// The same registry, by a control plane that begins again.
async fn restarted(registry: Registry, store: impl Fn() -> Store, seconds: u64) -> Registry {
    let mode = registry.mode;
    registry.store.close().await;
    let clock = Clock::default();
    clock.advance(seconds);
    Registry {
        store: store(),
        clock,
        mode,
    }
}

async fn book(registry: &Registry) -> Book {
    registry.reputation_book(&planner()).await.unwrap()
}

/// Many reporters that only praise take all places, and then somebody complains, and many more do.
#[test]
fn praise_does_not_crowd_out_complaints() {
    let friends = (0..MAX_REPORTERS + 10).map(|n| {
        let what = observed(&format!("friend{n:03}"), counts(Factor::Quality, 1), BTreeMap::new());
        (NOW, what)
    });
    let honest = (0..10).map(|n| (NOW + (n + 1) * HOUR, all_bad(&format!("honest{n}"), 4)));
    let ledger = ledger(friends.chain(honest));
    assert!(ledger.reporters.len() <= MAX_REPORTERS + 1);
    for n in 0..10 {
        let held = &ledger.reporters[&format!("honest{n}")];
        assert!(held.tally.against() > 0, "{n} is told apart");
    }
    assert!(at(&ledger, ledger.at).factors[&Factor::Reliability] < Score::clamped(2.0));
}

#[test]
fn sidecars_are_told_when_a_factor_changes_its_level_though_the_score_does_not() {
    let told = Reputation::new(planner(), Score::clamped(5.0), NOW);
    let with = |value: f64| {
        let mut now = told.clone();
        now.factors.insert(Factor::Honesty, Score::clamped(value));
        worth_telling(&told, &now, &settings())
    };
    assert!(!with(4.0) && !with(6.05), "the same level, or just past a border");
    assert!(with(3.99) && with(6.1));
}

async fn with_slash() -> Registry {
    let registry = mesh(MeshMode::Dev).await.registry;
    let agent = Agent::new(planner());
    registry.create_agent(&Actor::admin("a"), agent).await.unwrap();
    record(&registry, report("v", 1, Finding::Hallucination, Severity::Critical)).await;
    record(&registry, all_bad("peer", 4)).await;
    registry
}

async fn record(registry: &Registry, what: What) -> Event {
    let settings = registry.reputation_settings().await.unwrap();
    let mut book = registry.reputation_book(&planner()).await.unwrap();
    let draft = registry.change(&Actor::control_plane(), "test", "planner");
    let (draft, _) = registry
        .reputation_ops(draft, &mut book, what, &settings)
        .await
        .unwrap();
    draft.commit().await.unwrap();
    book.events.last().unwrap().clone()
}

async fn now(registry: &Registry) -> Reputation {
    let settings = registry.reputation_settings().await.unwrap();
    let book = registry.reputation_book(&planner()).await.unwrap();
    book.reputation(&settings, registry.clock.steady())
}

/// A clock that runs ahead by years for a while: nothing fades by it, and nothing stays behind when it is right again.
#[tokio::test]
async fn a_clock_that_steps_ahead_forgives_nothing_and_does_not_stick() {
    let registry = with_slash().await;
    let before = now(&registry).await;
    registry.clock.step(1_000 * 86_400);
    assert_eq!(now(&registry).await.score, before.score, "no time has passed");
    record(&registry, all_bad("another", 1)).await;
    let ahead = now(&registry).await;
    assert!(ahead.score <= before.score && ahead.slashes.len() == 1);
    registry.clock.step(0);
    let after = now(&registry).await;
    assert_eq!((after.score, &after.factors), (ahead.score, &ahead.factors));
    // It goes on as if nothing had been: half is left after a half-life.
    registry.clock.advance(30 * 86_400);
    let later = now(&registry).await;
    assert!(later.score > after.score && later.slashes.len() == 1);
}

/// A control plane that began with a clock a day ahead, which is then put right: what came in meanwhile is of now.
#[test]
fn what_came_in_under_a_clock_that_was_ahead_fades_from_when_it_was_put_right() {
    let day = 24 * HOUR;
    let slash = || report("v", 1, Finding::Hallucination, Severity::Critical);
    let bad = || observed("p", BTreeMap::new(), counts(Factor::Quality, 1));
    let wrong = ledger([(NOW + day, slash()), (NOW, bad())]);
    let right = ledger([(NOW, slash()), (NOW, bad())]);
    assert_eq!(wrong.at, NOW);
    for later in [0, HOUR, 7 * day, 30 * day] {
        assert_eq!(at(&wrong, NOW + later).score, at(&right, NOW + later).score, "{later}");
    }
    // And the hours after it count again, each for itself.
    let hours = |mut events: Vec<(u64, What)>| {
        events.extend((1..=8).map(|n| (NOW + n * HOUR, all_bad(&format!("p{n}"), 4))));
        at(&ledger(events), NOW + 9 * HOUR).score
    };
    assert_eq!(
        hours(vec![(NOW + day, bad()), (NOW, bad())]),
        hours(vec![(NOW, bad()), (NOW, bad())])
    );
}

/// Rows that can't be read are one agent's: all others are looked at, many in a transaction.
#[tokio::test]
async fn an_unreadable_row_does_not_end_the_review() {
    let registry = mesh(MeshMode::Dev).await.registry;
    for n in 0..120 {
        let agent = Agent::new(format!("agent{n:03}").parse().unwrap());
        registry.create_agent(&Actor::admin("a"), agent).await.unwrap();
    }
    let key = crate::registry::keys::reputation_base(&"agent000".parse().unwrap());
    let draft = registry.change(&Actor::control_plane(), "test", "agent000");
    let broken = draft.put(key, &"no ledger", crate::store::Expect::Absent);
    broken.commit().await.unwrap();
    let held = registry.mesh_config().await.unwrap();
    let mut config = held.value;
    config.reputation.prior = Score::clamped(6.5);
    registry
        .put_mesh_config("a", config, Some(held.revision))
        .await
        .unwrap();
    let before = registry.store.revision();
    assert_eq!(registry.review_reputations().await.unwrap(), 119);
    assert!(registry.store.revision() - before <= 3, "in few transactions");
    assert_eq!(registry.review_reputations().await.unwrap(), 0);
}
