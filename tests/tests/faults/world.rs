//! A control plane and two sidecars, each on a host of its own; an agent beside the callee.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aip_tests::agent::Agent;
use aip_tests::http::{Answer, send_within};
use aip_tests::network::{Host, Network};
use aip_tests::process::{FREE, Mesh, Sidecar};
use aip_tests::wait;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

/// By when whoever waits for a host that fell silent has heard so: sidecars ask a quiet connection after 30 s whether it
/// is alive and give it 15 s (`KEEPALIVE_*` of `proxy/limits.rs`), the control plane's streams 20 s and 20 s, and then
/// connecting anew may take two attempts. The rest is for two busy cores.
pub(crate) const SILENCE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    pub(crate) network: Network,
    pub(crate) control_plane: Host,
    pub(crate) caller_host: Host,
    pub(crate) callee_host: Host,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) caller: Arc<Sidecar>,
    pub(crate) callee: Arc<Sidecar>,
    pub(crate) agent: Agent,
}

impl World {
    pub(crate) async fn start() -> Self {
        let (network, [control_plane, caller_host, callee_host]) = Network::start(["mesh", "caller", "callee"]);
        let here = SocketAddr::new(IpAddr::V4(control_plane.address), 0);
        let mesh = Arc::new(control_plane.run(async move || Mesh::start_at(here).await).await);
        let agent = callee_host.run(async || Agent::start()).await;
        let at = agent.address;
        let caller = sidecar(&control_plane, &mesh, &caller_host, "caller", at).await;
        let callee = sidecar(&control_plane, &mesh, &callee_host, "callee", at).await;
        let world = Self {
            network,
            control_plane,
            caller_host,
            callee_host,
            mesh,
            caller,
            callee,
            agent,
        };
        world.goes_through().await;
        world
    }

    /// A POST to the callee's agent, by the caller's.
    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = Request::post(format!("http://callee.aip.internal{path}")).header("host", "callee.aip.internal");
        let request = request.body(Full::new(body.into())).unwrap();
        let outbound = self.caller.outbound;
        let answer = async move || send_within(SILENCE, outbound, request).await;
        self.caller_host.run(answer).await.expect("the outbound port answers")
    }

    /// Waits until a call gets through.
    pub(crate) async fn goes_through(&self) {
        wait::until_within(SILENCE, "a call gets through", async || {
            (self.post("/through", "").await.status == 200).then_some(())
        })
        .await;
    }

    /// No answer for any of them more than once, and one for each that was answered.
    pub(crate) fn delivered_once(&self, answered: &[(String, Answer)]) {
        for (path, answer) in answered {
            let seen = self.agent.seen(path).len();
            assert!(seen <= 1, "{path} was delivered {seen} times");
            assert!(seen == 1 || answer.status != 200, "{path} was answered by nobody");
        }
    }

    /// A GET of the admin API.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let (mesh, path) = (self.mesh.clone(), path.to_owned());
        self.control_plane
            .run(async move || mesh.admin().get(&path).await)
            .await
    }

    /// A call of the admin API that succeeds.
    pub(crate) async fn ask(&self, method: http::Method, path: &str, body: Value) -> Value {
        let (mesh, path) = (self.mesh.clone(), path.to_owned());
        self.control_plane
            .run(async move || mesh.admin().ok(method, &path, Some(&body)).await)
            .await
    }

    /// Waits until a metric of a sidecar has this value.
    pub(crate) async fn metric_is(&self, host: &Host, sidecar: &Arc<Sidecar>, name: &'static str, expected: f64) {
        wait::until_within(SILENCE, &format!("{name} is {expected}"), async || {
            let sidecar = sidecar.clone();
            let value = host.run(async move || sidecar.metric(name, &[]).await).await;
            ((value - expected).abs() < 0.5).then_some(())
        })
        .await;
    }
}

/// Registers `name` and starts its sidecar on `host`, where peers reach it by the host's address.
async fn sidecar(
    control_plane: &Host,
    mesh: &Arc<Mesh>,
    host: &Host,
    name: &'static str,
    agent: SocketAddr,
) -> Arc<Sidecar> {
    let at = mesh.clone();
    let mut spec = control_plane
        .run(async move || at.spec(json!({"name": name}), agent).await)
        .await;
    spec.ports = FREE;
    spec.ports[0] = SocketAddr::new(IpAddr::V4(host.address), 0);
    let dir = mesh.dir(name);
    Arc::new(host.run(async move || Sidecar::start(spec, &dir).await).await)
}
