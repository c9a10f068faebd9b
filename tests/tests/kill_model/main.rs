//! Every order of events of a small mesh (two orders, one copy of the store from which it is restored once) explored: with
//! two sidecars, and with one whose streams are lost, whose disk refuses to write, and where either side restarts. The model decides
//! with the functions that the control plane and the sidecars decide with ([`aip_api::kill::sets`]).
//!
//! A stream is a TLS connection: it loses its tail, and neither repeats nor reorders; what happens at one sidecar, at the
//! other and at the control plane comes in any order.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod events;
mod state;

use std::num::NonZeroUsize;

use stateright::{Checker as _, HasDiscoveries, Model, Property};

use events::Event;
use state::{Mesh, Sidecar};

/// A mistake that one could make, to see that it would be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    /// A sidecar acknowledges before it has written.
    AcknowledgesFirst,
    /// A sidecar takes whatever it is sent, by a control plane that keeps to itself: alone, the one that is right makes up
    /// for the other.
    TakesAnything,
    /// A sidecar does not show what it enforces and could not write.
    HidesUnwritten,
    /// A restored control plane does not take up what sidecars show.
    KeepsToItself,
    /// A control plane takes the acknowledgement of another set of the same term and epoch for its own.
    TakesAnyAnswer,
    /// A control plane that has just taken up what a sidecar showed sends it what was published before.
    PushesTooEarly,
}

#[derive(Debug, Clone, Copy)]
struct Explored {
    mistake: Option<Mistake>,
    sidecars: usize,
    /// How often a stream is lost, a process restarts or a disk refuses to write.
    failures: u8,
}

/// All that can happen to two sidecars: sets and answers on their way, and the store restored, which ends all streams.
const TWO: Explored = Explored {
    mistake: None,
    sidecars: 2,
    failures: 0,
};
/// All that can happen to one, of which two things fail: a stream, a disk, or either process, at any point.
const ONE: Explored = Explored {
    mistake: None,
    sidecars: 1,
    failures: 2,
};

const NEVER_LIFTED: &str = "no order is lifted that nobody lifted";
const NEVER_LOWER: &str = "no sidecar goes below what it wrote";
const ACKNOWLEDGED: &str = "what is acknowledged is enforced and written";
const CONVERGED: &str = "where all have acknowledged, the orders of all hold";
const LIFTED: &str = "an order can be lifted everywhere";
const RESTORED: &str = "a restored control plane comes above what it lost";

impl Model for Explored {
    type State = Mesh;
    type Action = Event;

    fn init_states(&self) -> Vec<Mesh> {
        vec![Mesh::of(self.sidecars, self.failures)]
    }

    fn actions(&self, mesh: &Mesh, events: &mut Vec<Event>) {
        events.extend(events::all(self.sidecars).filter(|event| event.may_come(mesh)));
    }

    fn next_state(&self, mesh: &Mesh, event: Event) -> Option<Mesh> {
        let mut next = mesh.clone();
        next.after(event, self.mistake);
        (next != *mesh).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_LIFTED, |_, mesh: &Mesh| {
                let holds = |s: &Sidecar| (s.wrote | s.enforced_once) & !mesh.lifted & !s.enforced == 0;
                mesh.sidecars.iter().all(holds)
            }),
            Property::always(NEVER_LOWER, |_, mesh: &Mesh| {
                mesh.sidecars.iter().all(|s| s.disk.version() >= s.highest)
            }),
            Property::always(ACKNOWLEDGED, |_, mesh: &Mesh| {
                mesh.sidecars.iter().all(|s| {
                    let missing = |set: state::Set| set.orders & !mesh.lifted & !(s.enforced & s.disk.orders);
                    s.acknowledged
                        .is_none_or(|set| s.disk.version() >= set.version() && missing(set) == 0)
                })
            }),
            Property::always(CONVERGED, |_, mesh: &Mesh| {
                let all = mesh.sidecars.iter().all(|s| s.acknowledged == Some(mesh.store.current));
                let wrote = mesh.sidecars.iter().fold(0, |all, s| all | s.wrote);
                !all || wrote & !mesh.lifted & !mesh.store.current.orders == 0
            }),
            Property::sometimes(LIFTED, |_, mesh: &Mesh| {
                let lifted = |s: &Sidecar| s.wrote != 0 && s.enforced == 0 && s.acknowledged.is_some();
                mesh.lifted != 0 && mesh.sidecars.iter().all(lifted)
            }),
            Property::sometimes(RESTORED, |_, mesh: &Mesh| {
                let restored = |s: &Sidecar| s.acknowledged.is_some_and(|set| set.term > 1 && set.orders != 0);
                mesh.sidecars.iter().all(restored)
            }),
        ]
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(4)
}

#[test]
fn no_order_of_events_lifts_an_order_that_nobody_lifted() {
    for explored in [ONE, TWO] {
        let checker = explored.checker().threads(threads()).spawn_bfs().join();
        println!("{} states of {explored:?}", checker.unique_state_count());
        checker.assert_properties();
        assert!(
            checker.unique_state_count() > 10_000,
            "{}",
            checker.unique_state_count()
        );
    }
}

#[test]
fn each_mistake_that_one_could_make_is_found() {
    for (mistake, broken) in [
        (Mistake::AcknowledgesFirst, ACKNOWLEDGED),
        (Mistake::TakesAnything, NEVER_LOWER),
        (Mistake::HidesUnwritten, NEVER_LIFTED),
        (Mistake::KeepsToItself, NEVER_LIFTED),
        (Mistake::TakesAnyAnswer, ACKNOWLEDGED),
        (Mistake::PushesTooEarly, NEVER_LIFTED),
    ] {
        let explored = Explored {
            mistake: Some(mistake),
            ..ONE
        };
        let checker = explored
            .checker()
            .threads(threads())
            .finish_when(HasDiscoveries::AllOf([broken].into()))
            .spawn_bfs()
            .join();
        assert!(
            checker.discovery(broken).is_some(),
            "{mistake:?} does not break that {broken}"
        );
    }
}
