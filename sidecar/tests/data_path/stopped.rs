//! Everything that can be open when an order comes, at either end, for each level of orders: it is cut before the order is
//! acknowledged, and what the order does not mean goes on.

use std::net::SocketAddr;
use std::sync::Arc;

use aip_api::kill::{Mode, Order, Scope};
use aip_api::resource::EgressRule;
use http::StatusCode;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::client::{get, send};
use crate::kinds::{AT_THE_CALLEE, Open, echo, requests};
use crate::mesh::{Side, World, until};
use crate::orders::Plane;
use crate::pki::Pki;

/// A caller and a callee that obey a control plane.
struct Obeying {
    plane: Plane,
    caller: Side,
    callee: Side,
    agent: Agent,
    outside: SocketAddr,
    _data: [TempDir; 2],
}

impl Obeying {
    async fn open(&self) -> Open {
        Open::all(&self.caller, &self.callee, &self.agent, self.outside).await
    }

    async fn start() -> Self {
        let (pki, agent, outside) = (Arc::new(Pki::new()), Agent::start().await, echo().await);
        let plane = Plane::start(&pki).await;
        let data = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let mut world = World::of(&["planner", "ledger"]);
        world.mesh.egress.push(EgressRule {
            host: "localhost".into(),
            port: outside.port(),
            allow_private: true,
        });
        let callee = plane.side("ledger", agent.address, world.clone(), data[0].path()).await;
        world.endpoints.push(("ledger".into(), callee.inbound));
        let nobody = "127.0.0.1:9".parse().unwrap();
        let caller = plane.side("planner", nobody, world, data[1].path()).await;
        Self {
            plane,
            caller,
            callee,
            agent,
            outside,
            _data: data,
        }
    }
}

fn kill(scope: Scope) -> Order {
    Order {
        id: uuid::Uuid::now_v7().to_string(),
        scope,
        mode: Mode::Kill,
        reason: "a test".into(),
        issued_by: vec!["ann".into()],
        issued_at: 1,
        expires: None,
    }
}

/// Each level, and whether it means the caller's calls to outside hosts, too.
fn levels() -> [(Scope, bool); 5] {
    let named = |name: &str| name.parse().unwrap();
    let labels = [("team".to_owned(), "blue".to_owned())].into();
    [
        (Scope::Mesh {}, true),
        (Scope::Selector { labels }, true),
        (
            Scope::Agent {
                agent: named("planner"),
            },
            true,
        ),
        (Scope::Agent { agent: named("ledger") }, false),
        (
            Scope::Pair {
                source: named("planner"),
                destination: named("ledger"),
            },
            false,
        ),
    ]
}

async fn is_cut_at(name: &'static str) {
    let mesh = Obeying::start().await;
    for (scope, means_the_outside) in levels() {
        let open = mesh.open().await;
        let (at_the_caller, said) = (name == "planner", scope.to_string());
        let tunnel_too = at_the_caller && means_the_outside;
        let ack = mesh.plane.order(name, &[kill(scope)]).await;
        assert_eq!(ack.rejected, "", "{said} at {name}");
        let expected = AT_THE_CALLEE + u64::from(tunnel_too);
        assert_eq!(ack.streams_cut, expected, "{said} at {name}");
        open.end_cut(&mesh.agent, tunnel_too).await;
        until("calls are refused by the order", async || {
            let refused = send(mesh.caller.outbound, get("/x")).await;
            assert_ne!(refused.status, StatusCode::OK, "{said} at {name}");
            // The caller's side may still be on the connection that was cut.
            (refused.reason() == "killed").then_some(())
        })
        .await;

        let lifted = mesh.plane.order(name, &[]).await;
        assert_eq!((lifted.rejected.as_str(), lifted.streams_cut), ("", 0));
        until(
            "calls go through again, and nothing is left of the others",
            async || {
                let again = send(mesh.caller.outbound, get("/x")).await.status;
                let open = requests(&mesh.caller) + requests(&mesh.callee);
                (again == StatusCode::OK && open == 0).then_some(())
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_stream_is_cut_at_the_caller_by_every_level() {
    is_cut_at("planner").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_stream_is_cut_at_the_callee_by_every_level() {
    is_cut_at("ledger").await;
}

/// An order on others leaves all of it open, and a pause what is open already.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_order_does_not_mean_goes_on() {
    let mesh = Obeying::start().await;
    let mut open = mesh.open().await;
    let named = |name: &str| name.parse().unwrap();
    let labels = [("team".to_owned(), "red".to_owned())].into();
    let pause = Order {
        mode: Mode::Pause,
        ..kill(Scope::Mesh {})
    };
    let backwards = Scope::Pair {
        source: named("ledger"),
        destination: named("planner"),
    };
    for order in [
        kill(Scope::Agent {
            agent: named("stranger"),
        }),
        kill(Scope::Selector { labels }),
        kill(backwards),
        pause,
    ] {
        for name in ["planner", "ledger"] {
            let ack = mesh.plane.order(name, std::slice::from_ref(&order)).await;
            let cut = (ack.rejected.as_str(), ack.streams_cut, ack.connections_cut);
            assert_eq!(cut, ("", 0, 0), "{} at {name}", order.scope);
        }
    }
    open.goes_on(&mesh.agent).await;
    let refused = send(mesh.caller.outbound, get("/x")).await;
    assert_eq!(refused.reason(), "paused");
}
