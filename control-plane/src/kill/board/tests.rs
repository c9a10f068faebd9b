//! Who stands on the board, and for whom nobody waits.

use std::sync::Arc;

use aip_api::resource::MeshMode;

use super::places::{MAX_ORDERS_STREAMS, MAX_ORDERS_STREAMS_LINE, MAX_STREAMS_EACH};
use super::*;
use crate::kill::Publisher;
use crate::testing::{TestMesh, mesh, peer};

fn comes(line: &str, orders_only: bool) -> Comes {
    let spoken = Spoken {
        line: line.into(),
        nth: 0,
        succeeds: true,
        known: true,
    };
    Comes { spoken, orders_only }
}

/// As one that stands in nobody's place.
fn beside(mut comes: Comes) -> Comes {
    comes.spoken.succeeds = false;
    comes
}

/// With an SVID before which so many of its line were issued.
fn nth(nth: u64, mut comes: Comes) -> Comes {
    comes.spoken.nth = nth;
    comes
}

async fn board() -> (TestMesh, Arc<Board>) {
    let mesh = mesh(MeshMode::Dev).await;
    let board = Board::restore(&mesh.registry).await.unwrap();
    (mesh, board)
}

fn instances(board: &Board) -> Vec<String> {
    board.lock().keys().map(|(_, instance)| instance.clone()).collect()
}

#[tokio::test]
async fn streams_for_orders_alone_take_no_places_from_the_others() {
    let (_mesh, board) = board().await;
    let open = |agent: &str, n: usize, orders_only: bool| {
        let (peer, line) = (peer(agent, &n.to_string()), n.to_string());
        board.open(&peer, &format!("{agent}-{n}-{orders_only}"), comes(&line, orders_only))
    };
    let mut held: Vec<_> = (0..MAX_STREAMS_EACH).map(|n| open("gone", n, true).unwrap()).collect();
    assert_eq!(open("gone", 1_000, true).unwrap_err().reason(), "session_limit");
    held.push(open("gone", 1_001, false).unwrap());
    let agents = (0..).map(|n| open(&format!("a{n}"), n, true));
    held.extend(agents.map_while(Result::ok));
    assert_eq!(held.len(), MAX_ORDERS_STREAMS + 1);
    assert!(open("good", 1, false).is_ok());
}

/// Processes without end of a few agents that were revoked leave the others' streams to them.
#[tokio::test]
async fn few_agents_do_not_take_the_streams_for_orders_of_all() {
    let (_mesh, board) = board().await;
    let open = |agent: &str, n: usize| {
        let (peer, line) = (peer(agent, &n.to_string()), n.to_string());
        board.open(&peer, &format!("{agent}-{n}"), comes(&line, true))
    };
    let mut held = Vec::new();
    let names: Vec<_> = (0..20).map(|n| format!("hostile-{n}")).collect();
    for n in 0..MAX_STREAMS_EACH {
        held.extend(names.iter().filter_map(|name| open(name, n).ok()));
    }
    let left = MAX_ORDERS_STREAMS - held.len();
    assert!(left >= MAX_ORDERS_STREAMS / 21, "{left}");
    for n in 0..left / 2 {
        held.push(open("honest", n).unwrap());
    }
    assert_eq!(
        open("hostile-0", MAX_STREAMS_EACH).unwrap_err().reason(),
        "session_limit"
    );
    // One that comes back takes the place that it had.
    assert!(open("honest", 0).is_ok());
}

#[tokio::test]
async fn a_process_has_one_row_whatever_it_shows_and_another_keeps_its_own() {
    let (_mesh, board) = board().await;
    let first = board.open(&peer("planner", "1"), "first", comes("1", false)).unwrap();
    let other = board.open(&peer("planner", "2"), "other", comes("2", false)).unwrap();
    // It renewed, and was revoked.
    let same = board.open(&peer("planner", "11"), "first", comes("1", true)).unwrap();
    assert!(first.cancel.is_cancelled() && !other.cancel.is_cancelled());
    drop((first, other));
    assert_eq!(instances(&board), ["first", "other"]);
    let thief = board.open(&peer("planner", "11"), "other", comes("1", true)).unwrap();
    assert_eq!(instances(&board), ["first", "other", "other/1"]);
    drop((same, thief));
    // Started anew with what it kept.
    let _again = board.open(&peer("planner", "12"), "again", comes("1", true)).unwrap();
    assert_eq!(instances(&board), ["again", "other"]);
}

