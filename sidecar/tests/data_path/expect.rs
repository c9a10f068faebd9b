//! `Expect: 100-continue`: a client that asks first is told to continue only when somebody wants its body.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::Agent;
use crate::client::{raw, raw_on};
use crate::mesh::{Pair, World};
use crate::refuse::{POLICY, pair_with};

/// Of a call: `tool` is `harm` where policy is to refuse it by its body.
fn head(path: &str, length: usize) -> String {
    format!(
        "POST http://ledger.aip.internal{path} HTTP/1.1\r\nhost: ledger.aip.internal\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\
         connection: close\r\n\r\n"
    )
}

fn call(tool: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}"}}}}"#)
}

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn where_no_policy_reads_the_body_only_an_allowed_one_is_asked_for() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let body = call("good");
    let first = raw_on(&mut tcp, head("/x", body.len()).as_bytes(), "\r\n\r\n").await;
    assert_eq!(first, CONTINUE);
    let answer = raw_on(&mut tcp, body.as_bytes(), "").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with(&body),
        "{answer}"
    );

    pair.caller.push(|world| world.policies.clear());
    let refused = raw(pair.caller.outbound, head("/x", body.len()).as_bytes(), "").await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    assert_eq!(agent.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_policy_reads_the_body_it_is_asked_for_and_then_decided_on() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    for (tool, status) in [("good", "HTTP/1.1 200 OK"), ("harm", "HTTP/1.1 403")] {
        let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
        let body = call(tool);
        let first = raw_on(&mut tcp, head("/x", body.len()).as_bytes(), "\r\n\r\n").await;
        assert_eq!(first, CONTINUE, "{tool}");
        let answer = raw_on(&mut tcp, body.as_bytes(), "").await;
        assert!(answer.starts_with(status), "{tool}: {answer}");
    }
    assert_eq!(agent.seen().len(), 1, "the refused one never came");
}

/// What no body can change is refused before one is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_whatever_the_body_says_is_refused_at_once() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    pair.caller.absent("nobody");
    let is_refused = async |head: String, status: &str| {
        let refused = raw(pair.caller.outbound, head.as_bytes(), "").await;
        assert!(refused.starts_with(&format!("HTTP/1.1 {status}")), "{head}{refused}");
    };
    is_refused(head("/a/../x", 20), "400").await;
    is_refused(head("/x", 20).replace("ledger.aip", "nobody.aip"), "404").await;
    pair.caller.push(|world| world.endpoints.clear());
    is_refused(head("/x", 20), "503").await;
    pair.caller.push(|world| {
        world.mesh.require.assurance = aip_api::evidence::Assurance::Observed;
    });
    is_refused(head("/x", 20), "403").await;
    assert!(agent.seen().is_empty());
}

/// An agent that answers by hand: it says `100 Continue` and waits for the body.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_s_own_continue_is_not_taken_for_its_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        let mut told = false;
        loop {
            let mut part = [0; 4096];
            let n = tcp.read(&mut part).await.unwrap();
            assert_ne!(n, 0, "hung up early");
            got.extend_from_slice(&part[..n]);
            let text = String::from_utf8_lossy(&got).into_owned();
            if !told && text.contains("\r\n\r\n") {
                told = true;
                tcp.write_all(CONTINUE.as_bytes()).await.unwrap();
            }
            if text.ends_with("}}") {
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone";
                tcp.write_all(answer.as_bytes()).await.unwrap();
                return text;
            }
        }
    });
    let world = World::of(&["planner", "ledger"]).policy(POLICY);
    let pair = Pair::in_world(address, world).await;
    let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let body = call("good");
    assert_eq!(
        raw_on(&mut tcp, head("/x", body.len()).as_bytes(), "\r\n\r\n").await,
        CONTINUE
    );
    let answer = raw_on(&mut tcp, body.as_bytes(), "").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("done"),
        "{answer}"
    );
    let seen = serving.await.unwrap();
    assert!(
        seen.starts_with("POST /x HTTP/1.1\r\n") && seen.ends_with(&body),
        "{seen}"
    );
    assert!(seen.contains(&format!("content-length: {}\r\n", body.len())), "{seen}");
}
