//! Kill sets: each change is the next set, whole, in one transaction with its audit entry.

use std::collections::BTreeSet;

use aip_api::kill::{KillSet, Lease, MAX_KILL_SET_BYTES, MAX_ORDERS, Mode, Order, Scope, sets};
use aip_api::problem::FieldError;
use aip_api::{AgentName, Digest, TrustDomain};
use serde::{Deserialize, Serialize};

use super::records::Action;
use super::{Actor, Draft, Outcome, Registry, keys, retrying, says_why};
use crate::refusal::{Reason, Refusal};
use crate::store::Expect;

/// Longest pause: a week. What must stay stopped for longer is killed.
pub const MAX_PAUSE_SECONDS: u64 = 7 * 86_400;
/// Sets that this store knows to be its own, and orders that it knows to have ended. What is older is taken for
/// something that it never issued, and then nothing of it is lifted.
const REMEMBERED: usize = 10_000;

/// The set in force.
#[derive(Debug, Clone)]
pub struct CurrentSet {
    /// What it says.
    pub set: KillSet,
    /// The very bytes that are signed.
    pub payload: String,
    /// The revision that wrote it.
    pub revision: u64,
}

/// How the set lies in the store.
#[derive(Debug, Serialize, Deserialize)]
struct StoredSet {
    payload: String,
}

/// A set that was issued here, or was shown and is in one that was.
#[derive(Debug, Serialize, Deserialize)]
struct IssuedSet {
    term: u64,
    epoch: u64,
}

/// An order that ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndedOrder {
    /// What it was.
    pub order: Order,
    /// Who resumed, or `expired`.
    pub by: String,
    /// Unix seconds.
    pub at: u64,
}

/// What a process may go by; a control plane that restarts knows by it what may still run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedLease {
    /// Whose.
    pub agent: AgentName,
    /// The process.
    pub instance: String,
    /// The serial of the SVID that it showed.
    pub serial: String,
    /// The line which that one is of.
    #[serde(default)]
    pub line: Option<String>,
    /// What it was granted last, and what before, as long as it may go by that.
    pub leases: Vec<Lease>,
    /// It has said that it ends: nothing runs, unless it is started again out of reach with what it left.
    #[serde(default)]
    pub drained: bool,
}

/// What came of looking at a set that a sidecar showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// This store had never issued it.
    pub unknown: bool,
    /// (term, epoch) from which on sets have its orders. A lower one must not be sent to who showed it.
    pub floor: (u64, u64),
}

/// An order as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Whom it stops.
    pub scope: Scope,
    /// How.
    pub mode: Mode,
    /// Why.
    pub reason: String,
    /// How long, of a pause.
    pub seconds: Option<u64>,
}

impl Registry {
    /// The set in force.
    ///
    /// # Errors
    /// There is none, or the store fails.
    pub async fn kill_set(&self) -> Result<CurrentSet, Refusal> {
        let absent = || Refusal::new(Reason::Internal, "the store holds no kill set");
        let stored = self.record::<StoredSet>(keys::KILL_SET).await?.ok_or_else(absent)?;
        let set = serde_json::from_str(&stored.value.payload)
            .map_err(|e| Refusal::new(Reason::Internal, format!("the kill set can't be read: {e}")))?;
        Ok(CurrentSet {
            set,
            payload: stored.value.payload,
            revision: stored.revision,
        })
    }

    /// Makes the first set, where there is none.
    ///
    /// # Errors
    /// The store fails.
    pub async fn first_kill_set(&self, trust_domain: &TrustDomain) -> Result<(), Refusal> {
        if self.store.get(keys::KILL_SET).await?.is_some() {
            return Ok(());
        }
        let set = KillSet::empty(trust_domain.clone(), 1, self.clock.now());
        let draft = self.change(&Actor::control_plane(), "kill.begin", "term 1");
        with_set(draft, &set, Expect::Absent)?.commit().await.map(drop)
    }

