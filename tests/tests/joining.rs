//! Who a sidecar, and `aip`, take for their control plane: the one that the root they know of certified for that, and
//! nobody else; and what they say where that is not who answers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use aip_api::token::JoinToken;
use aip_runtime::tls;
use aip_tests::agent::Agent;
use aip_tests::pki::{LeafSpec, Pki};
use aip_tests::process::{FREE, Sidecar, SidecarSpec, binary, fails};
use aip_tests::scripted::Scripted;
use aip_tests::wait;
use aip_tests::wire::Listener;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

/// A sidecar whose control plane is at `control_plane`, with a token of this mesh.
fn spec(pki: &Pki, control_plane: SocketAddr) -> SidecarSpec {
    let token = JoinToken {
        id: [7; 12],
        secret: [7; 32],
        root: pki.root_digest(),
    };
    SidecarSpec {
        name: "one".into(),
        control_plane,
        token: token.reveal(),
        agent: Agent::start().address,
        ports: FREE,
        flags: Vec::new(),
    }
}

/// The sidecar goes on trying, and says why in vain.
async fn says_why(spec: SidecarSpec, dir: &Path, reason: &str) {
    let mut sidecar = Sidecar::start_unready(spec, dir).await;
    let expected = format!("\"reason\":\"{reason}\"");
    wait::until_ok(&format!("its log says {reason}"), async || {
        sidecar.process.assert_alive();
        let log = sidecar.process.stderr();
        if log.contains(&expected) { Ok(()) } else { Err(log) }
    })
    .await;
}

/// Every agent's certificate chains to the mesh's root. Who knows the root alone must look at the name, too, or every
/// agent could hand out identities, or take an operator's token.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_s_certificate_makes_no_control_plane() {
    let pki = Pki::new("aip.internal");
    let mut thief = pki.leaf(&LeafSpec::good("thief"));
    // As the control plane sends it: whose digest is pinned must be in the chain.
    thief.chain.push(pki.root.clone());
    for (leaf, taken) in [(pki.control_plane(), true), (thief, false)] {
        let listener = Listener::start(&leaf, &[b"h2", b"http/1.1"]).await;
        for alpn in [b"h2".as_slice(), b"http/1.1"] {
            let tcp = TcpStream::connect(listener.address).await.unwrap();
            let connected = tls::connect_pinned(pki.root_digest(), &[alpn], tcp).await;
            match connected {
                Ok(_) => assert!(taken, "an agent was taken for the control plane"),
                Err(error) => {
                    assert!(!taken, "{error}");
                    assert_eq!(error.reason(), "wrong_agent", "{error}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joining_sidecar_tells_an_agent_in_between_nothing() {
    let (pki, dir) = (Pki::new("aip.internal"), TempDir::new().unwrap());
    let mut thief = pki.leaf(&LeafSpec::good("thief"));
    thief.chain.push(pki.root.clone());
    let listener = Listener::start(&thief, &[b"h2"]).await;
    says_why(spec(&pki, listener.address), dir.path(), "wrong_agent").await;
    assert_nothing_said(&listener).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_s_token_is_not_told_to_an_agent_in_between() {
    let (pki, dir) = (Pki::new("aip.internal"), TempDir::new().unwrap());
    let mut thief = pki.leaf(&LeafSpec::good("thief"));
    thief.chain.push(pki.root.clone());
    let listener = Listener::start(&thief, &[b"http/1.1"]).await;
    let token = dir.path().join("token");
    std::fs::write(&token, "an.admin.token").unwrap();
    let mut command = Command::new(binary("aip"));
    command.arg("--home").arg(dir.path().join("home"));
    command.args(["--admin", &format!("https://{}", listener.address)]);
    command.args(["--mesh-root", &pki.root_digest().to_string()]);
    command.arg("--token-file").arg(&token).arg("status");
    let error = fails(command).await;
    assert!(error.contains("wrong_agent"), "{error}");
    assert_nothing_said(&listener).await;
}

async fn assert_nothing_said(listener: &Listener) {
    let heard = wait::until("a handshake is over", async || {
        let heard = listener.heard();
        (!heard.is_empty()).then_some(heard)
    })
    .await;
    for outcome in heard {
        let said = outcome.unwrap_or_default();
        assert!(said.is_empty(), "{:?}", String::from_utf8_lossy(&said));
    }
}

/// One root more would vouch for whatever it signs.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_the_token_does_not_name_is_not_taken() {
    let (scripted, dir) = (Scripted::start(), TempDir::new().unwrap());
    scripted.vouch_for(Pki::new("aip.internal").root);
    let (spec, dir) = scripted.spec("one", Agent::start().address, dir.path(), &[]);
    let error = fails(Sidecar::command(&spec, &dir)).await;
    assert!(error.contains("wrong_root"), "{error}");
}

/// A token of another mesh is not mended by waiting: the end, with a word for it. The control plane hears nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_mesh_ends_the_sidecar() {
    let (mesh, other) = (Pki::new("aip.internal"), Pki::new("aip.internal"));
    let dir = TempDir::new().unwrap();
    let listener = Listener::start(&mesh.control_plane(), &[b"h2"]).await;
    let error = fails(Sidecar::command(&spec(&other, listener.address), dir.path())).await;
    assert!(
        error.contains("(wrong_root)") && error.contains("another mesh"),
        "{error}"
    );
    assert_nothing_said(&listener).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_control_plane_is_called_by_what_is_wrong_with_it() {
    let (pki, dir) = (Pki::new("aip.internal"), TempDir::new().unwrap());
    let plain = Agent::start().address;
    says_why(spec(&pki, plain), &dir.path().join("plain"), "not_tls").await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = silent.local_addr().unwrap();
    drop(silent);
    says_why(
        spec(&pki, nobody),
        &dir.path().join("nobody"),
        "control_plane_unreachable",
    )
    .await;
}
