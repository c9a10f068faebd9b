//! Who stands on the board, and for whom nobody waits.

use std::sync::Arc;

use aip_api::resource::MeshMode;

use super::*;
use crate::kill::Publisher;
use crate::testing::{TestMesh, mesh, peer};

fn comes(line: &str, orders_only: bool) -> Comes {
    Comes {
        line: line.into(),
        orders_only,
    }
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
