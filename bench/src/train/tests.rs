use tokio::task::LocalSet;

use super::*;

fn target(addr: std::net::SocketAddr) -> Target {
    Target {
        addr,
        path: "/".to_owned(),
        host: "localhost".to_owned(),
        headers: Vec::new(),
    }
}

/// What the agent says itself; what the mesh refuses is not refused here.
#[tokio::test(flavor = "current_thread")]
async fn the_agent_answers_every_kind_as_the_mix_expects() {
    let all = async {
        let target = target(agent::start().await.unwrap());
        let mut wire = Wire::http1(target.addr).await.unwrap();
        for (number, errand) in Mix::new().all().iter().enumerate() {
            let status = wire.exchange(&target, errand, number).await.unwrap();
            let refused = errand.to.is_some() || errand.method == http::Method::DELETE;
            let expected = if refused {
                http::StatusCode::OK
            } else {
                errand.expected(false)
            };
            assert_eq!(status, expected, "{}", errand.name);
        }
        socket::exchange(&target).await.unwrap();
    };
    LocalSet::new().run_until(all).await;
}

#[test]
fn more_than_one_unexpected_answer_in_a_hundred_ends_the_training() {
    let shared = Shared {
        target: target(([127, 0, 0, 1], 80).into()),
        mix: Mix::new(),
        bodies: false,
        until: Instant::now(),
        sent: Cell::new(0),
        unexpected: Cell::new(0),
        first: RefCell::new(None),
    };
    for number in 0..100 {
        assert_eq!(shared.next(), number);
    }
    shared.note("a page: 503, not 200");
    assert_eq!(shared.verdict().unwrap(), 100);
    shared.note("a page: 404, not 200");
    let error = shared.verdict().unwrap_err().to_string();
    assert!(error.contains("2 of 100") && error.contains("503"), "{error}");
}

#[tokio::test]
async fn workers_share_a_pace() {
    let each = pace(Some(500), 32).unwrap();
    assert_eq!(each.period(), Duration::from_millis(64));
    assert!(pace(None, 32).is_none());
}

#[test]
fn every_durability_is_trained_and_bodies_stay_read_once_they_are() {
    for durability in ["buffered", "grouped", "required"] {
        assert!(STAGES.iter().any(|stage| stage.durability == durability));
    }
    assert!(STAGES.windows(2).all(|two| two[1].bodies >= two[0].bodies));
}
