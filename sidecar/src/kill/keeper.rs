//! The one that takes sets: enforces them, keeps them, and answers for it.

use std::sync::Arc;
use std::time::Instant;

use aip_api::kill::{KillSet, Lease, sets};
use aip_api::wire::{KillAck, SignedHeartbeat, SignedKillSet};
use aip_runtime::ready::Readiness;
use aip_runtime::svid::SvidSource;
use aip_runtime::trust::Trust;

use super::cuts::{self, Cuts};
use super::disk::{Disk, Granted, Unusable};
use super::gate::{self, Gate};
use super::hold::{Considered, Held, Hold};
use super::orders::Orders;
use super::supervisor::Supervisor;
use crate::proxy::Proxy;

/// The gate of readiness that it opens.
pub(crate) const READY: &str = "kill";

/// What keeps the kill state of this process.
pub struct Keeper {
    pub(crate) gate: Gate,
    hold: Hold,
    /// What a heartbeat granted last.
    granted: Option<Granted>,
    disk: Disk,
    trust: Trust,
    ready: Readiness,
    supervisor: Supervisor,
    given_up: SvidSource,
    /// A set that is enforced and could not be written: tried again at every beat.
    unwritten: Option<Held>,
}

/// What came of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is not on disk, and so not taken.
    Not,
    /// This process goes by it, as by the one before.
    Same,
    /// This process goes by another lease than before.
    Changed,
}

impl Keeper {
    /// Goes on from what is on disk. A sidecar that may go on without a control plane does; another one refuses
    /// everything until it hears from one.
    pub fn restore(disk: Disk, trust: Trust, ready: Readiness, supervisor: Supervisor) -> Self {
        let mut keeper = Self {
            gate: Gate::default(),
            hold: Hold::default(),
            granted: None,
            disk,
            trust,
            ready,
            supervisor,
            given_up: SvidSource::default(),
            unwritten: None,
        };
        match keeper.disk.load(&keeper.trust.load()) {
            Ok((held, granted)) => {
                let (term, epoch) = held.set.version();
                tracing::info!(
                    term,
                    epoch,
                    orders = held.set.orders.len(),
                    "kill set restored from disk"
                );
                keeper.gate.put(Orders::of(&held.set));
                keeper.hold = Hold::of(held);
                if let Some(granted) = &granted {
                    // One that denies has ended with the process that held it.
                    keeper.gate.lease().grant(granted.lease, std::time::Duration::ZERO);
                }
                keeper.granted = granted;
            }
            Err(Unusable::Absent) => tracing::info!("no kill set is held yet: everything is refused until one comes"),
            Err(error) => tracing::warn!(%error, "everything is refused until the control plane sends a kill set"),
        }
        keeper
    }

    /// The same, whose agent is also whom an SVID names that was given up: an order that means it by a label of its
    /// certificate goes on.
    #[must_use]
    pub fn naming_by(self, given_up: SvidSource) -> Self {
        Self { given_up, ..self }
    }

    /// What requests are asked against.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// What is held.
    pub(crate) fn held(&self) -> Option<&Held> {
        self.hold.held()
    }

    /// What is enforced and not on disk.
    pub(crate) fn unwritten(&self) -> Option<&Held> {
        self.unwritten.as_ref()
    }

    /// What was granted last.
    pub(crate) fn granted(&self) -> Option<Lease> {
        self.granted.as_ref().map(|granted| granted.lease)
    }

    /// Looks at everything that is open again: the world changed, the lease was lost, or this process has just begun.
    pub(crate) async fn look_again(&self, proxy: &Proxy) -> Cuts {
        let cuts = cuts::enforce(proxy).await;
        self.tell_supervisor(proxy);
        self.show();
        cuts
    }

    /// Takes a set, or doesn't; the answer says what came of it.
    pub(crate) async fn take(&mut self, proxy: &Arc<Proxy>, signed: SignedKillSet) -> KillAck {
        let arrived = Instant::now();
        let considered = self.hold.consider(&self.trust.load(), &signed);
        let set = match considered {
            Ok(Considered::Higher(set)) => set,
            Ok(Considered::Same) => return self.acknowledged(Cuts::default(), arrived),
            Err(error) => {
                metrics::counter!("aip_kill_sets_rejected_total", "reason" => error.reason()).increment(1);
                tracing::error!(reason = error.reason(), %error, "a kill set was not taken; the one that is held stays");
                let held = self
                    .held()
                    .filter(|_| error.shows_held())
                    .map(|held| held.signed.clone());
                return KillAck {
                    rejected: error.reason().into(),
                    detail: error.to_string(),
                    held,
                    ..self.version()
                };
            }
        };
        // What the set adds holds before it is on disk, and what it lifts holds until then.
        let holding = self.held().into_iter().chain(&self.unwritten).map(|held| &held.set);
        self.gate.put(Orders::of(&sets::both(holding, &set)));
        let cuts = cuts::enforce(proxy).await;
        let written = self.write(&signed, self.granted.as_ref()).await;
        // After the attempt: an agent that was stopped by what a crash then forgot would be started again. And however it
        // ended: what is enforced stops the agent, too.
        self.tell_supervisor(proxy);
        if let Err(error) = written {
            metrics::counter!("aip_kill_sets_rejected_total", "reason" => "not_persisted").increment(1);
            tracing::error!(%error, reason = "not_persisted", "a kill set is enforced and not on disk; trying again");
            let (term, epoch) = set.version();
            self.unwritten = Some(Held { set, signed });
            return KillAck {
                term,
                epoch,
                rejected: "not_persisted".into(),
                detail: error.to_string(),
                ..KillAck::default()
            };
        }
        self.hold(set, signed);
        self.tell_supervisor(proxy);
        self.show();
        self.acknowledged(cuts, arrived)
    }

