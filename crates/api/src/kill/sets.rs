//! What becomes of two kill sets: which is higher, both together, and what follows both. Pure, and used alike by the
//! control plane, by sidecars and by the model that explores what the two do to each other.

use std::collections::BTreeSet;

use super::{KillSet, MAX_ORDERS, Order};

/// How a set stands to the one that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is higher, or nothing is held: it is to be taken.
    Higher,
    /// It is the one that is held.
    Same,
    /// It is lower.
    Lower,
    /// Of the same term and epoch, and it says something else.
    Fork,
}

/// How `new` stands to what is held. Nothing else decides whether a set is taken.
pub fn standing(held: Option<&KillSet>, new: &KillSet) -> Standing {
    let Some(held) = held else { return Standing::Higher };
    match new.version().cmp(&held.version()) {
        std::cmp::Ordering::Greater => Standing::Higher,
        std::cmp::Ordering::Less => Standing::Lower,
        std::cmp::Ordering::Equal if new == held => Standing::Same,
        std::cmp::Ordering::Equal => Standing::Fork,
    }
}

/// `next` with the orders of what holds already: what is enforced while `next` is on its way to the disk. An order that
/// `next` lifts holds until that is written, and one that it adds holds before.
pub fn both<'a>(holding: impl IntoIterator<Item = &'a KillSet>, next: &KillSet) -> KillSet {
    let mut both = next.clone();
    let mut known: BTreeSet<String> = both.orders.iter().map(|order| order.id.clone()).collect();
    for order in holding.into_iter().flat_map(|set| &set.orders) {
        if known.insert(order.id.clone()) {
            both.orders.push(order.clone());
        }
    }
    both
}

/// The set that follows `current` and one that a sidecar showed and this store never issued: the store was restored from
/// a copy, and what was ordered since is only known to whoever took it. It is above both, and has the orders of both,
/// without those that have `ended` or expired: nothing is lifted but by a resume that this store knows of. `None`: more
/// orders than one set can have; then the sidecar keeps its own, and is served nothing.
pub fn above(current: &KillSet, shown: &KillSet, ended: &BTreeSet<String>, now: u64) -> Option<KillSet> {
    let known: BTreeSet<&str> = current.orders.iter().map(|order| order.id.as_str()).collect();
    let is_new = |order: &&Order| !known.contains(order.id.as_str()) && !ended.contains(&order.id);
    let mut orders = current.orders.clone();
    orders.extend(shown.orders.iter().filter(is_new).cloned());
    orders.retain(|order| order.in_force(now));
    orders.sort_by(|a, b| a.id.cmp(&b.id));
    let term = current.term.max(shown.term).checked_add(1)?;
    (orders.len() <= MAX_ORDERS).then(|| KillSet {
        v: 1,
        trust_domain: current.trust_domain.clone(),
        term,
        epoch: 0,
        issued_at: now,
        orders,
    })
}

/// The set after `current` in its term, without what has expired and without the orders that are `lifted`.
pub fn following(current: &KillSet, lifted: impl Fn(&Order) -> bool, now: u64) -> KillSet {
    let goes_on = |order: &&Order| order.in_force(now) && !lifted(order);
    KillSet {
        epoch: current.epoch.saturating_add(1),
        issued_at: now,
        orders: current.orders.iter().filter(goes_on).cloned().collect(),
        ..current.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kill::{Mode, Scope};

    fn order(n: u16) -> Order {
        Order {
            id: format!("00000000-0000-7000-8000-00000000{n:04x}"),
            scope: Scope::Mesh {},
            mode: Mode::Kill,
            reason: String::new(),
            issued_by: vec!["ann".into()],
            issued_at: 1,
            expires: None,
        }
    }

    fn set(term: u64, epoch: u64, orders: &[u16]) -> KillSet {
        KillSet {
            epoch,
            orders: orders.iter().map(|n| order(*n)).collect(),
            ..KillSet::empty("aip.internal".parse().unwrap(), term, 1)
        }
    }

    fn ids(set: &KillSet) -> Vec<String> {
        set.orders.iter().map(|order| order.id.clone()).collect()
    }

    #[test]
    fn a_set_is_higher_by_its_term_and_then_by_its_epoch() {
        let held = set(2, 5, &[1]);
        let stands = |new: &KillSet| standing(Some(&held), new);
        assert_eq!(stands(&set(2, 6, &[])), Standing::Higher);
        assert_eq!(stands(&set(3, 0, &[])), Standing::Higher);
        assert_eq!(stands(&set(1, 9, &[1])), Standing::Lower);
        assert_eq!(stands(&set(2, 5, &[1])), Standing::Same);
        assert_eq!(stands(&set(2, 5, &[2])), Standing::Fork);
        assert_eq!(standing(None, &set(1, 0, &[])), Standing::Higher);
    }

    #[test]
    fn while_a_set_is_written_the_orders_of_both_hold_once_each() {
        let (held, unwritten) = (set(1, 1, &[1, 2]), set(1, 2, &[2, 3]));
        let holds = both([&held, &unwritten], &set(1, 3, &[3, 4]));
        assert_eq!(ids(&holds).len(), 4);
        assert_eq!(holds.version(), (1, 3));
    }

    #[test]
    fn what_follows_is_above_both_and_has_the_orders_of_both() {
        let ended = BTreeSet::from([order(3).id]);
        let next = above(&set(1, 9, &[1]), &set(4, 2, &[2, 3]), &ended, 2).unwrap();
        assert_eq!((next.term, next.epoch), (5, 0));
        assert_eq!(ids(&next), [order(1).id, order(2).id], "3 was resumed here");
    }

    #[test]
    fn orders_that_have_no_room_are_never_dropped() {
        let many = |from: u16| set(1, 1, &(from..from + 600).collect::<Vec<_>>());
        assert!(above(&many(0), &many(600), &BTreeSet::new(), 2).is_none());
    }

    #[test]
    fn only_what_is_lifted_or_has_expired_is_not_in_the_next_set() {
        let mut current = set(1, 1, &[1, 2, 3]);
        (current.orders[2].mode, current.orders[2].expires) = (Mode::Pause, Some(5));
        let next = following(&current, |lifted| lifted.id == order(1).id, 5);
        assert_eq!((next.version(), ids(&next)), ((1, 2), vec![order(2).id]));
    }
}