    /// Gives an order, or proposes to: in a `prod` mesh whose settings say so, one that stops more than one agent waits
    /// for a second person. Answers the order's id, too.
    ///
    /// # Errors
    /// Mistakes, too many orders, or the store fails.
    pub async fn stop(&self, sub: &str, wanted: Wanted) -> Result<(Outcome, String), Refusal> {
        let now = self.clock.now();
        says_why(&wanted.reason)?;
        if wanted.seconds.is_some_and(|s| !(1..=MAX_PAUSE_SECONDS).contains(&s)) {
            let message = format!("out of bounds: 1 to {MAX_PAUSE_SECONDS}");
            return Err(Refusal::invalid(vec![FieldError::new("seconds", message)]));
        }
        let order = Order {
            id: uuid::Uuid::now_v7().hyphenated().to_string(),
            scope: wanted.scope,
            mode: wanted.mode,
            reason: wanted.reason,
            issued_by: vec![sub.to_owned()],
            issued_at: now,
            expires: wanted.seconds.map(|seconds| now + seconds),
        };
        let mut mistakes = Vec::new();
        order.validate("order", &mut mistakes);
        if !mistakes.is_empty() {
            return Err(Refusal::invalid(mistakes));
        }
        let asks = order.scope.is_broad() && self.mesh_config().await?.value.kill.second_approver;
        let (id, seconds) = (order.id.clone(), wanted.seconds);
        let action = Action::Stop { order, seconds };
        let outcome = match asks {
            true => self.do_or_propose(sub, action).await?,
            false => self.do_now(sub, action).await?,
        };
        Ok((outcome, id))
    }

    /// Takes orders back, or proposes to: in a `prod` mesh always.
    ///
    /// # Errors
    /// One of them is not in force, or the store fails.
    pub async fn resume(&self, sub: &str, orders: Vec<String>) -> Result<Outcome, Refusal> {
        let current = self.kill_set().await?.set;
        all_in_force(&current, &orders)?;
        self.do_or_propose(sub, Action::Resume { orders }).await
    }

    /// Adds the next set to a draft: with this order, by whoever proposed it and `actor`.
    pub(super) async fn stop_ops(
        &self,
        draft: Draft,
        actor: &Actor,
        order: &Order,
        seconds: Option<u64>,
    ) -> Result<Draft, Refusal> {
        let (current, now) = (self.kill_set().await?, self.clock.now());
        let mut order = order.clone();
        let by = actor.0.strip_prefix("admin:").unwrap_or(&actor.0);
        if !order.issued_by.iter().any(|known| known == by) {
            order.issued_by.push(by.to_owned());
        }
        (order.issued_at, order.expires) = (now, seconds.map(|seconds| now + seconds));
        let (mut next, draft) = following(draft, &current.set, now, |_| None);
        let room = kept_free(&order.scope, order.mode);
        next.orders.push(order);
        has_room(&next, room)?;
        with_set(draft, &next, Expect::At(current.revision))
    }

    /// Adds the next set to a draft: without these orders.
    pub(super) async fn resume_ops(&self, draft: Draft, actor: &Actor, orders: &[String]) -> Result<Draft, Refusal> {
        let (current, now) = (self.kill_set().await?, self.clock.now());
        all_in_force(&current.set, orders)?;
        let ends = current.set.orders.iter().filter(|order| orders.contains(&order.id));
        let ends: Vec<String> = ends
            .map(|o| format!("{} {}: {:?}", o.mode.as_str(), o.scope, o.reason))
            .collect();
        let draft = draft.noting(format!("ends {}", ends.join(", ")));
        let by = |order: &Order| orders.contains(&order.id).then(|| actor.0.clone());
        let (next, draft) = following(draft, &current.set, now, by);
        with_set(draft, &next, Expect::At(current.revision))
    }

