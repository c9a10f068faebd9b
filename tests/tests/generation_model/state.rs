//! What the store, the agent's sidecar and its peers know, as small as it can be.

/// A generation of the agent.
pub(crate) type Generation = u8;
/// A run of the agent, a bit each.
pub(crate) type Runs = u8;

/// What the control plane has on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) revision: u8,
    pub(crate) generation: Generation,
    /// The last drift: the generation that began with it, and all runs that drifted.
    pub(crate) began: Generation,
    pub(crate) drifted: Runs,
    /// Nothing is issued before a person approves, and what that person approved has not run yet.
    pub(crate) blocks: bool,
    pub(crate) approved: bool,
}

impl Store {
    pub(crate) fn knows(self, run: u8) -> bool {
        self.drifted & (1 << run) != 0
    }

    /// Whether an SVID of this generation is revoked.
    pub(crate) fn revokes(self, generation: Generation) -> bool {
        generation < self.generation
    }
}

/// Why a sidecar is suspended, as it lies on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Marker {
    pub(crate) run: u8,
    pub(crate) generation: Generation,
    pub(crate) reported: bool,
}

/// The agent's sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Sidecar {
    pub(crate) run: u8,
    /// The generation of its SVID; none where it waits for one.
    pub(crate) svid: Option<Generation>,
    pub(crate) marker: Option<Marker>,
    /// Its configuration stream is up.
    pub(crate) stream: bool,
    /// The highest revision that it has seen, and the revocation of it itself.
    pub(crate) floor: u8,
    pub(crate) below: Generation,
    /// A greeting was answered since it last began to report.
    pub(crate) greeted: bool,
    /// It reports until it is answered.
    pub(crate) reporting: bool,
    /// The answer is on its way.
    pub(crate) answer: bool,
}

/// Somebody who calls the agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    pub(crate) stream: bool,
    pub(crate) floor: u8,
    /// It refuses SVIDs below this.
    pub(crate) below: Generation,
    /// The highest such that it was ever told.
    pub(crate) told: Generation,
}

/// All there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Mesh {
    pub(crate) store: Store,
    pub(crate) copy: Option<Store>,
    /// The store was put back.
    pub(crate) restored: bool,
    /// The highest revision that there was before it was.
    pub(crate) lost: u8,
    pub(crate) sidecar: Sidecar,
    pub(crate) peers: Vec<Peer>,
    /// Runs that truly drifted.
    pub(crate) edited: Runs,
    /// How often something may still happen.
    pub(crate) edits: u8,
    pub(crate) failures: u8,
    /// A drift that had been reported to a store which was lost was learnt again; also in a generation that was lost with it.
    pub(crate) learnt_again: bool,
    pub(crate) learnt_higher: bool,
}

impl Mesh {
    /// With so many peers, so many edits, and so many things that fail.
    pub(crate) fn of(peers: usize, edits: u8, failures: u8) -> Self {
        let peer = Peer {
            stream: false,
            floor: 0,
            below: 0,
            told: 0,
        };
        Self {
            store: Store {
                revision: 1,
                generation: 1,
                began: 0,
                drifted: 0,
                blocks: false,
                approved: false,
            },
            copy: None,
            restored: false,
            lost: 0,
            sidecar: Sidecar {
                run: 0,
                svid: Some(1),
                marker: None,
                stream: false,
                floor: 0,
                below: 0,
                greeted: false,
                reporting: false,
                answer: false,
            },
            peers: vec![peer; peers],
            edited: 0,
            edits,
            failures,
            learnt_again: false,
            learnt_higher: false,
        }
    }
}
