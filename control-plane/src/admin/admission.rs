//! Policies are admitted in a child process: a policy that hangs or kills the compiler ends the child, not the mesh.

use std::time::Duration;

use aip_api::problem::FieldError;
use aip_api::resource::{Policy, Resource as _};
use aip_policy::{Admission, Diagnostic, PolicySource};
use aip_runtime::admission::{ChildError, in_child};

use super::Api;
use crate::refusal::{Reason, Refusal};

/// The hidden subcommand of our own program.
pub const SUBCOMMAND: &str = "policy-admit";
/// Checks at once, and of one person: each is a process that compiles.
pub(super) const MAX_CHECKS: usize = 4;
pub(super) const MAX_CHECKS_EACH: usize = 2;
/// How long a check waits for its turn.
const TURN: Duration = Duration::from_secs(10);
/// How long one policy may take; a large one with its tests takes a tenth of it.
const DEADLINE: Duration = Duration::from_secs(10);

/// Admits a policy.
///
/// # Errors
/// Mistakes in the document, diagnostics, or the check hung or died.
pub(super) async fn admit(api: &Api, sub: &str, policy: &Policy) -> Result<Admission, Refusal> {
    let mistakes = policy.validate();
    if !mistakes.is_empty() {
        return Err(Refusal::invalid(mistakes));
    }
    let turn = tokio::time::timeout(TURN, api.checks.take(sub)).await.ok().flatten();
    let _turn = turn.ok_or_else(|| Refusal::new(Reason::Overloaded, "too many policy checks at once; try again"))?;
    let source = PolicySource {
        name: policy.name.to_string(),
        rego: policy.rego.clone(),
        data: policy.data.clone(),
        tests: policy.tests.clone(),
    };
    let internal = |e: serde_json::Error| Refusal::new(Reason::Internal, e.to_string());
    let request = serde_json::to_vec(&source).map_err(internal)?;
    let begun = std::time::Instant::now();
    let answer = in_child(&api.program, &[SUBCOMMAND], request, DEADLINE).await;
    metrics::histogram!("aip_policy_admission_seconds").record(begun.elapsed().as_secs_f64());
    let answer = answer.map_err(|error| {
        tracing::warn!(policy = %policy.name, reason = error.reason(), %error, "policy check failed");
        let reason = match error {
            ChildError::Deadline(_) | ChildError::Died(_) => Reason::AdmissionFailed,
            ChildError::Start { .. } | ChildError::Io(_) => Reason::AdmissionUnavailable,
        };
        Refusal::new(reason, error.to_string())
    })?;
    let verdict: Result<Admission, Vec<Diagnostic>> = serde_json::from_slice(&answer).map_err(internal)?;
    verdict.map_err(|diagnostics| {
        let errors = diagnostics
            .iter()
            .map(|d| FieldError::new(place(d), format!("{} ({})", d.message, d.reason)));
        let errors: Vec<_> = errors.collect();
        let detail = format!("policy {} was not admitted: {} problem(s)", policy.name, errors.len());
        Refusal {
            reason: Reason::PolicyRefused,
            detail,
            errors,
        }
    })
}

fn place(diagnostic: &Diagnostic) -> String {
    match (diagnostic.line, diagnostic.column) {
        (Some(line), Some(column)) => format!("{}:{line}:{column}", diagnostic.file),
        (Some(line), None) => format!("{}:{line}", diagnostic.file),
        (None, _) => diagnostic.file.clone(),
    }
}