#[tokio::test]
async fn who_drifted_is_waited_for_while_it_hears_and_named_apart_when_it_does_not() {
    let (mesh, board) = board().await;
    mesh.registry.first_kill_set(mesh.ca.trust_domain()).await.unwrap();
    let publisher = Publisher::new(mesh.registry.clone(), mesh.ca.clone()).await.unwrap();
    let (published, now) = (publisher.current(), mesh.registry.clock.now());
    let drifted: Drifted = [("planner".parse().unwrap(), BTreeSet::from(["1".to_owned()]))].into();
    let standing = |instance: &str, now: u64| {
        let key = ("planner".parse().unwrap(), instance.to_owned());
        board.lock()[&key].standing(&drifted, now)
    };
    let one = board.open(&peer("planner", "1"), "one", comes("1", true)).unwrap();
    let two = board.open(&peer("planner", "2"), "two", comes("2", false)).unwrap();
    assert_eq!((standing("one", now), standing("two", now)), (Reach::Soon, Reach::Soon));
    let version = published.set.version();
    one.holds(version);
    let progress = board.progress(&mesh.registry, version, &published).await.unwrap();
    assert_eq!((progress.enforced.len(), progress.missing.len()), (1, 1));
    drop((one, two));
    let at = |after: u64| (standing("one", now + after), standing("two", now + after));
    assert_eq!(at(0), (Reach::Soon, Reach::Soon), "it may be back as soon as the other");
    assert_eq!(at(BACK_SECONDS + 1), (Reach::Drifted, Reach::Vanished));
}

#[tokio::test]
async fn nobody_takes_the_row_of_another_process_whatever_it_shows() {
    let (_mesh, board) = board().await;
    let real = nth(1, comes("1", false));
    drop(board.open(&peer("planner", "2"), "real", real).unwrap());
    for (what, serial, comes, row) in [
        ("a sibling", "9", comes("9", false), "real/9"),
        ("an earlier SVID of its line", "1", comes("1", false), "real/1"),
        (
            "one that was revoked after it was renewed",
            "1",
            comes("revoked:1", true),
            "real/revoked:1",
        ),
    ] {
        let other = board.open(&peer("planner", serial), "real", beside(comes)).unwrap();
        assert_eq!(
            (other.name(), instances(&board).contains(&"real".into())),
            (row, true),
            "{what}"
        );
        let lease = Lease {
            seconds: 5,
            on_lost: aip_api::kill::OnLost::Deny,
        };
        other.beats(1, lease);
        other.holds((1, 9));
        let held = board.lock()[&("planner".parse().unwrap(), "real".to_owned())].held;
        assert_eq!(held, None, "{what}");
    }
    // The process itself, after it renewed, and as what it is when it is revoked.
    for comes in [nth(2, comes("1", false)), beside(nth(2, comes("1", true)))] {
        let back = board.open(&peer("planner", "3"), "real", comes).unwrap();
        assert_eq!(back.name(), "real");
    }
    // It says that it ends: then its name is free.
    let last = board
        .open(&peer("planner", "3"), "real", nth(2, comes("1", true)))
        .unwrap();
    last.drained();
    drop(last);
    let next = board.open(&peer("planner", "20"), "real", comes("20", false)).unwrap();
    assert_eq!(next.name(), "real");
}

#[tokio::test]
async fn only_a_process_that_was_started_again_takes_the_place_of_the_one_before() {
    let (_mesh, board) = board().await;
    let open = |instance: &str, comes: Comes| board.open(&peer("planner", "1"), instance, comes).unwrap();
    drop(open("real", comes("1", false)));
    // Whoever has a copy of what was revoked, under as many names as it likes.
    for n in 0..20 {
        drop(open(&format!("copy-{n}"), beside(comes("1", true))));
    }
    assert_eq!(instances(&board), ["copy-19", "real"], "and they do not pile up");
    drop(open("again", comes("1", false)));
    assert_eq!(instances(&board), ["again"]);
}

#[tokio::test]
async fn one_revoked_svid_takes_few_streams_for_orders_and_none_from_other_processes() {
    let (_mesh, board) = board().await;
    let open = |instance: &str, line: &str| {
        let peer = peer("planner", line);
        board.open(&peer, instance, beside(comes(line, true))).unwrap()
    };
    let real = open("real", "2");
    let copies: Vec<_> = (0..2 * MAX_STREAMS_EACH)
        .map(|n| open(&format!("copy-{n}"), "1"))
        .collect();
    let ended = copies.iter().filter(|copy| copy.cancel.is_cancelled()).count();
    assert_eq!(ended, copies.len() - MAX_ORDERS_STREAMS_LINE, "the oldest ended");
    assert!(!real.cancel.is_cancelled());
    let again = open("real", "2");
    assert_eq!(again.name(), "real");
    // Whoever shares the line with the copies is heard, too.
    let own = open("own", "1");
    assert!(!own.cancel.is_cancelled() && copies.last().is_some_and(|copy| !copy.cancel.is_cancelled()));
}
