//! Sidecars of one mesh in this process.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aip_api::kill::{KillSet, Lease, Order};
use aip_api::resource::reputation::Score;
use aip_api::resource::{Agent, Attach, Endpoint, MeshConfig, MeshMode, Policy, Reputation, Revocation, Traffic};
use aip_api::{AgentName, SpiffeId};
use aip_audit::log::{self, Options, Reader};
use aip_audit::record::{Decision, End, Event};
use aip_runtime::drain::{self, Drain};
use aip_runtime::svid::SvidSource;
use aip_runtime::trust::Trust;
use aip_sidecar::audit::Audit;
use aip_sidecar::kill::Gate;
use aip_sidecar::kill::orders::Orders;
use aip_sidecar::mesh::Mesh;
use aip_sidecar::proxy::access_log::AccessLog;
use aip_sidecar::proxy::{Proxy, ProxySettings, serve_inbound, serve_outbound};
use aip_sidecar::snapshot::{AttachedPolicy, PolicySets, Snapshot};
use aip_sidecar::wellknown::WellKnown;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::pki::{Pki, Says, TRUST_DOMAIN};

/// How long a condition may take that normally holds at once.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub const ALLOW_ALL: &str = r#"package aip.policy.baseline
rules contains {"rule": "everything", "verdict": "allow", "reason": "a test"}
"#;

pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a sidecar is told of the world.
#[derive(Clone)]
pub struct World {
    pub revision: u64,
    pub mesh: MeshConfig,
    pub traffic: Traffic,
    pub agents: Vec<Agent>,
    pub endpoints: Vec<(String, SocketAddr)>,
    pub policies: Vec<(String, String)>,
    pub unusable: Vec<(String, Attach)>,
    /// Bounds of the audit's logs.
    pub quota: Options,
    /// Where they are, if a test made the directory.
    pub audit: Option<Arc<TempDir>>,
    /// Of those agents that are not at the prior; `None`: none is held.
    pub scores: HashMap<String, Option<f64>>,
    /// What orders are asked of, where a test makes that.
    pub gate: Option<Gate>,
}

impl World {
    pub fn of(agents: &[&str]) -> Self {
        Self {
            revision: 1,
            quota: Options::default(),
            audit: None,
            mesh: MeshConfig::new(TRUST_DOMAIN.parse().unwrap(), MeshMode::Dev),
            traffic: Traffic::defaults(),
            agents: agents.iter().map(|name| Agent::new(name.parse().unwrap())).collect(),
            endpoints: Vec::new(),
            policies: vec![("baseline".into(), ALLOW_ALL.into())],
            unusable: Vec::new(),
            scores: HashMap::new(),
            gate: None,
        }
    }

    pub fn policy(mut self, rego: &str) -> Self {
        self.policies = vec![("baseline".into(), rego.into())];
        self
    }

    pub fn agent(&mut self, name: &str) -> &mut Agent {
        self.agents.iter_mut().find(|a| a.name.as_str() == name).unwrap()
    }

    fn snapshot(&self, me: &str) -> Snapshot {
        let name: AgentName = me.parse().unwrap();
        let agents: HashMap<AgentName, Arc<Agent>> = self
            .agents
            .iter()
            .map(|a| (a.name.clone(), Arc::new(a.clone())))
            .collect();
        let mut endpoints: HashMap<AgentName, Vec<Endpoint>> = HashMap::new();
        for (i, (agent, address)) in self.endpoints.iter().enumerate() {
            let agent: AgentName = agent.parse().unwrap();
            let endpoint = Endpoint {
                agent: agent.clone(),
                instance: i.to_string(),
                address: *address,
            };
            endpoints.entry(agent).or_default().push(endpoint);
        }
        let attached = |(name, rego): &(String, String)| {
            let policy = Policy {
                name: name.clone().try_into().unwrap(),
                rego: rego.clone(),
                data: Value::Null,
                tests: None,
                attach: Attach::Mesh,
            };
            (
                name.clone(),
                AttachedPolicy {
                    revision: self.revision,
                    policy: Arc::new(policy),
                },
            )
        };
        let reputation = |name: &AgentName| {
            let score = self.scores.get(name.as_str()).copied().unwrap_or(Some(5.0))?;
            let reputation = Reputation::new(name.clone(), Score::clamped(score), 0);
            Some((name.clone(), Arc::new(reputation)))
        };
        let reputations = agents.keys().filter_map(reputation).collect();
        Snapshot {
            reputations,
            revision: self.revision,
            id: SpiffeId::new(TRUST_DOMAIN.parse().unwrap(), name.clone()),
            mesh: Arc::new(self.mesh.clone()),
            mesh_revision: self.revision,
            me: agents.get(&name).cloned().unwrap_or_else(|| Arc::new(Agent::new(name))),
            traffic: Arc::new(self.traffic.clone()),
            agents,
            endpoints: endpoints.into_iter().map(|(name, list)| (name, list.into())).collect(),
            policies: self.policies.iter().map(attached).collect::<BTreeMap<_, _>>(),
            unusable: self.unusable.clone(),
            sets: Arc::new(PolicySets::default()),
        }
    }
}

#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// One sidecar.
pub struct Side {
    pub name: String,
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    pub svid: SvidSource,
    pub trust: Trust,
    pub proxy: Arc<Proxy>,
    pub log: Log,
    pub audit: Audit,
    pub dir: Arc<TempDir>,
    mesh: Mesh,
    world: Mutex<World>,
    drain: Mutex<Option<Drain>>,
    _asked: tokio::sync::mpsc::Receiver<AgentName>,
}

impl Side {
    pub async fn start(pki: &Pki, name: &str, agent: SocketAddr, world: World) -> Self {
        Self::start_with(pki, name, agent, world, Says::default(), None).await
    }

