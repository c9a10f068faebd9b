//! What can happen, and what then is.

use aip_api::kill::sets::{self, Standing};

use super::Mistake;
use super::state::{Answer, Mesh, ORDERS, Set, Sidecar, Stream, Taking, order};

/// One step of somebody; the number is the sidecar's or the order's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    Stop(u8),
    Resume(u8),
    Publish,
    Copy,
    Restore,
    ControlPlaneRestarts,
    Connect(u8),
    Cut(u8),
    Push(u8),
    PushArrives(u8),
    Write(u8),
    WriteFails(u8),
    TryAgain(u8),
    Acknowledge(u8),
    AnswerArrives(u8),
    SidecarRestarts(u8),
}

use Event::*;

/// All of them.
pub(crate) fn all(sidecars: usize) -> impl Iterator<Item = Event> {
    let of_orders = (0..ORDERS).flat_map(|n| [Stop(n), Resume(n)]);
    let of_sidecars = (0..sidecars).map(|n| u8::try_from(n).unwrap()).flat_map(|n| {
        [
            Connect(n),
            Cut(n),
            Push(n),
            PushArrives(n),
            Write(n),
            WriteFails(n),
            TryAgain(n),
            Acknowledge(n),
            AnswerArrives(n),
            SidecarRestarts(n),
        ]
    });
    let of_all = [Publish, Copy, Restore, ControlPlaneRestarts];
    of_orders.chain(of_all).chain(of_sidecars)
}

impl Event {
    /// Whether something fails; that the store is restored from its copy is counted apart.
    fn is_failure(self) -> bool {
        matches!(self, Cut(_) | WriteFails(_) | SidecarRestarts(_) | ControlPlaneRestarts)
    }

    /// Whether it can happen now. Each order is given and lifted once, and the store is copied and restored once.
    pub(crate) fn may_come(self, mesh: &Mesh) -> bool {
        let sidecar = |n: u8| &mesh.sidecars[usize::from(n)];
        let stream = |n: u8| sidecar(n).stream.as_ref();
        if self.is_failure() && mesh.failures == 0 {
            return false;
        }
        let idle = |n: u8| sidecar(n).taking == Taking::Nothing;
        match self {
            // The second is given after the first, which loses no generality: they are alike.
            Stop(n) => mesh.given == (1 << n) - 1,
            Resume(n) => mesh.store.current.orders & (1 << n) != 0 && mesh.lifted & (1 << n) == 0,
            Publish => mesh.published != mesh.store.current,
            Copy => mesh.copy.is_none() && mesh.life == 0,
            Restore => mesh.copy.is_some(),
            ControlPlaneRestarts => true,
            Connect(n) => stream(n).is_none() && idle(n),
            Cut(n) => stream(n).is_some(),
            Push(n) => stream(n).is_some_and(|s| s.outstanding.is_none()),
            PushArrives(n) => idle(n) && stream(n).is_some_and(|s| s.push.is_some() && s.answer.is_none()),
            Write(n) | WriteFails(n) => matches!(sidecar(n).taking, Taking::Enforced(_)),
            TryAgain(n) => idle(n) && sidecar(n).unwritten.is_some() && stream(n).is_none_or(|s| s.answer.is_none()),
            Acknowledge(n) => matches!(sidecar(n).taking, Taking::Written(_)),
            AnswerArrives(n) => stream(n).is_some_and(|s| s.answer.is_some()),
            SidecarRestarts(_) => true,
        }
    }
}

impl Mesh {
    /// It happened.
    pub(crate) fn after(&mut self, event: Event, mistake: Option<Mistake>) {
        self.failures -= u8::from(event.is_failure());
        match event {
            Stop(n) => {
                let mut next = sets::following(&self.store.current.real(), |_| false, self.life.into());
                next.orders.push(order(n));
                self.store.put(Set::of(&next));
                self.given |= 1 << n;
            }
            Resume(n) => {
                let lifted = order(n).id;
                let next = sets::following(&self.store.current.real(), |order| order.id == lifted, self.life.into());
                self.store.put(Set::of(&next));
                self.store.ended |= 1 << n;
                self.lifted |= 1 << n;
            }
            Publish => self.published = self.store.current,
            Copy => self.copy = Some(self.store.clone()),
            Restore => {
                if let Some(copy) = self.copy.take() {
                    (self.store, self.life) = (copy, self.life + 1);
                    self.begin();
                }
            }
            ControlPlaneRestarts => self.begin(),
            Connect(n) => self.connect(n, mistake),
            Push(n) => self.push(n, mistake),
            AnswerArrives(n) => self.answer_arrives(n, mistake),
            Cut(n) | PushArrives(n) | Write(n) | WriteFails(n) | TryAgain(n) | Acknowledge(n) | SidecarRestarts(n) => {
                self.sidecars[usize::from(n)].after(event, mistake)
            }
        }
    }

    /// The control plane begins: it publishes what stands in its store, and remembers nobody.
    fn begin(&mut self) {
        self.published = self.store.current;
        for sidecar in &mut self.sidecars {
            (sidecar.stream, sidecar.acknowledged) = (None, None);
        }
    }

    fn shown(&mut self, set: Set, mistake: Option<Mistake>) -> (u8, u8) {
        match mistake {
            Some(Mistake::KeepsToItself | Mistake::TakesAnything) => (0, 0),
            Some(Mistake::PushesTooEarly) => {
                self.store.shown(set, self.life);
                (0, 0)
            }
            _ => self.store.shown(set, self.life),
        }
    }

