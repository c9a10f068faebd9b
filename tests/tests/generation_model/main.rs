//! Every order of events of a small mesh explored, as far as generations go: an agent that drifts, its sidecar, and peers
//! that hear what is revoked; reports and streams that are lost, processes that restart, and a store that is restored from a
//! copy once. What a report does is decided by the function with which the control plane decides
//! ([`aip_api::generation::of_report`]).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod events;
mod state;

use std::num::NonZeroUsize;

use stateright::{Checker as _, HasDiscoveries, Model, Property};

use events::Event;
use state::Mesh;

/// A mistake that one could make, to see that it would be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    /// A sidecar that was answered once never reports again.
    ReportsOnce,
    /// A sidecar whose report fails takes the revocation that it holds for an answer.
    TakesItsOwnWord,
    /// A peer drops a revocation that the control plane does not have any more.
    ForgetsRevocations,
    /// A sidecar that is refused for its generation does not take that for a control plane that is there.
    WaitsToBeLetIn,
    /// A control plane takes no report of a generation that it does not know.
    TakesOnlyItsOwn,
}

#[derive(Debug, Clone, Copy)]
struct Explored {
    mistake: Option<Mistake>,
    peers: usize,
    edits: u8,
    failures: u8,
}

/// Two peers, of which one may join late.
const PEERS: Explored = Explored {
    mistake: None,
    peers: 2,
    edits: 1,
    failures: 1,
};
/// One that drifts twice, with more that fails.
const TWICE: Explored = Explored {
    mistake: None,
    peers: 1,
    edits: 2,
    failures: 2,
};

const NEVER_SERVED: &str = "no peer takes a generation again that it was told is over";
const SUSPENDED: &str = "a run that drifted serves nothing";
const LEARNT: &str = "a control plane that lets a drifted sidecar in, and that it is done with, knows of the drift";
const TOGETHER: &str = "what is blocked is revoked, and by the generation that began with it";
const AGAIN: &str = "a restored control plane learns of a drift that was reported before";
const HIGHER: &str = "a restored control plane learns of a drift in a generation that it never had";

fn learnt(mesh: &Mesh) -> bool {
    let (sidecar, store) = (&mesh.sidecar, &mesh.store);
    let Some(marker) = sidecar.marker else { return true };
    let is_done = marker.reported && !sidecar.greeted && !sidecar.reporting;
    !(sidecar.stream && is_done) || store.knows(marker.run) || store.revokes(marker.generation)
}

impl Model for Explored {
    type State = Mesh;
    type Action = Event;

    fn init_states(&self) -> Vec<Mesh> {
        vec![Mesh::of(self.peers, self.edits, self.failures)]
    }

    fn actions(&self, mesh: &Mesh, events: &mut Vec<Event>) {
        events.extend(events::all(self.peers).filter(|event| event.may_come(mesh)));
    }

    fn next_state(&self, mesh: &Mesh, event: Event) -> Option<Mesh> {
        let mut next = mesh.clone();
        next.after(event, self.mistake);
        (next != *mesh).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_SERVED, |_, mesh: &Mesh| {
                mesh.peers.iter().all(|peer| peer.below >= peer.told)
            }),
            Property::always(SUSPENDED, |_, mesh: &Mesh| {
                mesh.sidecar.marker.is_some() || mesh.edited & (1 << mesh.sidecar.run) == 0
            }),
            Property::always(LEARNT, |_, mesh: &Mesh| learnt(mesh)),
            Property::always(TOGETHER, |_, mesh: &Mesh| {
                !mesh.store.blocks || mesh.store.began == mesh.store.generation
            }),
            Property::sometimes(AGAIN, |_, mesh: &Mesh| mesh.learnt_again),
            Property::sometimes(HIGHER, |explored, mesh: &Mesh| explored.edits < 2 || mesh.learnt_higher),
        ]
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(4)
}

#[test]
fn no_order_of_events_brings_a_generation_back_or_hides_a_drift() {
    for explored in [PEERS, TWICE] {
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
        (Mistake::ReportsOnce, LEARNT),
        (Mistake::TakesItsOwnWord, LEARNT),
        (Mistake::ForgetsRevocations, NEVER_SERVED),
    ] {
        let explored = Explored {
            mistake: Some(mistake),
            ..TWICE
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

/// With these, what is to be possible is not.
#[test]
fn each_mistake_that_keeps_a_drift_back_is_found() {
    for mistake in [Mistake::WaitsToBeLetIn, Mistake::TakesOnlyItsOwn] {
        let explored = Explored {
            mistake: Some(mistake),
            ..TWICE
        };
        let checker = explored.checker().threads(threads()).spawn_bfs().join();
        assert!(checker.discovery(HIGHER).is_none(), "{mistake:?} keeps nothing back");
    }
}
