//! What can happen, and what then is.

use aip_api::generation::{OfReport, of_report};

use super::Mistake;
use super::state::{Marker, Mesh, Store};

/// One step of somebody; the number is the peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// What the agent runs is edited, and its sidecar suspends itself.
    Edit,
    /// The sidecar is let in, or is refused and hears why.
    Greet,
    /// It is pushed what stands in the store.
    Hear,
    Cut,
    /// It reports, and the store takes that or not.
    Report,
    /// It reports, and that goes nowhere.
    ReportFails,
    AnswerArrives,
    AnswerIsLost,
    /// The same run of the agent, another process of its sidecar.
    SidecarRestarts,
    /// A person approves what lies there now.
    Approve,
    /// Another run of the agent, whose sidecar asks for an SVID.
    AgentRestarts,
    PeerConnects(u8),
    PeerHears(u8),
    PeerIsCut(u8),
    Copy,
    Restore,
    Lift,
    ControlPlaneRestarts,
}

use Event::*;

/// All of them.
pub(crate) fn all(peers: usize) -> impl Iterator<Item = Event> {
    let of_peers = (0..peers).map(|n| u8::try_from(n).unwrap());
    let of_peers = of_peers.flat_map(|n| [PeerConnects(n), PeerHears(n), PeerIsCut(n)]);
    let of_all = [
        Edit,
        Greet,
        Hear,
        Cut,
        Report,
        ReportFails,
        AnswerArrives,
        AnswerIsLost,
        SidecarRestarts,
        Approve,
        AgentRestarts,
        Copy,
        Restore,
        Lift,
        ControlPlaneRestarts,
    ];
    of_all.into_iter().chain(of_peers)
}

impl Event {
    fn is_failure(self) -> bool {
        let fails = [Cut, ReportFails, AnswerIsLost, SidecarRestarts, ControlPlaneRestarts];
        fails.contains(&self) || matches!(self, PeerIsCut(_))
    }

    /// Whether it can happen now. The store is copied, restored and lifted once.
    pub(crate) fn may_come(self, mesh: &Mesh) -> bool {
        let sidecar = &mesh.sidecar;
        let peer = |n: u8| &mesh.peers[usize::from(n)];
        if self.is_failure() && mesh.failures == 0 {
            return false;
        }
        match self {
            Edit => mesh.edits > 0 && sidecar.marker.is_none() && sidecar.svid.is_some(),
            Greet => !sidecar.stream && sidecar.svid.is_some() && sidecar.floor <= mesh.store.revision,
            Hear | Cut => sidecar.stream,
            Report | ReportFails => sidecar.wants_to_report() && !sidecar.answer,
            AnswerArrives | AnswerIsLost => sidecar.answer,
            SidecarRestarts => true,
            Approve => mesh.store.blocks && !mesh.store.approved,
            AgentRestarts => sidecar.marker.is_some() && sidecar.run < 2,
            PeerConnects(n) => !peer(n).stream && peer(n).floor <= mesh.store.revision,
            PeerHears(n) | PeerIsCut(n) => peer(n).stream,
            Copy => mesh.copy.is_none() && !mesh.restored,
            Restore => mesh.copy.is_some(),
            Lift => mesh.restored && mesh.store.revision < mesh.lost,
            ControlPlaneRestarts => true,
        }
    }
}

impl super::state::Sidecar {
    fn wants_to_report(&self) -> bool {
        let unreported = self.marker.is_some_and(|marker| !marker.reported);
        let may = self.marker.is_some() && self.svid.is_some();
        may && (unreported || self.greeted || self.reporting)
    }

    fn is_answered(&mut self) {
        self.reporting = false;
        if let Some(marker) = &mut self.marker {
            marker.reported = true;
        }
    }
}

impl Mesh {
    /// It happened.
    pub(crate) fn after(&mut self, event: Event, mistake: Option<Mistake>) {
        self.failures -= u8::from(event.is_failure());
        match event {
            Edit => self.edit(),
            Greet => self.greet(mistake),
            Hear => {
                self.sidecar.floor = self.sidecar.floor.max(self.store.revision);
                self.sidecar.below = self.sidecar.below.max(self.store.generation);
            }
            Cut => self.sidecar.stream = false,
            Report => self.report(mistake),
            ReportFails | AnswerIsLost => self.fails(mistake),
            AnswerArrives => {
                self.sidecar.answer = false;
                self.sidecar.is_answered();
            }
            SidecarRestarts => self.end_sidecar(),
            Approve => {
                self.store.approved = true;
                self.store.revision += 1;
            }
            AgentRestarts => self.agent_restarts(),
            PeerConnects(n) => self.peers[usize::from(n)].stream = true,
            PeerIsCut(n) => self.peers[usize::from(n)].stream = false,
            PeerHears(n) => {
                let (peer, store) = (&mut self.peers[usize::from(n)], self.store);
                peer.floor = peer.floor.max(store.revision);
                peer.told = peer.told.max(store.generation);
                peer.below = match mistake {
                    Some(Mistake::ForgetsRevocations) => store.generation,
                    _ => peer.below.max(store.generation),
                };
            }
            Copy => self.copy = Some(self.store),
            Restore => self.restore(),
            Lift => self.store.revision = self.lost + 1,
            ControlPlaneRestarts => self.end_streams(),
        }
    }

