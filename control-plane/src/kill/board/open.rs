//! One open stream of a process, and what its session notes of that.

use std::sync::Arc;
use std::time::Instant;

use aip_api::AgentName;
use aip_api::kill::Lease;
use aip_api::wire::KillAck;
use aip_runtime::boottime;
use tokio_util::sync::CancellationToken;

use super::{Acked, Board};
use crate::registry::kills::GrantedLease;

/// Acknowledged sets that are remembered of each sidecar.
const ACKS: usize = 16;
/// Longest reason of a rejection that is kept, in characters.
const MAX_REASON: usize = 64;

/// One open stream; dropped, its process is out of reach.
#[derive(Debug)]
pub(in crate::kill) struct Open {
    pub(super) board: Arc<Board>,
    pub(super) process: (AgentName, String),
    pub(super) id: u64,
    /// The line of SVIDs that it speaks for.
    pub(in crate::kill) line: String,
    pub(in crate::kill) cancel: CancellationToken,
    /// It is for orders alone.
    pub(in crate::kill) orders_only: bool,
}

impl Open {
    /// Under which name its process stands on the board: its instance, but where another process has that.
    pub(in crate::kill) fn name(&self) -> &str {
        &self.process.1
    }

    /// It beats, and says to which beat it was granted what it goes by: the leases that must be noted before it is granted
    /// this one, unless they are already.
    pub(in crate::kill) fn to_note(&self, granted: u64, lease: Lease) -> Option<Vec<Lease>> {
        let mut to_note = None;
        self.board.update(self, |process| {
            process.grants.taken(granted);
            to_note = Some(process.grants.leases(Some(lease))).filter(|leases| *leases != process.noted);
        });
        to_note
    }

    /// These are noted.
    pub(in crate::kill) fn noted(&self, leases: Vec<Lease>) {
        self.board.update(self, |process| process.noted = leases);
    }

    /// It holds this set already.
    pub(in crate::kill) fn holds(&self, version: (u64, u64)) {
        self.board
            .update(self, |process| process.held = process.held.max(Some(version)));
        self.board.changed.send_replace(());
    }

    /// It answered a push.
    pub(in crate::kill) fn answered(&self, ack: KillAck) {
        let version = (ack.term, ack.epoch);
        let rejected: String = ack.rejected.chars().take(MAX_REASON).collect();
        self.board.update(self, |process| {
            process.rejected = Some(rejected.clone()).filter(|reason| !reason.is_empty());
            if !rejected.is_empty() {
                return;
            }
            process.held = process.held.max(Some(version));
            if process.acks.len() == ACKS {
                process.acks.pop_front();
            }
            process.acks.push_back(Acked {
                version,
                at: Instant::now(),
                ack,
            });
        });
        self.board.changed.send_replace(());
    }

    /// Its beat `sequence` is about to be answered with this grant.
    pub(in crate::kill) fn beats(&self, sequence: u64, lease: Lease) {
        self.board
            .update(self, |process| process.grants.granted(sequence, lease, boottime()));
    }

    /// It has drained: what is to be noted of it, where anything is.
    pub(in crate::kill) fn drained(&self) -> Option<GrantedLease> {
        let mut drained = None;
        self.board.update(self, |process| {
            process.drained = true;
            drained = (!process.noted.is_empty()).then(|| GrantedLease {
                agent: process.agent.clone(),
                instance: process.instance.clone(),
                serial: process.serial.clone(),
                line: Some(process.line.clone()),
                leases: process.noted.clone(),
                drained: true,
            });
        });
        drained
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("aip_kill_streams").decrement(1.0);
        let now = self.board.clock.now();
        self.board
            .update(self, |process| (process.stream, process.left) = (None, now));
        self.board.changed.send_replace(());
    }
}
