//! Rego in, verdict out. Pure: no I/O, no clock of its own, no runtime.
//!
//! In the order in which a policy and then a request meet them:
//!
//! | module | what |
//! |---|---|
//! | [`source`] | a policy as it is written and shipped, and what can be wrong with it |
//! | [`admission`] | may this policy be loaded? |
//! | [`set`] | the policies that are attached together, compiled into one program |
//! | [`facts`] | what a policy can know about a request: the Rego input |
//! | [`evaluate`] | a worker's evaluator and its decision cache |
//! | [`verdict`], [`obligations`] | what comes out |
//! | [`limits`] | every bound, with the reason for its number |
//!
//! Not here: fetching, verifying and attaching policies, finding out facts, carrying out verdicts.

pub mod admission;
mod bounds;
pub mod builtins;
mod cache;
pub mod evaluate;
pub mod facts;
mod guard;
mod input;
mod library;
pub mod limits;
mod node;
pub mod obligations;
mod outcome;
mod reads;
pub mod set;
pub mod source;
pub mod verdict;

pub use admission::Admission;
pub use evaluate::{Evaluator, with_evaluator};
pub use facts::{
    Assurance, AttestationFacts, AttestationStatus, BudgetFacts, ContentFacts, DelegationFacts, Direction, Enforcement,
    Fact, Facts, Finding, INPUT_VERSION, Kept, PeerFacts, PeerKind, ProtocolFacts, ReputationFacts, ReputationStatus,
    RequestFacts, SENSITIVE_FACTS, TraceFacts,
};
pub use obligations::{Durability, Obligations};
pub use reads::ReadSet;
pub use set::PolicySet;
pub use source::{Diagnostic, PolicySource};
pub use verdict::{Decision, Rule, Verdict};
