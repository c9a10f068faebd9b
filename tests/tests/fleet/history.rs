//! What happened in a run, as those saw it who asked: each call, and what the admin API said, by one clock.
//!
//! A time is when something was asked, or when its answer was there: what is judged by them happened after the one, or before
//! the other.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Since the run began.
pub(crate) type At = Duration;
/// One of the fleet, by its number.
pub(crate) type Member = usize;
/// A call, by its number.
pub(crate) type CallId = u64;

/// Groups of members that have a label in common.
pub(crate) const GROUPS: usize = 5;

/// What an order stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Mesh,
    Group(usize),
    Agent(Member),
    Pair(Member, Member),
}

impl Scope {
    pub(crate) fn covers(self, from: Member, to: Member) -> bool {
        match self {
            Self::Mesh => true,
            Self::Group(group) => [from, to].iter().any(|member| member % GROUPS == group),
            Self::Agent(agent) => [from, to].contains(&agent),
            Self::Pair(source, destination) => (source, destination) == (from, to),
        }
    }
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// 200.
    Answered,
    /// With this reason.
    Refused(String),
    /// There was no whole answer: the sidecar may go on with it.
    Broken,
}

/// One call of a member's agent to another's.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) id: CallId,
    pub(crate) from: Member,
    pub(crate) to: Member,
    pub(crate) asked: At,
    pub(crate) ended: At,
    pub(crate) outcome: Outcome,
}

/// What was asked of the control plane, and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fact {
    /// The order was taken.
    Ordered { order: String, scope: Scope },
    /// The progress of the order's set named this sidecar among those that have enforced it.
    Enforced { order: String, by: Member },
    /// Somebody asks to lift the order.
    Lifting { order: String },
    /// These orders are in force, asked for at `asked`.
    Listed { orders: Vec<String>, asked: At },
    /// The SVIDs of a member up to this generation were revoked, at this revision.
    Revoked {
        member: Member,
        generation: u64,
        revision: u64,
    },
    /// The acknowledgements of a revision named this sidecar.
    Holds { revision: u64, by: Member },
    /// Somebody starts the member again with a new token: from here on it has another generation.
    Rejoining { member: Member },
    /// The control plane has a checkpoint of so many records of this log.
    Signed { log: String, records: u64 },
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) calls: Vec<Call>,
    pub(crate) facts: Vec<(At, Fact)>,
}

/// Where it is written while it happens.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    began: Instant,
    history: Arc<Mutex<History>>,
}

impl Recorder {
    pub(crate) fn begin() -> Self {
        Self {
            began: Instant::now(),
            history: Arc::default(),
        }
    }

    pub(crate) fn now(&self) -> At {
        self.began.elapsed()
    }

    pub(crate) fn called(&self, call: Call) {
        self.history.lock().unwrap().calls.push(call);
    }

    /// It is so now.
    pub(crate) fn note(&self, fact: Fact) {
        let at = self.now();
        self.history.lock().unwrap().facts.push((at, fact));
    }

    pub(crate) fn so_far(&self) -> History {
        self.history.lock().unwrap().clone()
    }
}
