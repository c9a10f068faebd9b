//! What ends at a hop ends there, and what is the mesh's nobody forges.

use bytes::Bytes;
use http_body_util::Full;

use crate::agent::Agent;
use crate::client::{get, raw, send, to_ledger};
use crate::mesh::Pair;

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_can_t_forge_the_mesh_s_headers() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let request = to_ledger("GET", "/x")
        .header("x-aip-source", "spiffe://aip.internal/agent/admin")
        .header("x_aip_source", "spiffe://aip.internal/agent/admin")
        .header("X-Aip_Hop", "forged")
        .header("x-aip-verified", "1")
        .header("connection", "close, x-mine")
        .header("x-mine", "dropped")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("x-kept", "kept")
        .body(Full::<Bytes>::default())
        .unwrap();
    send(pair.caller.outbound, request).await;
    let seen = agent.only();
    let ours: Vec<_> = seen
        .headers
        .keys()
        .filter(|name| name.as_str().replace('_', "-").starts_with("x-aip-"))
        .collect();
    assert_eq!(ours.len(), 2, "{ours:?}");
    assert_eq!(seen.header("x-aip-source"), "spiffe://aip.internal/agent/planner");
    assert_eq!(seen.header("x-aip-hop").len(), 36);
    for gone in ["x-mine", "keep-alive", "proxy-connection", "connection"] {
        assert_eq!(seen.header(gone), "", "{gone}");
    }
    assert_eq!(seen.header("x-kept"), "kept");
}

/// Servers believe their own machine in this, and every call comes from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_can_t_say_where_it_comes_from() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let request = || {
        to_ledger("GET", "/x")
            .header("forwarded", "for=10.0.0.1;host=admin.corp;proto=https")
            .header("forwarded", "for=10.0.0.2")
            .header("x-forwarded-for", "127.0.0.1")
            .header("x_forwarded_for", "127.0.0.1")
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", "admin.corp")
            .header("x-forwarded-prefix", "/admin")
            .header("X-Real-IP", "127.0.0.1")
            .header("true-client-ip", "127.0.0.1")
            .header("via", "1.1 somebody")
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    send(pair.caller.outbound, request()).await;
    let says = |seen: &crate::agent::Seen| {
        let about = |name: &str| name.contains("forwarded") || name.contains("real-ip") || name.contains("client-ip");
        let mut said: Vec<_> = seen.headers.iter().filter(|(name, _)| about(name.as_str())).collect();
        said.sort_by_key(|(name, _)| name.as_str());
        said.iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect::<Vec<_>>()
    };
    let seen = agent.only();
    assert_eq!(says(&seen), ["forwarded: host=\"ledger.aip.internal\";proto=http"]);
    assert_eq!(seen.header("via"), "1.1 somebody", "which says nothing of who");
    pair.callee
        .push(|world| world.agent("ledger").host = aip_api::resource::HostHeader::Original);
    send(pair.caller.outbound, request()).await;
    assert_eq!(says(&agent.seen()[1]), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_can_t_forge_them_in_its_answer() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let answer = send(pair.caller.outbound, get("/forged")).await;
    assert!(
        !answer
            .headers
            .iter()
            .any(|(_, value)| value.to_str().unwrap().contains("forged")),
        "{answer:?}"
    );
    let decisions = answer.decisions();
    assert_eq!(decisions.len(), 2);
    assert!(decisions[0].ends_with(";allow;callee") && decisions[1].ends_with(";allow;caller"));
    assert_eq!((answer.header("x-hop-only"), answer.header("x-kept")), ("", "kept"));
}

/// The name and password of a user, in a URL or a `Host`, are nobody's to read: not in an answer, the access log or the
/// audit.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_a_url_is_written_nowhere() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let own = "ledger.aip.internal";
    let heads = [
        format!("GET http://user:sesame@{own}/x HTTP/1.1\r\nhost: {own}"),
        format!("GET http://user:sesame@other/x HTTP/1.1\r\nhost: {own}"),
        format!("GET http://{own}/x HTTP/1.1\r\nhost: user:sesame@other"),
        format!("GET http://user:sesame@{own}/x HTTP/1.1\r\nhost: user:sesame@other"),
        "GET /x HTTP/1.1\r\nhost: user:sesame@other".to_owned(),
        format!("CONNECT user:sesame@{own}:80 HTTP/1.1\r\nhost: {own}"),
    ];
    for head in &heads {
        let text = format!("{head}\r\nconnection: close\r\n\r\n");
        let answer = raw(pair.caller.outbound, text.as_bytes(), "").await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
        assert!(!answer.contains("sesame"), "{head}: {answer}");
    }
    let lines = pair.caller.lines(heads.len() - 1).await;
    let recorded = pair.caller.audited(heads.len() - 1).await;
    let written = format!("{lines:?} {recorded:?}");
    assert!(!written.contains("sesame"), "{written}");
    assert!(agent.seen().is_empty());
}
