//! Which agent a caller recorded that it called with a hop: a hop's id is its caller's, for one call. Who was not called can put
//! a record with that id into its own log, and no more: it neither stands in for the record of the one that was called, nor
//! makes that a second use.

use std::collections::HashMap;

use aip_api::id::HopId;

/// A hop, by its two ends and its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) hop: HopId,
    pub(super) caller: u32,
    pub(super) callee: u32,
}

/// What a caller's log says of a hop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) callee: u32,
    /// The log and the record that say it.
    pub(super) log: u32,
    pub(super) seq: u64,
    /// Both ends were held against each other.
    done: bool,
}

/// The hops of all callers.
#[derive(Debug, Default)]
pub(super) struct Calls(HashMap<(u32, HopId), Call>);

impl Calls {
    /// Notes a call. Where its id was used before, what for: the first use stays.
    pub(super) fn add(&mut self, key: Key, log: u32, seq: u64) -> Option<Call> {
        let call = Call {
            callee: key.callee,
            log,
            seq,
            done: false,
        };
        match self.0.entry((key.caller, key.hop)) {
            std::collections::hash_map::Entry::Occupied(first) => Some(*first.get()),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(call);
                None
            }
        }
    }

    /// Both ends of it were held against each other.
    pub(super) fn done(&mut self, key: Key) {
        if let Some(call) = self.0.get_mut(&(key.caller, key.hop)) {
            call.done = true;
        }
    }

    /// Whether both ends of it were held against each other already.
    pub(super) fn is_done(&self, key: Key) -> bool {
        let call = self.0.get(&(key.caller, key.hop));
        call.is_some_and(|call| call.done && call.callee == key.callee)
    }

    /// The call of another agent under this id, by the caller's own log.
    pub(super) fn elsewhere(&self, key: Key) -> Option<Call> {
        let call = self.0.get(&(key.caller, key.hop)).copied();
        call.filter(|call| call.callee != key.callee)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A verifier holds one for each hop.
    #[test]
    fn what_stays_of_a_call_is_small() {
        assert!(size_of::<((u32, HopId), Call)>() <= 48 && size_of::<Key>() <= 24);
    }
}
