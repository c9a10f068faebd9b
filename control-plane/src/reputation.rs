//! How agents behaved so far: events, the ledger that follows from them, and the score that is told.
//!
//! | module | what |
//! |---|---|
//! | [`event`] | what can happen to an agent's reputation |
//! | [`tally`] | observations, good and bad, that fade |
//! | [`ledger`] | what all events of one agent come to; nothing but a fold over them |
//! | [`score`] | the score of a ledger, at a moment; pure |
//! | [`book`] | ledgers in the store, and the change that adds an event and tells of the score |
//! | [`reports`] | what people and programs do: report, import, reset |
//! | [`observe`] | what hops say, gathered and written every few seconds |
//!
//! Not here: what a sidecar does with a score (`aip-sidecar`), nor how it travels ([`crate::config`]).

pub mod book;
pub mod event;
pub mod ledger;
pub mod observe;
pub mod reports;
pub mod score;
pub mod tally;

#[cfg(test)]
mod tests;
