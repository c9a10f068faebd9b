//! What was answered under which key, in bounded memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aip_api::Digest;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};

use crate::refusal::{Reason, Refusal};

/// Answers that are kept, and of one person, so that nobody pushes out those of all.
const MAX_ANSWERS: usize = 4_096;
const MAX_ANSWERS_EACH: usize = 512;
/// Bytes of the answers that are kept; of one, so that a few large ones don't push out the many small ones that hold
/// tokens.
const MAX_BYTES: usize = 8 * 1024 * 1024;
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How long: a client's retries of the last hour.
const SECONDS: u64 = 3_600;

/// Whose, and which key.
pub(super) type Id = (String, String);

/// An answer that was given.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

#[derive(Debug)]
struct Entry {
    request: Digest,
    at: u64,
    // In the order in which they were begun; `None`: it is still being answered.
    answer: Option<(u64, Answer)>,
}

#[derive(Debug, Default)]
struct Kept {
    by_id: HashMap<Id, Entry>,
    by_age: BTreeMap<u64, Id>,
    bytes: usize,
    next: u64,
}

/// The answers of this process.
#[derive(Debug, Default)]
pub(in crate::admin) struct Answers(Mutex<Kept>);

/// A request that is being answered. Unless its answer is kept, its key is forgotten: it was cancelled, or refused.
pub(super) struct Running<'a> {
    answers: &'a Answers,
    id: Id,
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn forget(&mut self, order: u64) {
        let Some(entry) = self.by_age.remove(&order).and_then(|id| self.by_id.remove(&id)) else {
            return;
        };
        self.bytes -= entry.answer.map_or(0, |(_, answer)| answer.body.len());
    }

    /// Forgets the oldest until everything is within its bound.
    fn trim(&mut self, sub: &str, now: u64) {
        while let Some((order, id)) = self.by_age.first_key_value() {
            let old = self.by_id.get(id).is_none_or(|entry| entry.at + SECONDS <= now);
            if !old && self.by_age.len() <= MAX_ANSWERS && self.bytes <= MAX_BYTES {
                break;
            }
            let order = *order;
            self.forget(order);
        }
        let own = self.by_age.iter().filter(|(_, id)| id.0 == sub);
        let own: Vec<u64> = own.map(|(order, _)| *order).collect();
        for order in own.iter().take(own.len().saturating_sub(MAX_ANSWERS_EACH)) {
            self.forget(*order);
        }
    }
}

impl<'a> Running<'a> {
    /// Begins to answer; or the answer that was given before.
    ///
    /// # Errors
    /// The key was used for another request, or is being answered.
    pub(super) fn begin(
        answers: &'a Answers,
        id: Id,
        request: Digest,
        now: u64,
    ) -> Result<Result<Self, Answer>, Refusal> {
        let mut kept = answers.lock();
        kept.trim(&id.0, now);
        match kept.by_id.get(&id) {
            Some(entry) if entry.request != request => Err(Reason::IdempotencyMismatch.into()),
            Some(Entry { answer: None, .. }) => Err(Reason::IdempotencyInProgress.into()),
            Some(Entry {
                answer: Some((_, answer)),
                ..
            }) => Ok(Err(answer.clone())),
            None => {
                let entry = Entry {
                    request,
                    at: now,
                    answer: None,
                };
                kept.by_id.insert(id.clone(), entry);
                drop(kept);
                Ok(Ok(Self { answers, id }))
            }
        }
    }

    /// Keeps the answer, unless it is too large.
    pub(super) fn keep(self, answer: Answer) {
        if answer.body.len() > MAX_ANSWER_BYTES {
            return;
        }
        let mut kept = self.answers.lock();
        let (order, bytes) = (kept.next, answer.body.len());
        let Some(entry) = kept.by_id.get_mut(&self.id) else {
            return;
        };
        let at = entry.at;
        entry.answer = Some((order, answer));
        kept.next += 1;
        kept.bytes += bytes;
        kept.by_age.insert(order, self.id.clone());
        kept.trim(&self.id.0, at);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut kept = self.answers.lock();
        if kept.by_id.get(&self.id).is_some_and(|entry| entry.answer.is_none()) {
            kept.by_id.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: usize) -> Answer {
        Answer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: vec![0; bytes].into(),
        }
    }

    fn request() -> Digest {
        Digest::sha256(b"request")
    }

    fn done(answers: &Answers, sub: &str, key: usize, bytes: usize) {
        let id = (sub.to_owned(), key.to_string());
        let running = Running::begin(answers, id, request(), 0).unwrap();
        running
            .unwrap_or_else(|_| panic!("{key} was answered before"))
            .keep(answer(bytes));
    }

    fn held(answers: &Answers, sub: &str, key: usize, now: u64) -> bool {
        let id = (sub.to_owned(), key.to_string());
        Running::begin(answers, id, request(), now).unwrap().is_err()
    }

    #[test]
    fn nobody_pushes_out_the_answers_of_others_and_memory_is_bounded() {
        let answers = Answers::default();
        done(&answers, "alice", 0, 10);
        for key in 0..MAX_ANSWERS_EACH + 5 {
            done(&answers, "bob", key, 10);
        }
        assert!(held(&answers, "alice", 0, 0), "bob pushes out his own alone");
        assert!(!held(&answers, "bob", 0, 0) && held(&answers, "bob", MAX_ANSWERS_EACH + 4, 0));
        for key in 0..300 {
            done(&answers, "carol", key, MAX_ANSWER_BYTES);
        }
        assert!(answers.lock().bytes <= MAX_BYTES + MAX_ANSWER_BYTES);
        done(&answers, "dave", 0, MAX_ANSWER_BYTES + 1);
        assert!(!held(&answers, "dave", 0, 0), "too large to keep");
        assert!(!held(&answers, "carol", 299, SECONDS), "forgotten after an hour");
        let kept = answers.lock();
        assert_eq!((kept.bytes, kept.by_id.len()), (0, 0));
    }

    #[test]
    fn a_request_that_was_not_kept_can_be_done_again_and_one_that_runs_can_not() {
        let answers = Answers::default();
        let id = || ("alice".to_owned(), "k".to_owned());
        let running = Running::begin(&answers, id(), request(), 0).unwrap();
        let twice = Running::begin(&answers, id(), request(), 0);
        assert_eq!(twice.map(|_| ()).unwrap_err().reason(), "idempotency_in_progress");
        let other = Running::begin(&answers, id(), Digest::sha256(b"other"), 0);
        assert_eq!(other.map(|_| ()).unwrap_err().reason(), "idempotency_mismatch");
        drop(running);
        assert!(Running::begin(&answers, id(), request(), 0).unwrap().is_ok());
    }
}
