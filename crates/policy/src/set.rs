//! A set of attached policies, compiled into one program.

mod ambiguity;
mod amplification;
mod assigned;
mod compile;
mod definitions;
mod hoist;
pub(crate) mod insert;
mod operands;
pub(crate) mod program;
mod structure;
pub(crate) mod words;

use std::sync::Arc;

use regorus::Value;
use regorus::rvm::Program;

pub(crate) use compile::{Compiled, compiled, data_document};

use crate::facts::Facts;
use crate::input;
use crate::reads::{ReadSet, Reads};
use crate::source::{Diagnostic, PolicySource};

/// The policies that decide on a request, compiled into one program. Immutable; share it behind an `Arc`.
pub struct PolicySet {
    pub(crate) digest: Arc<str>,
    /// The program as compiled: the table of builtins that the guarded one calls into.
    pub(crate) original: Arc<Program>,
    pub(crate) guarded: Arc<Program>,
    pub(crate) data: Value,
    pub(crate) reads: ReadSet,
    pub(crate) members: Vec<Member>,
    pub(crate) cacheable: bool,
    /// Sensitive facts that some policy says to keep.
    pub(crate) keep: Vec<String>,
}

/// One policy of a set.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) reads: Reads,
    /// Facts that the policy may be run without.
    pub(crate) optional: Vec<String>,
    /// Sensitive facts that it says to keep for the audit.
    pub(crate) keep: Vec<String>,
    /// Whether it calls builtins whose result changes by itself.
    pub(crate) volatile: bool,
}

impl PolicySet {
    /// Compiles the policies into one set. The order of the policies doesn't matter.
    ///
    /// This is what a sidecar does with a bundle that it trusts: the lexical gates, the parser and compiler, and the
    /// checks on the compiled program. It doesn't run tests; see [`admission`](crate::admission) for the whole of it.
    ///
    /// # Errors
    ///
    /// What is wrong, in all policies as far as that can be told at once.
    pub fn compile(policies: &[PolicySource], mesh_data: &serde_json::Value) -> Result<Self, Vec<Diagnostic>> {
        compile::compile(policies, mesh_data)
    }

    /// The set without policies: it denies everything, `no_rule`.
    pub fn empty() -> Self {
        Self {
            digest: compile::digest(&[], &serde_json::Value::Null).into(),
            original: Arc::default(),
            guarded: Arc::default(),
            data: Value::new_object(),
            reads: ReadSet::default(),
            members: Vec::new(),
            cacheable: false,
            keep: Vec::new(),
        }
    }

    /// Digest over the names, sources and data of the policies, the data of the mesh and the library: 64 hex digits.
    /// Equal digests decide alike.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Which parts of the input the set can read.
    pub fn reads(&self) -> &ReadSet {
        &self.reads
    }

    /// Whether its decisions are cached.
    pub fn cacheable(&self) -> bool {
        self.cacheable
    }

    /// Names of its policies, sorted.
    pub fn policies(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.name.as_str())
    }

    /// Instructions of the program.
    pub fn instructions(&self) -> usize {
        self.original.instructions.len()
    }

    /// The facts that are not established, as far as its policies can tell, and of those the first that forbids to decide.
    pub(crate) fn missing(&self, facts: &Facts) -> Missing {
        let paths = input::unestablished(facts, &self.reads.reads);
        let blocking = paths
            .iter()
            .find(|(path, _)| {
                self.members.iter().any(|member| {
                    let covers = |optional: &String| {
                        path == optional
                            || path
                                .strip_prefix(optional.as_str())
                                .is_some_and(|rest| rest.starts_with('.'))
                    };
                    member.reads.touches(path) && !member.optional.iter().any(covers)
                })
            })
            .cloned();
        Missing { paths, blocking }
    }
}

impl std::fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicySet")
            .field("digest", &self.digest)
            .field("members", &self.members)
            .field("cacheable", &self.cacheable)
            .finish_non_exhaustive()
    }
}

/// Facts that are not established, with the reasons.
pub(crate) struct Missing {
    pub(crate) paths: Vec<(String, &'static str)>,
    pub(crate) blocking: Option<(String, &'static str)>,
}
