//! What happens to the fleet, drawn from the seed: ways are held up, cut and healed, processes are killed and started again,
//! and operators order, lift, revoke and change policy all the while.

use std::time::Duration;

use aip_tests::relay::{Flow, Way};
use aip_tests::seeded::Seeded;
use http::Method;
use serde_json::{Value, json};

use crate::history::{Fact, GROUPS, Member, Recorder, Scope};
use crate::load::peers;
use crate::members::{Fleet, SIDECARS, name};
use crate::watch::{Given, Watch};

/// Between two steps, at the most: what a step sets off is sometimes over by the next one, and sometimes not.
const PAUSE_MS: u64 = 400;
/// Ways at once that something happens to, at the most.
const WAYS: u64 = 12;
/// Processes killed at once, at the most.
const KILLED: u64 = 5;
/// Orders in force at once, at the most: of a fleet that is all stopped little can be seen.
const ORDERS: usize = 4;
/// Longest delay of each piece, and with it of a handshake's every step.
const LATE_MS: u64 = 150;

/// What can happen.
#[derive(Debug, Clone, Copy)]
enum Step {
    HoldUp,
    CutWays,
    Heal,
    HealAll,
    Restart,
    RestartPlane,
    Order,
    Lift,
    Revoke,
    Rejoin,
    Policy,
}

/// Each as often as it stands here.
const STEPS: [Step; 22] = [
    Step::HoldUp,
    Step::HoldUp,
    Step::HoldUp,
    Step::CutWays,
    Step::CutWays,
    Step::Heal,
    Step::Heal,
    Step::HealAll,
    Step::Restart,
    Step::Restart,
    Step::Restart,
    Step::RestartPlane,
    Step::Order,
    Step::Order,
    Step::Order,
    Step::Order,
    Step::Lift,
    Step::Lift,
    Step::Revoke,
    Step::Revoke,
    Step::Rejoin,
    Step::Policy,
];

/// A run of it.
pub(crate) struct Schedule {
    pub(crate) fleet: Fleet,
    pub(crate) recorder: Recorder,
    watch: Watch,
    random: Seeded,
    in_force: Vec<String>,
    policies: u64,
}

impl Schedule {
    pub(crate) fn new(fleet: Fleet, recorder: Recorder, seed: u64) -> Self {
        let watch = Watch::begin(fleet.mesh.admin().clone(), recorder.clone());
        Self {
            fleet,
            recorder,
            watch,
            random: Seeded::new(seed),
            in_force: Vec::new(),
            policies: 0,
        }
    }

    /// So many steps.
    pub(crate) async fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            let step = STEPS[self.random.index(STEPS.len())];
            eprintln!("{:>8.2?} {step:?}", self.recorder.now());
            self.step(step).await;
            let pause = self.random.below(PAUSE_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Heals everything, lifts every order, takes back everybody, and asks for one more change that all are to hold; the
    /// revision of that.
    pub(crate) async fn heal(&mut self) -> u64 {
        self.fleet.heal();
        while !self.in_force.is_empty() {
            self.lift().await;
        }
        for member in 0..SIDECARS {
            self.rejoin(member).await;
        }
        self.policy().await
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::HoldUp => {
                let way = self.held_up();
                self.set_some(way);
            }
            Step::CutWays => self.set_some(Way::Cut),
            Step::Heal => self.set_some(Way::CLEAR),
            Step::HealAll => self.fleet.heal(),
            Step::Restart => {
                let count = 1 + self.random.below(KILLED);
                let chosen = self.random.some(usize::try_from(count).unwrap(), SIDECARS);
                self.fleet.restart(&chosen).await;
            }
            Step::RestartPlane => {
                self.fleet.restart_plane().await;
                self.list().await;
            }
            Step::Order if self.in_force.len() < ORDERS => self.order().await,
            Step::Order | Step::Lift => self.lift().await,
            Step::Revoke => self.revoke().await,
            Step::Rejoin => {
                let member = self.fleet.members.iter().position(|one| one.is_revoked);
                if let Some(member) = member {
                    self.rejoin(member).await;
                }
            }
            Step::Policy => drop(self.policy().await),
        }
    }

    /// A way that is slow or held up, in one direction or both.
    fn held_up(&mut self) -> Way {
        let late = Flow::Late(Duration::from_millis(1 + self.random.below(LATE_MS)));
        let (passes, stalls) = (Flow::Passes, Flow::Stalls);
        let (forth, back) = [(stalls, stalls), (stalls, passes), (passes, stalls), (late, late)][self.random.index(4)];
        Way::Open { forth, back }
    }