    pub async fn start_with(
        pki: &Pki,
        name: &str,
        agent: SocketAddr,
        world: World,
        says: Says,
        secret: Option<&str>,
    ) -> Self {
        aip_runtime::telemetry::init_metrics();
        let svid = SvidSource::default();
        svid.set(pki.svid(name, says)).unwrap();
        let trust = pki.trust().shared();
        let (mesh, asked) = Mesh::new(world.snapshot(name));
        let log = Log::default();
        let secret = secret.map(|s| s.to_owned().into());
        let dir = world.audit.clone().unwrap_or_else(|| Arc::new(TempDir::new().unwrap()));
        let audit = Audit::open(dir.path(), world.quota).unwrap();
        let settings = ProxySettings::new(agent, secret)
            .recording_to(audit.clone())
            .logging_to(AccessLog::to(log.clone()))
            .stopped_by(world.gate.clone().unwrap_or_else(|| gate_of(&[])));
        let proxy = Proxy::new(
            mesh.clone(),
            svid.clone(),
            trust.clone(),
            settings,
            WellKnown::new(svid.clone()),
        );
        let inbound = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let outbound = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (drain, watch) = drain::channel();
        let addresses = (inbound.local_addr().unwrap(), outbound.local_addr().unwrap());
        tokio::spawn(serve_inbound(inbound, proxy.clone(), watch.clone()));
        tokio::spawn(serve_outbound(outbound, proxy.clone(), watch));
        Self {
            name: name.to_owned(),
            inbound: addresses.0,
            outbound: addresses.1,
            svid,
            trust,
            proxy,
            log,
            audit,
            dir,
            mesh,
            world: Mutex::new(world),
            drain: Mutex::new(Some(drain)),
            _asked: asked,
        }
    }

    /// What it knows of the mesh.
    pub fn mesh(&self) -> Mesh {
        self.mesh.clone()
    }

    /// Changes the world of this sidecar.
    pub fn push(&self, change: impl FnOnce(&mut World)) {
        let mut world = self.world.lock().unwrap();
        change(&mut world);
        world.revision += 1;
        self.mesh.replace(world.snapshot(&self.name));
    }

    /// Revokes generations of `agent`, as a push does.
    pub fn revoke(&self, agent: &str, below: u64) {
        let mut state = (**self.trust.load()).clone();
        let agent = agent.parse().unwrap();
        state.revoke(&Revocation::Generation {
            agent,
            below,
            expires: u64::MAX,
        });
        self.trust.store(Arc::new(state));
        self.push(|_| ());
    }

    /// Says that no such agent is registered.
    pub fn absent(&self, agent: &str) {
        self.mesh.absent(agent.parse().unwrap());
    }

    pub fn drain(&self) -> Drain {
        let drain = self.drain.lock().unwrap().take().unwrap();
        drain.start();
        drain
    }

    /// The lines of requests that are over, once there are `count` of them.
    pub async fn lines(&self, count: usize) -> Vec<Value> {
        until(&format!("{count} lines in {}'s access log", self.name), async || {
            let lines = self.log.lines();
            (lines.len() >= count).then_some(lines)
        })
        .await
    }

    /// What the audit recorded, in all its logs.
    pub fn recorded(&self) -> Vec<Event> {
        let mut logs: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| log::name_of(path).is_ok())
            .collect();
        logs.sort();
        let records = logs.iter().flat_map(|dir| Reader::open(dir).unwrap());
        records.map(|entry| entry.unwrap().record.event).collect()
    }

    /// Both records of each request that is over, in the order of their ends, once there are `count`.
    pub async fn audited(&self, count: usize) -> Vec<(Decision, End)> {
        until(&format!("{count} ends in {}'s audit", self.name), async || {
            let events = self.recorded();
            let decisions: HashMap<_, _> = events
                .iter()
                .filter_map(|event| match event {
                    Event::Decision(decision) => Some((decision.id, &**decision)),
                    _ => None,
                })
                .collect();
            let ends = events.iter().filter_map(|event| match event {
                Event::End(end) => Some((decisions[&end.id].clone(), (**end).clone())),
                _ => None,
            });
            let ends: Vec<_> = ends.collect();
            (ends.len() >= count).then_some(ends)
        })
        .await
    }

    /// The only line.
    pub async fn line(&self) -> Value {
        let mut lines = self.lines(1).await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    }
}

/// A caller and a callee, `planner` and `ledger`, in the same world.
pub struct Pair {
    pub pki: Pki,
    pub caller: Side,
    pub callee: Side,
}

impl Pair {
    pub async fn start(agent: SocketAddr) -> Self {
        Self::in_world(agent, World::of(&["planner", "ledger"])).await
    }

    pub async fn in_world(agent: SocketAddr, world: World) -> Self {
        let pki = Pki::new();
        // The caller's own agent is never called.
        let nobody = "127.0.0.1:9".parse().unwrap();
        let callee = Side::start(&pki, "ledger", agent, world.clone()).await;
        let mut callers = world;
        callers.endpoints.push(("ledger".into(), callee.inbound));
        let caller = Side::start(&pki, "planner", nobody, callers).await;
        Self { pki, caller, callee }
    }
}

/// A gate that holds these orders, with a lease that does not end.
pub fn gate_of(orders: &[Order]) -> Gate {
    let gate = Gate::default();
    hold(&gate, orders);
    gate.lease().grant(Lease::default(), aip_runtime::boottime());
    gate
}

/// Puts these orders in force.
pub fn hold(gate: &Gate, orders: &[Order]) {
    let mut set = KillSet::empty("aip.internal".parse().unwrap(), 1, 1);
    set.orders = orders.to_vec();
    gate.put(Orders::of(&set));
}
