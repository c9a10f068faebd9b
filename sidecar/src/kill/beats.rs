//! Beats and what their answers grant. An answer counts only for the very question that it was given to: by this
//! process, not answered before, and about the set that is held. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use aip_api::kill::{Heartbeat, Lease, OnLost};

/// Beats that wait for their answers; older ones are given up.
const OUTSTANDING: usize = 8;
/// Shortest and longest time between two beats: a third of a lease that denies, so that one answer may be lost.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Why an answer grants nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Void {
    /// It answers another process.
    #[error("the heartbeat answers another process")]
    OtherInstance,
    /// It answers no beat that waits: a replay, or one that was given up.
    #[error("the heartbeat answers no beat that waits")]
    NotAsked,
    /// It is about another set than the one that is held.
    #[error("the heartbeat is about another kill set than the one that is held")]
    OtherSet,
}

impl Void {
    /// The stable reason.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::OtherInstance => "heartbeat_other_instance",
            Self::NotAsked => "heartbeat_not_asked",
            Self::OtherSet => "heartbeat_other_set",
        }
    }
}

/// The beats of one process; sequences rise over all its streams.
#[derive(Debug)]
pub struct Beats {
    instance: String,
    next: u64,
    sent: VecDeque<(u64, Duration)>,
}

impl Beats {
    /// Of this process.
    pub fn new(instance: String) -> Self {
        Self {
            instance,
            next: 1,
            sent: VecDeque::new(),
        }
    }

    /// The sequence of the next beat, which is sent at `now` of the boot clock.
    pub fn ask(&mut self, now: Duration) -> u64 {
        let sequence = self.next;
        self.next += 1;
        if self.sent.len() == OUTSTANDING {
            self.sent.pop_front();
        }
        self.sent.push_back((sequence, now));
        sequence
    }

    /// When the beat was sent that this answers. Nothing older is waited for from then on.
    ///
    /// # Errors
    /// The answer grants nothing.
    pub fn answered(&mut self, heartbeat: &Heartbeat, held: Option<(u64, u64)>) -> Result<Duration, Void> {
        if heartbeat.instance != self.instance {
            return Err(Void::OtherInstance);
        }
        let waits = self
            .sent
            .iter()
            .position(|(sequence, _)| *sequence == heartbeat.sequence);
        let at = waits.ok_or(Void::NotAsked)?;
        let (_, sent) = self.sent[at];
        self.sent.drain(..=at);
        match held == Some((heartbeat.term, heartbeat.epoch)) {
            true => Ok(sent),
            false => Err(Void::OtherSet),
        }
    }
}

/// How long to wait until the next beat.
pub fn interval(granted: Option<Lease>) -> Duration {
    match granted {
        Some(Lease {
            seconds,
            on_lost: OnLost::Deny,
        }) => (Duration::from_secs(seconds) / 3).clamp(EVERY.0, EVERY.1),
        Some(_) => EVERY.1,
        None => EVERY.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(instance: &str, sequence: u64, epoch: u64) -> Heartbeat {
        Heartbeat {
            v: 1,
            trust_domain: "aip.internal".parse().unwrap(),
            term: 1,
            epoch,
            at: 0,
            instance: instance.into(),
            sequence,
            lease: Lease::default(),
        }
    }

    #[test]
    fn an_answer_counts_once_for_its_own_question_and_the_held_set() {
        let (mut beats, held) = (Beats::new("me".into()), Some((1, 3)));
        let (first, second) = (beats.ask(Duration::from_secs(1)), beats.ask(Duration::from_secs(2)));
        assert_eq!(
            beats.answered(&heartbeat("other", first, 3), held),
            Err(Void::OtherInstance)
        );
        assert_eq!(beats.answered(&heartbeat("me", 99, 3), held), Err(Void::NotAsked));
        assert_eq!(
            beats.answered(&heartbeat("me", second, 3), held),
            Ok(Duration::from_secs(2))
        );
        for replayed in [second, first] {
            assert_eq!(beats.answered(&heartbeat("me", replayed, 3), held), Err(Void::NotAsked));
        }
        for (epoch, held) in [(4, held), (2, held), (3, None)] {
            let sequence = beats.ask(Duration::from_secs(3));
            assert_eq!(
                beats.answered(&heartbeat("me", sequence, epoch), held),
                Err(Void::OtherSet)
            );
        }
    }

    /// What the control plane takes for the time is for people: a lease counts from when this process asked, by a clock
    /// that nobody sets.
    #[test]
    fn an_answer_of_another_day_grants_as_much() {
        let mut beats = Beats::new("me".into());
        let now = aip_runtime::unix_now();
        for (second, at) in [(5, now - 86_400), (6, now + 86_400), (7, u64::MAX)] {
            let asked = Duration::from_secs(second);
            let answer = Heartbeat {
                at,
                ..heartbeat("me", beats.ask(asked), 3)
            };
            assert_eq!(beats.answered(&answer, Some((1, 3))), Ok(asked));
        }
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut beats = Beats::new("me".into());
        for second in 0..100 {
            beats.ask(Duration::from_secs(second));
        }
        assert_eq!(beats.sent.len(), OUTSTANDING);
        assert_eq!(
            beats.answered(&heartbeat("me", 1, 0), Some((1, 0))),
            Err(Void::NotAsked)
        );
    }

    #[test]
    fn a_lease_that_denies_is_renewed_in_time() {
        let deny = |seconds| {
            interval(Some(Lease {
                seconds,
                on_lost: OnLost::Deny,
            }))
        };
        assert_eq!((deny(6).as_secs(), deny(3_600).as_secs()), (2, 10));
        assert!(interval(None) < interval(Some(Lease::default())));
    }
}
