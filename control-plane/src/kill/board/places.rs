//! Which row is whose, and how many streams there may be.

use aip_api::AgentName;
use aip_runtime::x509::PeerIdentity;

use super::Processes;
use crate::kill::line::Spoken;
use crate::refusal::{Reason, Refusal};

/// Streams in all, and of one agent: as many as there are config streams.
pub(super) const MAX_STREAMS: usize = 20_000;
pub(super) const MAX_STREAMS_EACH: usize = 256;
/// Streams for orders alone, in all: whoever was revoked has these, and takes none of the others. Of these, an agent has no
/// more than are free: however many a few agents want, there is one for the next, and half of what is left.
pub(super) const MAX_ORDERS_STREAMS: usize = 2_000;
/// Streams for orders alone of one line: a process has one, and who has a copy of its SVID takes no more than these. One more ends
/// the oldest.
pub(super) const MAX_ORDERS_STREAMS_LINE: usize = 4;

/// The row of who comes. An instance is a process's own word: nobody speaks for one that has another line, or showed a later
/// SVID of the same, unless that one has said that it ends.
pub(super) fn row(processes: &Processes, peer: &PeerIdentity, instance: &str, spoken: &Spoken) -> (AgentName, String) {
    let key = (peer.id.agent.clone(), instance.to_owned());
    let Some(held) = processes
        .get(&key)
        .filter(|held| held.stream.is_some() || !held.drained)
    else {
        return key;
    };
    let beside = match held.line == spoken.line {
        true if held.nth <= spoken.nth => return key,
        true => &peer.serial,
        false => &spoken.line,
    };
    (key.0, format!("{instance}/{beside}"))
}

/// Ends the oldest streams for orders alone of a line, where one more would be too many.
pub(super) fn give_way(processes: &mut Processes, key: &(AgentName, String), line: &str, now: u64) {
    let mut own: Vec<_> = processes
        .iter_mut()
        .filter(|(other, process)| *other != key && other.0 == key.0 && process.line == line)
        .filter_map(|(_, process)| {
            let id = process.stream.as_ref().filter(|stream| stream.orders_only)?.id;
            Some((id, process))
        })
        .collect();
    own.sort_by_key(|(id, _)| *id);
    let surplus = (own.len() + 1).saturating_sub(MAX_ORDERS_STREAMS_LINE);
    for (_, process) in own.into_iter().take(surplus) {
        if let Some(stream) = process.stream.take() {
            stream.cancel.cancel();
            process.left = now;
        }
    }
}

/// Whether one more stream of this kind may be open beside those of other processes.
pub(super) fn has_room(processes: &Processes, key: &(AgentName, String), orders_only: bool) -> Result<(), Refusal> {
    let most = if orders_only { MAX_ORDERS_STREAMS } else { MAX_STREAMS };
    let (mut total, mut own) = (0, 0);
    for (other, process) in processes.iter().filter(|(other, _)| *other != key) {
        if process
            .stream
            .as_ref()
            .is_some_and(|stream| stream.orders_only == orders_only)
        {
            total += 1;
            own += usize::from(other.0 == key.0);
        }
    }
    let free = most.saturating_sub(total);
    let each = match orders_only {
        true => MAX_STREAMS_EACH.min(free),
        false => MAX_STREAMS_EACH,
    };
    if free == 0 || own >= each {
        let detail = format!("{total} streams, {own} of {}; at most {most} and {each}", key.0);
        return Err(Refusal::new(Reason::SessionLimit, detail));
    }
    Ok(())
}