    /// The sidecar says hello: it shows what it wrote, and what it enforces and could not write.
    fn connect(&mut self, n: u8, mistake: Option<Mistake>) {
        let sidecar = &self.sidecars[usize::from(n)];
        let unwritten = sidecar.unwritten.filter(|_| mistake != Some(Mistake::HidesUnwritten));
        let (held, published) = (sidecar.disk, self.published);
        let mut floor = (0, 0);
        for set in unwritten.into_iter().chain([held]) {
            floor = self.shown(set, mistake).max(floor);
        }
        let sidecar = &mut self.sidecars[usize::from(n)];
        sidecar.stream = Some(Stream {
            unwritten,
            held: Some(held),
            floor,
            ..Stream::default()
        });
        if held == published {
            sidecar.acknowledged = Some(held);
        }
    }

    fn push(&mut self, n: u8, mistake: Option<Mistake>) {
        let published = self.published;
        let Some(stream) = self.stream(n) else { return };
        let early = published.version() < stream.floor && mistake != Some(Mistake::PushesTooEarly);
        if early || stream.held == Some(published) {
            return;
        }
        stream.push = Some(published);
        (stream.held, stream.outstanding) = (Some(published), Some(published));
    }

    fn answer_arrives(&mut self, n: u8, mistake: Option<Mistake>) {
        let published = self.published;
        let Some(stream) = self.stream(n) else { return };
        let (answer, outstanding, unwritten) = (stream.answer.take(), stream.outstanding.take(), stream.unwritten);
        match answer {
            Some(Answer::Taken(version)) => {
                // Another set of the same term and epoch, of a life of the store that was lost.
                let lost = unwritten.is_some_and(|set| set.version() == version && set != published);
                let late = Some(published).filter(|_| !lost || mistake == Some(Mistake::TakesAnyAnswer));
                let of = outstanding.or(late).filter(|set| set.version() == version);
                let sidecar = &mut self.sidecars[usize::from(n)];
                match of {
                    Some(set) if sidecar.acknowledged.is_none_or(|held| held.version() < version) => {
                        sidecar.acknowledged = Some(set);
                    }
                    Some(_) => {}
                    None if lost => {}
                    // There is no such set to acknowledge: the control plane ends the stream.
                    None => sidecar.stream = None,
                }
            }
            Some(Answer::NotHigher(set)) => {
                let floor = self.shown(set, mistake);
                if let Some(stream) = self.stream(n) {
                    (stream.held, stream.floor) = (Some(set), floor.max(stream.floor));
                }
            }
            Some(Answer::NotPersisted) | None => {}
        }
    }

    fn stream(&mut self, n: u8) -> Option<&mut Stream> {
        self.sidecars[usize::from(n)].stream.as_mut()
    }
}

impl Sidecar {
    fn after(&mut self, event: Event, mistake: Option<Mistake>) {
        match (event, self.taking) {
            (Cut(_), _) => self.stream = None,
            (PushArrives(_), _) => {
                if let Some(set) = self.stream.as_mut().and_then(|stream| stream.push.take()) {
                    self.take(set, mistake);
                }
            }
            (TryAgain(_), _) => {
                if let Some(set) = self.unwritten {
                    self.take(set, mistake);
                }
            }
            (Write(_), Taking::Enforced(set)) => {
                (self.disk, self.enforced, self.unwritten) = (set, set.orders, None);
                self.wrote |= set.orders;
                self.highest = self.highest.max(set.version());
                self.taking = Taking::Written(set);
            }
            (WriteFails(_), Taking::Enforced(set)) => {
                (self.unwritten, self.taking) = (Some(set), Taking::Nothing);
                self.answer(Answer::NotPersisted);
            }
            (Acknowledge(_), Taking::Written(set)) => {
                self.taking = Taking::Nothing;
                self.answer(Answer::Taken(set.version()));
            }
            // What it goes on from is what it wrote.
            (SidecarRestarts(_), _) => {
                (self.stream, self.unwritten, self.taking) = (None, None, Taking::Nothing);
                (self.enforced, self.enforced_once) = (self.disk.orders, self.disk.orders);
            }
            _ => {}
        }
    }

    fn take(&mut self, set: Set, mistake: Option<Mistake>) {
        let standing = match mistake {
            Some(Mistake::TakesAnything) => Standing::Higher,
            _ => sets::standing(Some(&self.disk.real()), &set.real()),
        };
        match standing {
            Standing::Higher => {
                let holding = [Some(self.disk), self.unwritten].into_iter().flatten().map(Set::real);
                let holding: Vec<_> = holding.collect();
                self.enforced = Set::of(&sets::both(&holding, &set.real())).orders;
                self.enforced_once |= self.enforced;
                self.taking = Taking::Enforced(set);
                if mistake == Some(Mistake::AcknowledgesFirst) {
                    self.answer(Answer::Taken(set.version()));
                }
            }
            Standing::Same => self.answer(Answer::Taken(set.version())),
            Standing::Lower | Standing::Fork => self.answer(Answer::NotHigher(self.disk)),
        }
    }

    fn answer(&mut self, answer: Answer) {
        if let Some(stream) = &mut self.stream {
            stream.answer = Some(answer);
        }
    }
}
