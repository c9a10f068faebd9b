//! A policy as it is written and shipped, and what can be wrong with it.

use serde::{Deserialize, Serialize};

/// One policy: a Rego module with its data and its tests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySource {
    /// `[a-z][a-z0-9-]{0,62}`. The module's package is `aip.policy.<name>` with `-` written as `_`.
    pub name: String,
    /// The module.
    pub rego: String,
    /// What the module sees as `data.user.<name>` (with `-` written as `_`): an object, or null for none.
    #[serde(default)]
    pub data: serde_json::Value,
    /// The module's tests, package `aip.policy.<name>_test`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tests: Option<String>,
}

impl PolicySource {
    /// The last part of the module's package.
    pub fn package(&self) -> String {
        self.name.replace('-', "_")
    }
}

/// One thing that is wrong with a policy, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Diagnostic {
    /// `<name>.rego`, `<name>_test.rego`, or what else is at fault.
    pub file: String,
    /// Line, from 1, where known.
    pub line: Option<u32>,
    /// Column, from 1, where known.
    pub column: Option<u32>,
    /// What kind of mistake: one of [`REASONS`].
    pub reason: String,
    /// What is wrong, and what to do about it where that is known.
    pub message: String,
}

/// Every [`Diagnostic::reason`], and what it means.
pub const REASONS: &[(&str, &str)] = &[
    ("name", "the policy's name isn't one"),
    ("size", "a module is too large"),
    ("lexical", "a module has characters that Rego has no use for"),
    ("bracket_depth", "brackets nest too deep"),
    ("parser_work", "too much text is nested in brackets"),
    ("expression_chain", "an expression has too many operators"),
    ("default", "the value of a default isn't a constant"),
    ("hint", "a comment `# aip:` isn't understood"),
    ("package", "the module's package isn't the policy's"),
    ("import", "something else than a library module is imported"),
    ("with", "`with` outside of tests"),
    (
        "line_continued",
        "a line begins with a bracket that belongs to the line before",
    ),
    ("key_membership", "`key, value in …` outside of `some` and `every`"),
    ("data_reference", "a document is read that policies may not read"),
    ("foreign_package", "a rule of another package is used"),
    (
        "dynamic_rule_reference",
        "a package, or a rule chosen by a variable, is read",
    ),
    ("recursion", "a rule calls itself, directly or through others"),
    ("call_depth", "rules call each other too deep"),
    ("ambiguous_rule", "a rule that has one value could have several"),
    (
        "ambiguous_comprehension",
        "an object comprehension could give a key two values",
    ),
    ("else_after_loop", "the condition before an `else` loops"),
    ("every_loop", "the body of an `every` loops"),
    (
        "comprehension_condition",
        "a comprehension doesn't begin with its loop, or has none and may have no value",
    ),
    ("amplification", "a rule repeats values inside values too often"),
    ("builtin", "a builtin is called that policies may not call"),
    ("too_many_builtins", "the set calls too many different builtins"),
    (
        "unsupported",
        "the program has instructions that policies have no need of",
    ),
    ("rules_shape", "the policy doesn't define `rules contains {…} if {…}`"),
    ("parse", "a module isn't Rego"),
    ("compile", "the compiler refuses the policy"),
    ("data", "the policy's data conflicts with its rules"),
    ("data_shape", "the policy's data isn't an object"),
    ("data_depth", "the policy's data nests too deep"),
    ("data_size", "the policy's data is too large"),
    ("too_many_policies", "the set has too many policies"),
    ("name_collision", "two policies of the set share a package"),
    ("unknown_fact", "a part of the input is read that no input has"),
    ("verdict", "a rule gives a verdict that is none"),
    (
        "unsupported_verdict",
        "a rule gives a verdict that this version doesn't carry out",
    ),
    (
        "unsupported_obligation",
        "a rule has an obligation that this version doesn't honour",
    ),
    (
        "never_established",
        "a fact is read that this version never establishes; a warning where the policy calls it optional",
    ),
    (
        "rehearsal",
        "a request with nothing in it, or an ordinary one, ends at a limit or in a rule that isn't one, or both end in an \
         error",
    ),
    (
        "rehearsal_error",
        "a warning: one of these two requests ends in an error, and is denied",
    ),
    ("no_tests", "the test module has no tests"),
    ("test_failed", "a test doesn't hold"),
    ("test_error", "a test ends in an error"),
    ("cases", "`cases` isn't a set of cases"),
    ("case_failed", "a case is decided otherwise than it says"),
    ("case_error", "a case can't be decided"),
    (
        "engines_differ",
        "the virtual machine and the interpreter decide a case differently",
    ),
    ("request", "the request to the admission process isn't one"),
];

impl Diagnostic {
    pub(crate) fn new(file: impl Into<String>, reason: &str, message: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: None,
            column: None,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    pub(crate) fn at(mut self, line: u32, column: u32) -> Self {
        self.line = Some(line);
        self.column = Some(column);
        self
    }
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        write!(f, ": {}", self.message)
    }
}

impl Diagnostic {
    /// From an error of the engine, which draws the line it is about under a `--> file:line:column`.
    pub(crate) fn from_engine(file: &str, reason: &str, drawing: &str) -> Self {
        let last = drawing
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or(drawing);
        let message = last.strip_prefix("error: ").unwrap_or(last);
        let place = drawing.lines().find_map(|line| line.trim().strip_prefix("--> "));
        let mut parts = place.unwrap_or_default().rsplitn(3, ':');
        let column = parts.next().and_then(|column| column.parse().ok());
        let line = parts.next().and_then(|line| line.parse().ok());
        match (parts.next(), line, column) {
            (Some(place), Some(line), Some(column)) => Self::new(place, reason, message).at(line, column),
            _ => Self::new(file, reason, message),
        }
    }
}
