//! A set that a sidecar shows and this store never issued: the store was restored from a copy, and what was ordered
//! since is only known to whoever took it. The next set is above both, and has the orders of both: nothing is lifted
//! but by a resume that this store knows of. Pure.

use std::collections::BTreeSet;

use aip_api::kill::{KillSet, MAX_ORDERS};

/// The set that follows both; `None`: more orders than one set can have.
pub fn above(current: &KillSet, shown: &KillSet, ended: &BTreeSet<String>, now: u64) -> Option<KillSet> {
    let mut orders = current.orders.clone();
    for order in &shown.orders {
        let known = orders.iter().any(|held| held.id == order.id) || ended.contains(&order.id);
        if !known {
            orders.push(order.clone());
        }
    }
    orders.retain(|order| order.in_force(now));
    orders.sort_by(|a, b| a.id.cmp(&b.id));
    (orders.len() <= MAX_ORDERS).then(|| KillSet {
        v: 1,
        trust_domain: current.trust_domain.clone(),
        term: current.term.max(shown.term) + 1,
        epoch: 0,
        issued_at: now,
        orders,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aip_api::kill::{Mode, Order, Scope};

    fn order(n: u8) -> Order {
        Order {
            id: format!("00000000-0000-7000-8000-0000000000{n:02x}"),
            scope: Scope::Mesh {},
            mode: Mode::Kill,
            reason: String::new(),
            issued_by: vec!["ann".into()],
            issued_at: 1,
            expires: None,
        }
    }

    fn set(term: u64, epoch: u64, orders: &[u8]) -> KillSet {
        KillSet {
            epoch,
            orders: orders.iter().map(|n| order(*n)).collect(),
            ..KillSet::empty("aip.internal".parse().unwrap(), term, 1)
        }
    }

    #[test]
    fn what_follows_is_above_both_and_has_the_orders_of_both() {
        let ended = BTreeSet::from([order(3).id]);
        let next = above(&set(1, 9, &[1]), &set(4, 2, &[2, 3]), &ended, 2).unwrap();
        assert_eq!((next.term, next.epoch), (5, 0));
        let ids: Vec<_> = next.orders.iter().map(|o| o.id.clone()).collect();
        assert_eq!(ids, [order(1).id, order(2).id], "3 was resumed here");
    }

    #[test]
    fn orders_that_have_no_room_are_never_dropped() {
        let many = |from: u16| KillSet {
            orders: (from..from + 600)
                .map(|n| Order {
                    id: format!("00000000-0000-7000-8000-00000000{n:04x}"),
                    ..order(0)
                })
                .collect(),
            ..set(1, 1, &[])
        };
        assert!(above(&many(0), &many(600), &BTreeSet::new(), 2).is_none());
    }
}
