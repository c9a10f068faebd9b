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
    /// What kind of mistake: a stable word in snake_case.
    pub reason: String,
    /// What is wrong, and what to do about it where that is known.
    pub message: String,
}

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
