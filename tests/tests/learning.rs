//! How a sidecar asks for peers that it does not hold: many names in one message, messages with a pause between them,
//! and none twice; so that an agent that calls whatever names does not wear out its sidecar's stream.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::time::Instant;

use aip_api::resource::Kind;
use aip_api::wire::config_request::Message;
use aip_tests::agent::Agent;
use aip_tests::scripted::Scripted;
use aip_tests::wait;
use futures_util::future::join_all;
use tempfile::TempDir;

/// Names that nobody has; twice as many fit among those that may wait to be asked for (256).
const NAMES: usize = 100;
/// The pause (`PACE` in `sidecar/src/mesh/client.rs`), milliseconds.
const PACE: u128 = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_asked_for_together_with_pauses_and_once() {
    let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
    let caller = scripted.sidecar("caller", Agent::start().address, dir.path()).await;
    let before = scripted.subscribed("caller").len();
    let began = Instant::now();
    let call = async |i: usize| caller.get(&format!("http://nobody-{}.aip.internal/", i % NAMES)).await;
    // Each name twice: who comes second waits for the same answer.
    let answers = join_all((0..2 * NAMES).map(call)).await;
    let took = began.elapsed();
    for answer in &answers {
        assert_eq!(answer.reason(), "unknown_agent", "{answer:?}");
    }
    let messages = scripted.subscribed("caller").split_off(before);
    let mut asked: BTreeMap<String, usize> = BTreeMap::new();
    for name in messages.iter().flatten() {
        *asked.entry(name.clone()).or_default() += 1;
    }
    assert_eq!(asked.len(), NAMES);
    let most = 1 + took.as_millis() / PACE;
    assert!(
        messages.len() as u128 <= most,
        "{} messages in {took:?}, of {:?} names",
        messages.len(),
        messages.iter().map(Vec::len).collect::<Vec<_>>()
    );
    // "No such agent" is believed for a while: the second call of a name asks nobody.
    let again = caller.get("http://nobody-1.aip.internal/").await;
    assert_eq!(again.reason(), "unknown_agent");
    assert_eq!(scripted.subscribed("caller").len(), before + messages.len());
    assert!(asked.values().all(|times| *times == 1), "asked for twice: {asked:?}");
}

/// In a mesh where agents come and go, the subscriptions of a sidecar do not grow for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_gone_is_let_go_and_found_again_when_it_comes_back() {
    let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
    let caller = scripted.sidecar("caller", Agent::start().address, dir.path()).await;
    scripted.agent("guest");
    let call = async || caller.get("http://guest.aip.internal/").await.reason();
    assert_eq!(call().await, "no_endpoint", "known, and nowhere");
    scripted.delete(Kind::Agent, "guest");
    let kinds = async |kind: Kind| {
        let what = format!("the subscription of {kind:?} ends");
        let ended = |message: &Message| match message {
            Message::Unsubscribe(of) if of.kind == kind.to_wire() as i32 => Some(of.names.clone()),
            _ => None,
        };
        scripted.heard(&what, "caller", ended).await
    };
    for kind in [Kind::Policy, Kind::Endpoint, Kind::Agent] {
        assert_eq!(kinds(kind).await, ["guest"]);
    }
    assert_eq!(call().await, "unknown_agent");
    scripted.agent("guest");
    wait::until_ok("it is found again", async || {
        let reason = call().await;
        if reason == "no_endpoint" { Ok(()) } else { Err(reason) }
    })
    .await;
}
