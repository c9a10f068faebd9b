//! How `aip` fails: one error type that says what failed, why, and what to do next, and the exit code it ends with.

mod step;

use std::fmt;
use std::process::ExitCode;

use aip_api::problem::{FieldError, Problem};

/// The exit codes of `aip`. They are documented in `docs/cli.md`; scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    Refused = 3,
    NotReachable = 4,
    NotFound = 5,
    Invalid = 6,
    TimedOut = 7,
    NotAuthorized = 8,
    Proposed = 9,
}

/// What stands below the help of every verb.
pub(crate) fn help() -> String {
    let mut text = String::from("Exit codes:");
    for (code, meaning) in Exit::ALL {
        text.push_str(&format!("\n  {code}  {meaning}"));
    }
    text.push_str("\n`aip run` ends with the status of its command.");
    text
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// Every code with its meaning, as the documentation prints them.
    pub(crate) const ALL: [(u8, &str); 10] = [
        (0, "done"),
        (1, "failed; the message says why"),
        (2, "usage: an argument is missing, unknown or malformed"),
        (
            3,
            "refused by policy, revocation or attestation: the mesh answered, and the answer is no",
        ),
        (
            4,
            "not reachable: the control plane, a sidecar or a proxy doesn't answer",
        ),
        (5, "not found: no such agent, policy, token or measurement"),
        (
            6,
            "invalid: a policy, its tests or a document has mistakes; each is printed",
        ),
        (7, "timed out: what was waited for has not happened yet"),
        (
            8,
            "not authorized: the admin token is missing, expired or its role may not do this",
        ),
        (
            9,
            "proposed: the change waits for a second person, and nothing has changed yet",
        ),
    ];
}

/// What failed, why, and what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) what: String,
    pub(crate) why: Vec<String>,
    /// The mistakes in what was sent, by field or by file and line.
    pub(crate) errors: Vec<FieldError>,
    pub(crate) next: Option<String>,
    /// The stable reason that the control plane or a sidecar gave; empty where none did.
    pub(crate) reason: Box<str>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            why: Vec::new(),
            errors: Vec::new(),
            next: None,
            reason: Box::default(),
        }
    }

    pub(crate) fn why(mut self, why: impl Into<String>) -> Self {
        self.why.push(why.into());
        self
    }

    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// A problem document of the control plane or of a sidecar, with all its field errors.
    pub(crate) fn of_problem(what: &str, problem: &Problem) -> Self {
        let exit = match problem.status {
            401 => Exit::NotAuthorized,
            403 if problem.decision_id.is_some() => Exit::Refused,
            403 => Exit::NotAuthorized,
            404 => Exit::NotFound,
            400 | 413 | 422 => Exit::Invalid,
            408 | 504 => Exit::TimedOut,
            _ => Exit::Failed,
        };
        let mut failure = Self::new(exit, what).why(format!("{} ({})", problem.detail, problem.reason));
        failure.errors.clone_from(&problem.errors);
        failure.reason = problem.reason.as_str().into();
        if let Some(rule) = &problem.rule {
            failure.why.push(format!("rule: {rule}"));
        }
        if let Some(id) = &problem.decision_id {
            failure.why.push(format!("decision: {id}"));
        }
        failure.next = step::next(&problem.reason).map(str::to_owned);
        failure
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        let errors = self.errors.iter().map(ToString::to_string);
        for why in self.why.iter().cloned().chain(errors) {
            for line in why.lines() {
                write!(f, "\n  {line}")?;
            }
        }
        if let Some(next) = &self.next {
            write!(f, "\n  next: {next}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// What `main` prints and returns for an error that reached it.
pub(crate) fn render(error: &anyhow::Error) -> (String, u8) {
    match error.downcast_ref::<Failure>() {
        Some(failure) => (format!("error: {failure}"), failure.exit as u8),
        None => {
            let mut causes = error.chain();
            let mut text = format!("error: {}", causes.next().map(ToString::to_string).unwrap_or_default());
            for cause in causes {
                text.push_str(&format!("\n  {cause}"));
            }
            (text, Exit::Failed as u8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_with_every_field_error() {
        let mut problem = Problem::new(422, "invalid_document", "the agent has 2 mistakes");
        problem.errors.push(FieldError::new("owner", "at most 128 bytes"));
        problem
            .errors
            .push(FieldError::new("labels.x", "no control characters"));
        let (text, code) = render(&Failure::of_problem("agent a was not created", &problem).into());
        assert_eq!(code, 6);
        let expected = "error: agent a was not created\n  the agent has 2 mistakes (invalid_document)\n  \
                        owner: at most 128 bytes\n  labels.x: no control characters";
        assert_eq!(text, expected);
    }

    #[test]
    fn each_kind_of_failure_has_its_own_code() {
        let mut refused = Problem::new(403, "policy_denied", "no");
        assert_eq!(Failure::of_problem("x", &refused).exit, Exit::NotAuthorized);
        refused.decision_id = Some("d".into());
        let cases = [
            (refused, 3),
            (Problem::new(401, "token_expired", ""), 8),
            (Problem::new(404, "x", ""), 5),
            (Problem::new(413, "too_large", ""), 6),
        ];
        for (problem, code) in cases {
            assert_eq!(render(&Failure::of_problem("x", &problem).into()).1, code);
        }
        assert_eq!(
            render(&anyhow::anyhow!("cause").context("what")),
            ("error: what\n  cause".to_owned(), 1)
        );
    }
}
