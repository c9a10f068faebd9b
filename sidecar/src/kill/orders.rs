//! The orders of one kill set, by whom they mean. Pure.

use std::collections::{BTreeMap, HashMap};

use aip_api::AgentName;
use aip_api::kill::{KillSet, Mode, Order, Scope};
use aip_policy::Fact;

/// Labels of an agent.
type Labels = BTreeMap<String, String>;

/// An agent as orders select it: by its name, and by the labels of the registry and of its certificate. Where the two
/// differ, either is enough.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Its name.
    pub name: &'a AgentName,
    /// What the registry says, where it is known.
    pub registered: Option<&'a Labels>,
    /// What its certificate says, where it has shown one.
    pub certified: Option<&'a Labels>,
}

impl Named<'_> {
    fn has(&self, wanted: &Labels) -> bool {
        let all = |own: &&Labels| wanted.iter().all(|(key, value)| own.get(key) == Some(value));
        self.registered.iter().chain(&self.certified).any(all)
    }
}

/// The orders of a set.
#[derive(Debug)]
pub struct Orders {
    version: (u64, u64),
    all: Vec<Order>,
    /// Of the mesh and of labels: each agent is held against them.
    wide: Vec<usize>,
    agents: HashMap<AgentName, Vec<usize>>,
    pairs: HashMap<AgentName, Vec<usize>>,
    tools: Vec<usize>,
}

impl Orders {
    /// Those of this set.
    pub fn of(set: &KillSet) -> Self {
        let mut orders = Self {
            version: set.version(),
            all: set.orders.clone(),
            wide: Vec::new(),
            agents: HashMap::new(),
            pairs: HashMap::new(),
            tools: Vec::new(),
        };
        for (i, order) in set.orders.iter().enumerate() {
            match &order.scope {
                Scope::Mesh {} | Scope::Selector { .. } => orders.wide.push(i),
                Scope::Agent { agent } => orders.agents.entry(agent.clone()).or_default().push(i),
                Scope::Pair { source, .. } => orders.pairs.entry(source.clone()).or_default().push(i),
                Scope::Tool { .. } => orders.tools.push(i),
            }
        }
        orders
    }

    /// (term, epoch) of the set.
    pub fn version(&self) -> (u64, u64) {
        self.version
    }

    /// All of them.
    pub fn all(&self) -> &[Order] {
        &self.all
    }

    /// The strictest that is in force on this agent.
    pub fn of_agent(&self, agent: Named<'_>, now: u64) -> Option<&Order> {
        let named = self.agents.get(agent.name).into_iter().flatten();
        let wide = self.wide.iter().filter(|i| match &self.all[**i].scope {
            Scope::Selector { labels } => agent.has(labels),
            _ => true,
        });
        self.strictest(named.chain(wide).copied(), now)
    }

    /// The strictest that is in force on calls of one agent to another.
    pub fn of_pair(&self, source: &AgentName, destination: &AgentName, now: u64) -> Option<&Order> {
        let from = self.pairs.get(source).into_iter().flatten();
        let to = from
            .filter(|i| matches!(&self.all[**i].scope, Scope::Pair { destination: named, .. } if named == destination));
        self.strictest(to.copied(), now)
    }

    /// Whether a tool of this agent is stopped: then what a request calls must be known.
    pub fn names_tools_of(&self, agent: &AgentName, now: u64) -> bool {
        self.tools_of(agent).any(|i| self.all[i].in_force(now))
    }

    /// The strictest that is in force on one of these tools or skills of this agent. What is called and can't be
    /// established may be any of them.
    pub fn of_tool(&self, agent: &AgentName, called: [&Fact<String>; 2], now: u64) -> Option<&Order> {
        let may_be = |i: &usize| match &self.all[*i].scope {
            Scope::Tool { tool, .. } => called.iter().any(|fact| match fact {
                Fact::Known(name) => name == tool,
                Fact::Unestablished(_) => true,
            }),
            _ => false,
        };
        self.strictest(self.tools_of(agent).filter(may_be), now)
    }

    fn tools_of<'a>(&'a self, agent: &'a AgentName) -> impl Iterator<Item = usize> {
        self.tools.iter().copied().filter(move |i| match &self.all[*i].scope {
            Scope::Tool { agent: Some(named), .. } => named == agent,
            _ => true,
        })
    }

    /// A kill before a pause; of several pauses, the one that lasts longest.
    fn strictest(&self, which: impl Iterator<Item = usize>, now: u64) -> Option<&Order> {
        let in_force = which.map(|i| &self.all[i]).filter(|order| order.in_force(now));
        in_force.max_by_key(|order| (order.mode == Mode::Kill, order.expires.unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests;
