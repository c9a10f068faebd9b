//! Shares of the log's room, while it runs short: when half of it is full of what the control plane does not have, nobody may
//! take more than an eighth of it from then on. One noisy peer can't take the room that the others' records need.

use std::collections::HashMap;

/// From this part of the quota on, in unsent bytes, room is short.
const SHORT: u64 = 2;
/// What each may then take, as a part of the quota.
const SHARE: u64 = 8;
/// Parties that are told apart: beyond, all others share one share. As many as a sidecar has peers in a large mesh.
const MAX_PARTIES: usize = 4096;

#[derive(Debug)]
pub(super) struct Shares {
    total: u64,
    /// What this log may have of it.
    room: u64,
    short: bool,
    took: HashMap<String, u64>,
    others: u64,
}

impl Shares {
    pub(super) fn new(total: u64) -> Self {
        Self {
            total,
            room: total,
            short: false,
            took: HashMap::new(),
            others: 0,
        }
    }

    /// So many bytes are not sent yet, of all logs; this one may have `room`.
    pub(super) fn press(&mut self, unsent: u64, room: u64) {
        self.room = room;
        let short = unsent > self.total / SHORT;
        if short != self.short {
            tracing::warn!(unsent, short, "room in the audit log runs short, or does no more");
        }
        self.short = short;
        if !short {
            self.took.clear();
            self.others = 0;
        }
    }

    /// Whether a request of this party may be recorded.
    pub(super) fn allows(&self, from: &str) -> bool {
        if !self.short {
            return true;
        }
        let full = self.took.len() >= MAX_PARTIES;
        let took = self
            .took
            .get(from)
            .copied()
            .unwrap_or(if full { self.others } else { 0 });
        took < self.room / SHARE
    }

    /// A record of its request took so many bytes.
    pub(super) fn took(&mut self, from: &str, bytes: u64) {
        if !self.short {
            return;
        }
        let full = self.took.len() >= MAX_PARTIES;
        match self.took.get_mut(from) {
            Some(took) => *took += bytes,
            None if full => self.others += bytes,
            None => drop(self.took.insert(from.to_owned(), bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_noisy_peer_leaves_room_for_the_others() {
        let mut shares = Shares::new(8_000);
        shares.took("noisy", 5_000);
        assert!(shares.allows("noisy"), "there is room");
        shares.press(4_001, 8_000);
        let mut written = 0;
        while shares.allows("noisy") {
            shares.took("noisy", 100);
            written += 100;
        }
        assert_eq!(written, 1_000);
        assert!(shares.allows("quiet"));
        for n in 0..2 * MAX_PARTIES {
            shares.took(&n.to_string(), 1);
        }
        assert!(shares.took.len() <= MAX_PARTIES && shares.allows("one more") == (shares.others < 1_000));
        shares.press(3_999, 4_000);
        shares.took("noisy", 5_000);
        assert!(shares.allows("noisy"), "the control plane has it now");
    }
}
