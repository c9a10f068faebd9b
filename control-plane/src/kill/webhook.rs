//! A receiver outside the mesh is told when an order is given or lifted: after the commit, beside the push to sidecars,
//! and without holding up either.
//!
//! Each set is compared with the one before, what happened is queued, and one event after another is delivered, each tried
//! again for a while. What waits is bounded and lies in memory: a control plane that ends forgets it.

mod send;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aip_api::kill::KillSet;
use aip_api::kill::webhook::{Event, Webhook, What};
use aip_runtime::backoff::Backoff;
use tokio::sync::mpsc;

use super::Publisher;
use crate::clock::Clock;
use crate::registry::Registry;
use send::Delivery;

/// Events that wait: the most orders that a set can have, so that lifting all at once fits.
const WAITING: usize = aip_api::kill::MAX_ORDERS;
/// How often one event is tried, and first and last bound of the wait between (full jitter below it): a receiver that
/// restarts is reached, and one that is gone holds up the next for some minutes at most.
const ATTEMPTS: u32 = 6;
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What tells of orders.
#[derive(Debug, Clone)]
pub struct Teller {
    /// Where the setting stands.
    pub registry: Registry,
    /// Where secrets lie, by name.
    pub secrets: PathBuf,
    /// The set in force.
    pub publisher: Arc<Publisher>,
}

/// What happened between two sets.
pub fn events(before: &KillSet, after: &KillSet, now: u64) -> Vec<Event> {
    let ids = |set: &KillSet| -> BTreeSet<String> { set.orders.iter().map(|order| order.id.clone()).collect() };
    let (old, new) = (ids(before), ids(after));
    let event = |order: &aip_api::kill::Order, event: What| Event {
        v: 1,
        delivery: format!("{}.{}", order.id, event.as_str()),
        event,
        trust_domain: after.trust_domain.clone(),
        term: after.term,
        epoch: after.epoch,
        at: now,
        order: order.clone(),
    };
    let given = after.orders.iter().filter(|order| !old.contains(&order.id));
    let lifted = before.orders.iter().filter(|order| !new.contains(&order.id));
    let given = given.map(|order| event(order, What::Activated));
    given.chain(lifted.map(|order| event(order, What::Lifted))).collect()
}

impl Teller {
    /// Runs until the task is dropped.
    pub async fn run(self) {
        let (queue, waiting) = mpsc::channel(WAITING);
        tokio::join!(self.follow(queue), self.deliver(waiting));
    }

    async fn follow(&self, queue: mpsc::Sender<Event>) {
        let mut published = self.publisher.subscribe();
        let mut before = published.borrow_and_update().clone();
        while published.changed().await.is_ok() {
            let after = published.borrow_and_update().clone();
            for event in events(&before.set, &after.set, self.clock().now()) {
                if queue.try_send(event).is_err() {
                    count("failed");
                    tracing::error!(reason = "queue_full", "a webhook is not sent: too many wait");
                }
            }
            before = after;
        }
    }

    async fn deliver(&self, mut waiting: mpsc::Receiver<Event>) {
        while let Some(event) = waiting.recv().await {
            match self.setting().await {
                Some(webhook) => self.tell(webhook, &event).await,
                None => continue,
            }
        }
    }

    /// Tries until it is taken, or was refused for good, or tried often enough.
    async fn tell(&self, mut webhook: Webhook, event: &Event) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        for attempt in 1..=ATTEMPTS {
            let sent = Delivery::prepare(&webhook, &self.secrets, event, self.clock().now());
            let sent = match sent.await {
                Ok(delivery) => delivery.send().await,
                Err(unsent) => Err(unsent),
            };
            let unsent = match sent {
                Ok(()) => {
                    count("sent");
                    return tracing::info!(delivery = event.delivery, attempt, "webhook sent");
                }
                Err(unsent) => unsent,
            };
            let reason = unsent.reason();
            metrics::counter!("aip_kill_webhook_attempts_failed_total", "reason" => reason).increment(1);
            tracing::warn!(delivery = event.delivery, attempt, reason, error = %unsent, "webhook not sent");
            if unsent.is_final() {
                break;
            }
            if attempt < ATTEMPTS {
                tokio::time::sleep(backoff.next()).await;
            }
            // It may have been mended meanwhile, or taken away.
            match self.setting().await {
                Some(now) => webhook = now,
                None => return,
            }
        }
        count("failed");
        tracing::error!(delivery = event.delivery, "a webhook is given up");
    }

    async fn setting(&self) -> Option<Webhook> {
        match self.registry.mesh_config().await {
            Ok(config) => config.value.kill.webhook,
            Err(refusal) => {
                tracing::error!(reason = refusal.reason(), "the webhook's setting can't be read");
                None
            }
        }
    }

    fn clock(&self) -> &Clock {
        &self.registry.clock
    }
}

fn count(result: &'static str) {
    metrics::counter!("aip_kill_webhooks_total", "result" => result).increment(1);
}

#[cfg(test)]
mod tests;