    fn edit(&mut self) {
        let Some(generation) = self.sidecar.svid else { return };
        self.edits -= 1;
        self.edited |= 1 << self.sidecar.run;
        self.sidecar.greeted = false;
        self.sidecar.marker = Some(Marker {
            run: self.sidecar.run,
            generation,
            reported: false,
        });
    }

    fn greet(&mut self, mistake: Option<Mistake>) {
        let Some(svid) = self.sidecar.svid else { return };
        if self.store.revokes(svid) {
            return;
        }
        // Of a generation that this store never heard of: refused for that, and no stream.
        self.sidecar.stream = svid == self.store.generation;
        let counts = match mistake {
            Some(Mistake::ReportsOnce) => false,
            Some(Mistake::WaitsToBeLetIn) => self.sidecar.stream,
            _ => true,
        };
        self.sidecar.greeted |= counts && self.sidecar.marker.is_some();
    }

    /// As `Registry::report_drift`, with the rule that it has.
    fn report(&mut self, mistake: Option<Mistake>) {
        let (Some(marker), Some(svid)) = (self.sidecar.marker, self.sidecar.svid) else {
            return;
        };
        (self.sidecar.reporting, self.sidecar.greeted) = (true, false);
        if self.store.revokes(svid) {
            // Which the handshake says.
            return self.sidecar.is_answered();
        }
        let began = self.store.knows(marker.run).then_some(self.store.began.into());
        match of_report(svid.into(), began, self.store.generation.into()) {
            OfReport::Known => {}
            OfReport::Over => return,
            OfReport::Raises(_) if mistake == Some(Mistake::TakesOnlyItsOwn) && svid > self.store.generation => return,
            OfReport::Raises(to) => {
                self.learnt_again |= self.restored && marker.reported;
                self.learnt_higher |= svid > self.store.generation && marker.reported;
                self.store = Store {
                    revision: self.store.revision + 1,
                    generation: u8::try_from(to).unwrap(),
                    began: u8::try_from(to).unwrap(),
                    drifted: self.store.drifted | 1 << marker.run,
                    blocks: true,
                    approved: false,
                };
            }
        }
        self.sidecar.answer = true;
    }

    fn fails(&mut self, mistake: Option<Mistake>) {
        (self.sidecar.reporting, self.sidecar.greeted, self.sidecar.answer) = (true, false, false);
        let holds_it = self.sidecar.svid.is_some_and(|svid| svid < self.sidecar.below);
        if mistake == Some(Mistake::TakesItsOwnWord) && holds_it {
            self.sidecar.is_answered();
        }
    }

    /// The process ends; what is on its disk stays.
    fn end_sidecar(&mut self) {
        let sidecar = &mut self.sidecar;
        (sidecar.stream, sidecar.greeted) = (false, false);
        (sidecar.reporting, sidecar.answer) = (false, false);
    }

    /// Its sidecar reports with what it kept, once, and asks for an SVID with evidence that names the run that drifted: as
    /// `Registry::passage`.
    fn agent_restarts(&mut self) {
        let Some(marker) = self.sidecar.marker else { return };
        self.end_sidecar();
        self.sidecar.run += 1;
        // What was kept is not used for anything else again.
        self.sidecar.svid = None;
        if !self.store.knows(marker.run) && !self.store.revokes(marker.generation) {
            let to = self.store.generation.max(marker.generation) + 1;
            self.store = Store {
                revision: self.store.revision + 1,
                generation: to,
                began: to,
                drifted: self.store.drifted | 1 << marker.run,
                blocks: true,
                approved: false,
            };
        }
        if self.store.approved || !self.store.blocks {
            (self.store.blocks, self.store.approved) = (false, false);
            self.store.revision += 1;
            self.sidecar.svid = Some(self.store.generation);
            self.sidecar.marker = None;
        }
    }

    fn restore(&mut self) {
        if let Some(copy) = self.copy.take() {
            self.lost = self.store.revision;
            (self.store, self.restored) = (copy, true);
            self.end_streams();
        }
    }

    fn end_streams(&mut self) {
        (self.sidecar.stream, self.sidecar.answer) = (false, false);
        for peer in &mut self.peers {
            peer.stream = false;
        }
    }
}