    /// Looks at a set that a sidecar showed, whose signature was good. Where this store never issued it, the next set is
    /// of a new term above both, with the orders of both.
    ///
    /// # Errors
    /// More orders than one set can have, or the store fails.
    pub async fn shown_kill_set(&self, shown: &KillSet, digest: Digest) -> Result<Shown, Refusal> {
        retrying(async || {
            if self.store.get(keys::issued_set(&digest)).await?.is_some() {
                let floor = self.kill_set().await?.set.version();
                return Ok(Shown { unknown: false, floor });
            }
            let (current, now) = (self.kill_set().await?, self.clock.now());
            let ended: BTreeSet<String> = self.ended_orders().await?.into_iter().map(|e| e.order.id).collect();
            let full = || Refusal::new(Reason::LimitReached, "the orders of both sets are more than one set can have");
            let next = sets::above(&current.set, shown, &ended, now).ok_or_else(full)?;
            let (term, epoch) = shown.version();
            let subject = format!("term {}", next.term);
            let draft = self.change(&Actor::control_plane(), "kill.restored", subject);
            let draft = draft.detail(format!(
                "a sidecar holds term {term} epoch {epoch}, which this store never issued: it was restored from a copy; \
                 {} orders go on",
                next.orders.len()
            ));
            let draft = draft.put(keys::issued_set(&digest), &IssuedSet { term, epoch }, Expect::Any);
            let draft = super::restored::restored(draft, now);
            with_set(draft, &next, Expect::At(current.revision))?.commit().await?;
            Ok(Shown {
                unknown: true,
                floor: next.version(),
            })
        })
        .await
    }

    /// Orders that have ended, of as long as they are remembered: all that stand in the store, since one that was lifted
    /// a moment ago must not come back because older ones fill a page.
    ///
    /// # Errors
    /// The store fails.
    pub async fn ended_orders(&self) -> Result<Vec<EndedOrder>, Refusal> {
        let snapshot = self.store.snapshot(keys::ENDED_ORDERS).await?;
        let read = snapshot.entries.iter().map(|entry| Ok(super::decode(entry)?.value));
        read.collect()
    }

    /// What processes were granted last.
    ///
    /// # Errors
    /// The store fails.
    pub async fn granted_leases(&self) -> Result<Vec<GrantedLease>, Refusal> {
        let snapshot = self.store.snapshot(keys::GRANTED_LEASES).await?;
        let read = snapshot.entries.iter().map(|entry| Ok(super::decode(entry)?.value));
        read.collect()
    }

    /// Notes what a process is granted, before it is.
    ///
    /// # Errors
    /// The store fails.
    pub async fn note_granted(&self, granted: &GrantedLease) -> Result<(), Refusal> {
        let key = keys::granted_lease(&granted.agent, &granted.instance);
        let draft = self.change(&Actor::sidecar(&granted.agent), "kill.lease", &granted.instance);
        let draft = draft.routine().put(key, granted, Expect::Any);
        draft.commit().await.map(drop)
    }

    /// Forgets processes that have certainly ended.
    ///
    /// # Errors
    /// The store fails.
    pub async fn forget_granted(&self, gone: &[(AgentName, String)]) -> Result<(), Refusal> {
        if gone.is_empty() {
            return Ok(());
        }
        let subject = format!("{} ended processes", gone.len());
        let draft = self
            .change(&Actor::control_plane(), "kill.lease.end", subject)
            .routine();
        let forget = |draft: Draft, (agent, instance): &(AgentName, String)| {
            draft.delete(keys::granted_lease(agent, instance), Expect::Any)
        };
        gone.iter().fold(draft, forget).commit().await.map(drop)
    }

