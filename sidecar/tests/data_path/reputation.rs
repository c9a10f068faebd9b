//! The mesh's floor: an agent below it is refused at both ends, whichever end it is at; what is not known is not enough.

use http::StatusCode;
use http_body_util::BodyExt as _;

use crate::agent::Agent;
use crate::client::{begin, get, send};
use crate::mesh::{DEADLINE, Pair};
use crate::refuse::is_refused;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_below_the_floor_is_refused_at_either_end() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    assert_eq!(send(pair.caller.outbound, get("/")).await.status, StatusCode::OK);
    let before = agent.seen().len();
    for slashed in ["planner", "ledger"] {
        for at_the_callee in [true, false] {
            let side = if at_the_callee { &pair.callee } else { &pair.caller };
            side.push(|world| {
                world.scores.insert(slashed.into(), Some(3.99));
            });
            let answer = send(pair.caller.outbound, get("/")).await;
            is_refused(&answer, 403, "reputation_too_low");
            let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
            assert!(
                detail.contains(slashed) && detail.contains("3.99 (doubtful)"),
                "{detail}"
            );
            side.push(|world| {
                world.scores.insert(slashed.into(), Some(4.0));
            });
            assert_eq!(
                send(pair.caller.outbound, get("/")).await.status,
                StatusCode::OK,
                "at the floor it is enough"
            );
        }
    }
    assert_eq!(agent.seen().len(), before + 4, "no refused request reached the agent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reputation_that_is_not_held_is_refused_unless_there_is_no_floor() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    for at_the_callee in [true, false] {
        let side = if at_the_callee { &pair.callee } else { &pair.caller };
        side.push(|world| {
            world.scores.insert("planner".into(), None);
        });
        let answer = send(pair.caller.outbound, get("/")).await;
        is_refused(&answer, 503, "reputation_unknown");
        side.push(|world| world.mesh.reputation.floor = Default::default());
        assert_eq!(send(pair.caller.outbound, get("/")).await.status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observed_agent_is_held_to_the_floor_too() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    pair.callee.push(|world| {
        world.agent("ledger").mode = aip_api::resource::Mode::Observe { until: u64::MAX };
        world.scores.insert("planner".into(), Some(1.0));
    });
    let answer = send(pair.caller.outbound, get("/")).await;
    is_refused(&answer, 403, "reputation_too_low");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_is_cut_when_an_end_falls_below_the_floor() {
    for slashed in ["planner", "ledger"] {
        for at_the_callee in [true, false] {
            let agent = Agent::start().await;
            let pair = Pair::start(agent.address).await;
            agent.go();
            let mut response = begin(pair.caller.outbound, get("/events")).await;
            assert!(response.body_mut().frame().await.unwrap().is_ok());
            let side = if at_the_callee { &pair.callee } else { &pair.caller };
            side.push(|world| {
                world.scores.insert(slashed.into(), Some(3.0));
            });
            let cut = async {
                while let Some(frame) = response.body_mut().frame().await {
                    if frame.is_err() {
                        return;
                    }
                }
                panic!("the stream ended as if it were whole");
            };
            tokio::time::timeout(DEADLINE, cut).await.expect("cut in time");
            assert_eq!(side.line().await["end"], "reputation_too_low");
        }
    }
}

/// A policy may ask for more than the floor, of one end, in one factor.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_reads_score_level_and_factors_of_both_ends() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    pair.callee.push(|world| {
        world.scores.insert("planner".into(), Some(6.5));
    });
    let rule = |condition: &str| {
        format!(
            "package aip.policy.strict\nrules contains {{\"rule\": \"strict\", \"verdict\": \"deny\", \"reason\": \"a test\"}} \
             if {{ {condition} }}\n"
        )
    };
    for (condition, denied) in [
        (r#"input.source.reputation.status != "known""#, false),
        (r#"input.source.reputation.level != "trusted""#, false),
        ("input.source.reputation.score < 6.5", false),
        ("input.source.reputation.score < 6.51", true),
        (r#"input.destination.reputation.level == "standard""#, true),
        ("input.destination.reputation.factors.honesty < 5", false),
        ("input.destination.reputation.factors.honesty == 5", true),
    ] {
        pair.callee
            .push(|world| world.policies.push(("strict".into(), rule(condition))));
        let answer = send(pair.caller.outbound, get("/")).await;
        match denied {
            true => is_refused(&answer, 403, "policy_denied"),
            false => assert_eq!(answer.status, StatusCode::OK, "{condition}: {answer:?}"),
        }
        pair.callee.push(|world| {
            world.policies.pop();
        });
    }
}