    /// Some members' ways up, or those to them, become so.
    fn set_some(&mut self, way: Way) {
        let count = 1 + self.random.below(WAYS);
        let is_up = self.random.below(2) == 0;
        for member in self.random.some(usize::try_from(count).unwrap(), SIDECARS) {
            let one = &self.fleet.members[member];
            let relay = if is_up { &one.up } else { &one.to_it };
            relay.set(way);
        }
    }

    async fn ask(&self, method: Method, path: &str, body: &Value) -> Value {
        self.fleet.mesh.admin().ok(method, path, Some(body)).await
    }

    async fn order(&mut self) {
        let member = self.random.index(SIDECARS);
        let scope = match self.random.below(10) {
            0 => Scope::Mesh,
            1..=2 => Scope::Group(self.random.index(GROUPS)),
            3..=6 => Scope::Agent(member),
            _ => {
                let peers: Vec<_> = peers(member).collect();
                Scope::Pair(member, peers[self.random.index(peers.len())])
            }
        };
        let mode = ["kill", "pause"][self.random.index(2)];
        let body = json!({"scope": document(scope), "mode": mode, "reason": "the schedule"});
        let given = self.ask(Method::POST, "/v1/kills", &body).await;
        let number = |key: &str| given[key].as_u64().unwrap();
        let order = given["order"].as_str().unwrap().to_owned();
        self.recorder.note(Fact::Ordered {
            order: order.clone(),
            scope,
        });
        let (term, epoch) = (number("term"), number("epoch"));
        self.in_force.push(order.clone());
        let given = Given { order, term, epoch };
        self.watch.asked.lock().unwrap().orders.push(given);
    }

    /// The oldest, if there is one.
    async fn lift(&mut self) {
        if self.in_force.is_empty() {
            return;
        }
        let order = self.in_force.remove(0);
        // An acknowledgement that is noted after this says nothing any more.
        self.watch
            .asked
            .lock()
            .unwrap()
            .orders
            .retain(|given| given.order != order);
        self.recorder.note(Fact::Lifting { order: order.clone() });
        self.ask(Method::POST, "/v1/kills/resume", &json!({"orders": [order]}))
            .await;
    }

    async fn list(&self) {
        let asked = self.recorder.now();
        let list = self.fleet.mesh.admin().get("/v1/kills").await;
        let orders = list["items"].as_array().unwrap().iter();
        let orders = orders.map(|order| order["id"].as_str().unwrap().to_owned()).collect();
        self.recorder.note(Fact::Listed { orders, asked });
    }

    async fn revoke(&mut self) {
        let member = self.random.index(SIDECARS);
        if self.fleet.members[member].is_revoked {
            return;
        }
        let path = format!("/v1/agents/{}/revoke", name(member));
        let revoked = self.ask(Method::POST, &path, &json!({"reason": "the schedule"})).await;
        let (revision, next) = (
            revoked["revision"].as_u64().unwrap(),
            revoked["generation"].as_u64().unwrap(),
        );
        self.fleet.members[member].is_revoked = true;
        self.recorder.note(Fact::Revoked {
            member,
            generation: next - 1,
            revision,
        });
        self.watch.asked.lock().unwrap().revisions.push(revision);
    }

    async fn rejoin(&mut self, member: Member) {
        if self.fleet.members[member].is_revoked {
            self.recorder.note(Fact::Rejoining { member });
            self.fleet.rejoin(member).await;
        }
    }

    /// A policy that no call meets, of another revision each time.
    async fn policy(&mut self) -> u64 {
        self.policies += 1;
        let rego = format!(
            "package aip.policy.schedule\n\nrules contains {{\"rule\": \"r{}\", \"verdict\": \"deny\", \"reason\": \"x\"}} if input.request.path == [\"never\"]\n",
            self.policies
        );
        let policy = json!({"name": "schedule", "rego": rego, "attach": "mesh"});
        let put = self.ask(Method::PUT, "/v1/policies/schedule", &policy).await;
        let revision = put["revision"].as_u64().unwrap();
        self.watch.asked.lock().unwrap().revisions.push(revision);
        revision
    }
}

fn document(scope: Scope) -> Value {
    match scope {
        Scope::Mesh => json!({"kind": "mesh"}),
        Scope::Group(group) => json!({"kind": "selector", "labels": {"group": group.to_string()}}),
        Scope::Agent(agent) => json!({"kind": "agent", "agent": name(agent)}),
        Scope::Pair(source, destination) => {
            json!({"kind": "pair", "source": name(source), "destination": name(destination)})
        }
    }
}