    /// Forgets what is older than [`REMEMBERED`].
    ///
    /// # Errors
    /// The store fails.
    pub async fn sweep_kills(&self) -> Result<(), Refusal> {
        for prefix in [keys::ISSUED_SETS, keys::ENDED_ORDERS] {
            let mut entries = self.store.snapshot(prefix).await?.entries;
            if entries.len() <= REMEMBERED {
                continue;
            }
            entries.sort_by_key(|entry| entry.revision);
            // What is left over goes in several transactions.
            let old = entries.len().saturating_sub(REMEMBERED).min(crate::store::MAX_OPS);
            let draft = self.change(&Actor::control_plane(), "sweep", format!("{old} rows of {prefix}"));
            let forget = |draft: Draft, entry: &crate::store::Entry| draft.delete(entry.key.clone(), Expect::Any);
            entries.iter().take(old).fold(draft.routine(), forget).commit().await?;
        }
        Ok(())
    }
}

/// Orders and bytes that an order of this scope leaves free, so that many narrow ones never keep the mesh from being
/// stopped.
const fn kept_free(scope: &Scope, mode: Mode) -> (usize, usize) {
    match (scope, mode) {
        (Scope::Mesh {}, Mode::Kill) => (0, 0),
        // Nor do pauses of the mesh keep it from being killed.
        (Scope::Mesh {}, Mode::Pause) => (5, 32 * 1024),
        (scope, _) if scope.is_broad() => (10, 64 * 1024),
        _ => (100, 128 * 1024),
    }
}

fn has_room(next: &KillSet, (orders, bytes): (usize, usize)) -> Result<(), Refusal> {
    let length = serde_json::to_vec(next).map_or(usize::MAX, |payload| payload.len());
    if next.orders.len() <= MAX_ORDERS - orders && length <= MAX_KILL_SET_BYTES - bytes {
        return Ok(());
    }
    let detail = "what is left is kept for orders that stop more: resume some, or stop by label or the whole mesh";
    Err(Refusal::new(Reason::LimitReached, detail))
}

fn all_in_force(current: &KillSet, orders: &[String]) -> Result<(), Refusal> {
    let absent = orders
        .iter()
        .find(|id| !current.orders.iter().any(|order| order.id == **id));
    match absent {
        Some(id) => {
            let shown: String = id.chars().take(64).collect();
            Err(Refusal::new(
                Reason::NotFound,
                format!("no order {shown:?} is in force"),
            ))
        }
        None if orders.is_empty() => Err(Refusal::invalid(vec![FieldError::new("orders", "at least one")])),
        None => Ok(()),
    }
}

/// The set after `current`, without what has expired and what `ended` says has, which the draft notes.
fn following(
    mut draft: Draft,
    current: &KillSet,
    now: u64,
    ended: impl Fn(&Order) -> Option<String>,
) -> (KillSet, Draft) {
    let mut lifted = BTreeSet::new();
    for order in &current.orders {
        let by = match order.in_force(now) {
            true => ended(order),
            false => Some("expired".into()),
        };
        let Some(by) = by else { continue };
        let ended = EndedOrder {
            order: order.clone(),
            by,
            at: now,
        };
        lifted.insert(order.id.as_str());
        draft = draft.put(keys::ended_order(&order.id), &ended, Expect::Any);
    }
    (
        sets::following(current, |order| lifted.contains(order.id.as_str()), now),
        draft,
    )
}

/// Writes a set, and that it was issued here.
fn with_set(draft: Draft, set: &KillSet, expect: Expect) -> Result<Draft, Refusal> {
    let mistakes = set.validate();
    if !mistakes.is_empty() {
        return Err(Refusal::invalid(mistakes));
    }
    let payload = serde_json::to_string(set).map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?;
    if payload.len() > MAX_KILL_SET_BYTES {
        let detail = format!(
            "the orders have {} bytes; at most {MAX_KILL_SET_BYTES}: resume some",
            payload.len()
        );
        return Err(Refusal::new(Reason::LimitReached, detail));
    }
    let digest = Digest::sha256(payload.as_bytes());
    let (term, epoch) = set.version();
    Ok(draft.put(keys::KILL_SET, &StoredSet { payload }, expect).put(
        keys::issued_set(&digest),
        &IssuedSet { term, epoch },
        Expect::Any,
    ))
}

#[cfg(test)]
mod tests;
