//! May this policy be loaded? One pipeline for the command line, the control plane and a sidecar that reads files.

pub(crate) mod lexer;
pub(crate) mod lexical;
mod membership;
mod names;
mod paths;
mod rehearsal;
mod trials;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::set::{self, PolicySet};
use crate::source::{Diagnostic, PolicySource};

pub use lexical::OPTIONAL_FACTS;
pub use paths::NEVER_ESTABLISHED;

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
    /// Facts without which it denies, sorted as in [`OPTIONAL_FACTS`]: it reads them, they can fail to be established, and it
    /// doesn't call them optional.
    #[serde(default)]
    pub denies_without: Vec<String>,
    /// What its author should know, and what isn't wrong enough to refuse it.
    #[serde(default)]
    pub warnings: Vec<Diagnostic>,
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
/// and the checks on the program say, then what could never do what it says, then every test that fails.
pub fn admit(source: &PolicySource) -> Result<Admission, Vec<Diagnostic>> {
    let tests = source
        .tests
        .as_deref()
        .map(|tests| lexical::check_module(&source.name, tests, lexical::Module::Tests));
    let mut faults: Vec<Diagnostic> = tests.and_then(Result::err).into_iter().collect();
    let compiled = match set::compiled(std::slice::from_ref(source), &serde_json::Value::Null) {
        Ok(compiled) if faults.is_empty() => compiled,
        Ok(_) => return Err(faults),
        Err(more) => {
            faults.extend(more);
            return Err(faults);
        }
    };
    let mut warnings = sense(&compiled, source, &format!("{}.rego", source.name))?;
    let denies_without = paths::denies_without(&compiled);
    let set = Arc::new(compiled.set);
    let (faults, more) = rehearsal::run(&set, source);
    if !faults.is_empty() {
        return Err(faults);
    }
    warnings.extend(more);
    let tests_passed = trials::run(source)?;
    Ok(Admission {
        reads: set.reads().paths(),
        cacheable: set.cacheable(),
        volatility: volatility(&set).to_owned(),
        tests_passed,
        instructions: set.instructions(),
        digest: set.digest().to_owned(),
        denies_without,
        warnings,
    })
}

/// Whether the policy can do what it says, in this version: what it reads is there, and what it says is carried out. A
/// sidecar doesn't ask this of a signed bundle: there the same mistakes end in a deny.
fn sense(compiled: &set::Compiled, source: &PolicySource, file: &str) -> Result<Vec<Diagnostic>, Vec<Diagnostic>> {
    let mut faults = paths::unknown(compiled, file);
    faults.extend(set::words::unusable(&compiled.program).into_iter().map(|fault| {
        let place = fault
            .line
            .map(|begin| place_of(&source.rego, fault.word.as_deref(), begin));
        let diagnostic = Diagnostic::new(file, fault.reason, fault.message);
        match place {
            Some((line, column)) => diagnostic.at(line, column),
            None => diagnostic,
        }
    }));
    let (never, warnings) = paths::never_established(compiled, file);
    faults.extend(never);
    if faults.is_empty() {
        return Ok(warnings);
    }
    faults.sort();
    faults.dedup();
    Err(faults)
}

/// Where the word stands that a value holds which begins there; the beginning where it isn't found.
fn place_of(rego: &str, word: Option<&str>, begin: (u32, u32)) -> (u32, u32) {
    let Some(word) = word else { return begin };
    let (plain, raw) = (format!("\"{word}\""), format!("`{word}`"));
    let tokens = lexer::tokens(rego).unwrap_or_default();
    let found = tokens
        .iter()
        .find(|token| (token.line, token.column) >= begin && (token.text == plain || token.text == raw));
    found.map_or(begin, |token| (token.line, token.column))
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
