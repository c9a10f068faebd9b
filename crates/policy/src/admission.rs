//! May this policy be loaded? One pipeline for the command line, the control plane and a sidecar that reads files.

pub(crate) mod lexer;
pub(crate) mod lexical;
mod membership;
mod names;
mod trials;

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
/// The gates keep hostile text from the parser, but the parser, the compiler and the interpreter that runs the tests are
/// not ours. Where the author is not the one who runs this, let a child process do it: see [`serve`].
///
/// # Errors
///
/// Everything that is wrong, as far as that can be told at once: the gates on all parts first, then what the compiler
/// and the checks on the program say, then every test that fails.
pub fn admit(source: &PolicySource) -> Result<Admission, Vec<Diagnostic>> {
    let tests = source
        .tests
        .as_deref()
        .map(|tests| lexical::check_module(&source.name, tests, lexical::Module::Tests));
    let mut faults: Vec<Diagnostic> = tests.and_then(Result::err).into_iter().collect();
    let set = match PolicySet::compile(std::slice::from_ref(source), &serde_json::Value::Null) {
        Ok(set) if faults.is_empty() => set,
        Ok(_) => return Err(faults),
        Err(more) => {
            faults.extend(more);
            return Err(faults);
        }
    };
    let tests_passed = trials::run(source)?;
    Ok(Admission {
        reads: set.reads().paths(),
        cacheable: set.cacheable(),
        volatility: volatility(&set).to_owned(),
        tests_passed,
        instructions: set.instructions(),
        digest: set.digest().to_owned(),
    })
}

/// What the set depends on that changes soonest.
fn volatility(set: &PolicySet) -> &'static str {
    let reads = |paths: &[&str]| paths.iter().any(|path| set.reads().needs(path));
    if !set.cacheable() {
        "uncached"
    } else if reads(&["time", "source.attestation.age", "destination.attestation.age"]) {
        "clock"
    } else if reads(&["request", "protocol", "content", "delegation", "trace", "unestablished"]) {
        "request"
    } else if reads(&["source", "destination"]) {
        "connection"
    } else {
        "stable"
    }
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
