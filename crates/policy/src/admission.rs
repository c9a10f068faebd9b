//! May this policy be loaded? One pipeline for the command line, the control plane and a sidecar that reads files.

pub(crate) mod lexer;
pub(crate) mod lexical;
mod names;

use serde::{Deserialize, Serialize};

use crate::set::PolicySet;
use crate::source::{Diagnostic, PolicySource};

pub use lexical::OPTIONAL_FACTS;

/// What the pipeline found out about a policy that it admits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Parts of the input that the policy can read, sorted.
    pub reads: Vec<String>,
    /// Whether its decisions may be cached.
    pub cacheable: bool,
    /// What its decisions depend on that changes soonest: `stable`, `connection`, `request`, `clock` or `uncached`.
    pub volatility: String,
    /// Tests and cases that passed.
    pub tests_passed: usize,
    /// Instructions of its program.
    pub instructions: usize,
    /// Digest of the set that consists of this policy alone, without mesh data.
    pub digest: String,
}

/// The gates before the parser: what a sidecar repeats on a signed bundle before it compiles it.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn lexical_gate(name: &str, rego: &str) -> Result<(), Diagnostic> {
    lexical::check(name, rego)
}

/// Runs the whole pipeline in this process.
///
/// # Errors
///
/// Everything that is wrong, as far as that can be told at once.
pub fn admit(source: &PolicySource) -> Result<Admission, Vec<Diagnostic>> {
    let set = PolicySet::compile(std::slice::from_ref(source), &serde_json::Value::Null)?;
    Ok(Admission {
        reads: set.reads().paths(),
        cacheable: set.cacheable(),
        volatility: String::new(),
        tests_passed: 0,
        instructions: set.instructions(),
        digest: set.digest().to_owned(),
    })
}

/// The body of a child process that may die: a [`PolicySource`] as JSON in, a `Result<Admission, Vec<Diagnostic>>` as
/// JSON out. Who starts the process gives it a deadline.
pub fn serve(request_json: &[u8]) -> Vec<u8> {
    let outcome = match serde_json::from_slice::<PolicySource>(request_json) {
        Ok(source) => admit(&source),
        Err(error) => Err(vec![Diagnostic::new("(request)", "request", error.to_string())]),
    };
    serde_json::to_vec(&outcome).unwrap_or_default()
}
