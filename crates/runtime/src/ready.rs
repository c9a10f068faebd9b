//! Named readiness gates: the process is ready when all are open, and says which is not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The gates of one process.
#[derive(Debug, Clone)]
pub struct Readiness {
    gates: Arc<Mutex<BTreeMap<&'static str, bool>>>,
    changed: watch::Sender<()>,
}

impl Readiness {
    /// All gates closed.
    pub fn new(gates: &[&'static str]) -> Self {
        let gates = gates.iter().map(|g| (*g, false)).collect();
        Self {
            gates: Arc::new(Mutex::new(gates)),
            changed: watch::Sender::new(()),
        }
    }

    /// Opens or closes a gate.
    pub fn set(&self, gate: &'static str, ready: bool) {
        let before = self
            .gates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(gate, ready);
        if before != Some(ready) {
            self.changed.send_replace(());
        }
    }

    /// Whether all gates are open.
    pub fn is_ready(&self) -> bool {
        self.missing().is_empty()
    }

    /// The gates that are still closed.
    pub fn missing(&self) -> Vec<&'static str> {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates
            .iter()
            .filter(|(_, open)| !**open)
            .map(|(gate, _)| *gate)
            .collect()
    }

    /// Resolves when all gates are open.
    pub async fn ready(&self) {
        let mut changed = self.changed.subscribe();
        while !self.is_ready() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}