    /// Tries again to write what is enforced and not on disk, and to reach a supervisor that did not listen.
    pub(crate) async fn retry(&mut self, proxy: &Arc<Proxy>) -> Option<KillAck> {
        self.tell_supervisor(proxy);
        let signed = self.unwritten.as_ref()?.signed.clone();
        Some(self.take(proxy, signed).await)
    }

    /// Takes what a heartbeat grants to the beat that was sent at `sent`, and answers what came of it.
    pub(crate) async fn grant(&mut self, lease: Lease, signed: &SignedHeartbeat, sent: std::time::Duration) -> Taken {
        let changed = self.granted() != Some(lease);
        if changed {
            let Some(held) = self.held().map(|held| held.signed.clone()) else {
                return Taken::Not;
            };
            let signed = signed.clone();
            let granted = Granted { lease, signed };
            // On disk first: a restart must not go on where this process may not.
            if let Err(error) = self.write(&held, Some(&granted)).await {
                tracing::error!(%error, "the lease is not on disk, so it is not taken; trying again");
                return Taken::Not;
            }
            self.granted = Some(granted);
            tracing::info!(seconds = lease.seconds, on_lost = ?lease.on_lost, "lease granted");
        }
        self.gate.lease().grant(lease, sent);
        self.show();
        if changed { Taken::Changed } else { Taken::Same }
    }

    fn hold(&mut self, set: KillSet, signed: SignedKillSet) {
        tracing::warn!(
            term = set.term,
            epoch = set.epoch,
            orders = set.orders.len(),
            "kill set taken"
        );
        self.unwritten = None;
        self.gate.put(Orders::of(&set));
        self.hold = Hold::of(Held { set, signed });
    }

    async fn write(&self, signed: &SignedKillSet, granted: Option<&Granted>) -> std::io::Result<()> {
        let (disk, signed) = (self.disk.clone(), signed.clone());
        let heartbeat = granted.map(|granted| granted.signed.clone());
        let written = tokio::task::spawn_blocking(move || disk.store(&signed, heartbeat.as_ref())).await;
        written.map_err(std::io::Error::other)?
    }

    /// Says what is to become of the agent. Nothing, while it is not known what holds: an agent that was stopped must
    /// not run again because its sidecar forgot why.
    fn tell_supervisor(&self, proxy: &Proxy) {
        if self.gate.orders().is_none() {
            return;
        }
        let snapshot = proxy.mesh.snapshot();
        let svid = proxy.svid.current().or_else(|| self.given_up.current());
        let order = self
            .gate
            .kills(gate::own(&snapshot, svid.as_ref().map(|svid| svid.result())));
        let order = order.as_ref().map(|order| (order.id.as_str(), order.reason.as_str()));
        self.supervisor.tell(order);
    }

    /// For whoever looks at the process from outside.
    fn show(&self) {
        let known = self.held().is_some() && self.granted.is_some();
        let lost = self.gate.lease().is_lost();
        let orders = self.gate.orders().map_or(0, |orders| orders.all().len());
        metrics::gauge!("aip_kill_orders").set(orders as f64);
        metrics::gauge!("aip_kill_lease_lost").set(if lost { 1.0 } else { 0.0 });
        self.ready.set(READY, known && !lost);
    }

    fn version(&self) -> KillAck {
        let (term, epoch) = self.hold.version().unwrap_or_default();
        KillAck {
            term,
            epoch,
            ..KillAck::default()
        }
    }

    fn acknowledged(&self, cuts: Cuts, arrived: Instant) -> KillAck {
        let took = arrived.elapsed();
        metrics::histogram!("aip_kill_enforcement_seconds").record(took.as_secs_f64());
        KillAck {
            connections_cut: cuts.connections,
            streams_cut: cuts.streams,
            enforced_micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            ..self.version()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
