//! How agents behaved so far: events, the ledger that follows from them, and the score that is told.
//!
//! | module | what |
//! |---|---|
//! | [`event`] | what can happen to an agent's reputation |
//! | [`tally`] | observations, good and bad, that fade |
//! | [`ledger`] | what all events of one agent come to; nothing but a fold over them |
//! | [`score`] | the score of a ledger, at a moment; pure |
//! | [`book`] | ledgers in the store, and the change that adds an event and tells of the score |
//! | [`evidence`], [`lookups`] | whether what a report is about happened, by the audit; and how often that may be asked |
//! | [`reports`], [`signed`] | what verifiers report, by a token alone or by a key of their own |
//! | [`observe`] | what hops say, gathered and written every few seconds |
//! | [`drift`] | what a drift does |
//! | [`resets`] | forgetting what counts, by two people |
//! | [`statements`] | signed statements: made, and taken back after a restore |
//! | [`review`] | looking at all of them now and then |
//!
//! Not here: what a sidecar does with a score (`aip-sidecar`), nor how it travels ([`crate::config`]).

pub mod book;
mod drift;
pub mod event;
pub mod evidence;
pub mod ledger;
pub mod lookups;
pub mod observe;
pub mod reports;
mod resets;
mod review;
pub mod score;
pub mod signed;
pub mod statements;
pub mod tally;

#[cfg(test)]
mod tests;
