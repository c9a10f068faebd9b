//! Mistakes in policies, with the line they are in and a caret under the place.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use aip_api::problem::FieldError;
use aip_policy::Diagnostic;

use super::file::PolicyFiles;

/// Longest source line that is shown; the caret stays in view.
const MAX_LINE: usize = 160;

/// The files behind the names in diagnostics: `<name>.rego` is where the user keeps it.
#[derive(Debug, Default)]
pub(crate) struct Place {
    files: BTreeMap<String, (String, String)>,
}

impl Place {
    pub(super) fn of(read: &PolicyFiles) -> Self {
        let name = &read.source.name;
        let mut place = Self::default();
        place.add(format!("{name}.rego"), &read.rego, &read.source.rego);
        if let (Some(path), Some(text)) = (&read.tests, &read.source.tests) {
            place.add(format!("{name}_test.rego"), path, text);
        }
        place
    }

    fn add(&mut self, name: String, path: &std::path::Path, text: &str) {
        self.files.insert(name, (path.display().to_string(), text.to_owned()));
    }

    fn one(&self, file: &str, line: Option<u32>, column: Option<u32>, message: &str) -> String {
        let (path, text) = self
            .files
            .get(file)
            .map_or((file, ""), |(p, t)| (p.as_str(), t.as_str()));
        let mut out = path.to_owned();
        for part in [line, column].into_iter().flatten() {
            let _ = write!(out, ":{part}");
        }
        let _ = write!(out, ": {message}");
        let source = line.and_then(|l| text.lines().nth(usize::try_from(l).ok()?.checked_sub(1)?));
        if let (Some(line), Some(source)) = (line, source) {
            let number = line.to_string();
            // Tabs would move the caret: both lines get the same blanks.
            let shown: String = source
                .chars()
                .take(MAX_LINE)
                .map(|c| if c == '\t' { ' ' } else { c })
                .collect();
            let blank = " ".repeat(number.len());
            let _ = write!(out, "\n  {number} | {shown}");
            if let Some(column) = column
                .and_then(|c| usize::try_from(c).ok())
                .filter(|c| (1..=MAX_LINE).contains(c))
            {
                let _ = write!(out, "\n  {blank} | {}^", " ".repeat(column - 1));
            }
        }
        out
    }
}

/// The diagnostics of the local pipeline.
pub(crate) fn render(diagnostics: &[Diagnostic], place: &Place) -> String {
    let all: Vec<String> = diagnostics
        .iter()
        .map(|d| place.one(&d.file, d.line, d.column, &format!("{} ({})", d.message, d.reason)))
        .collect();
    all.join("\n")
}

/// The field errors of the control plane: where a field is `file:line:column`, with the line.
pub(crate) fn render_fields(errors: &[FieldError], place: &Place) -> String {
    let all: Vec<String> = errors
        .iter()
        .map(|e| {
            let mut parts = e.field.splitn(3, ':');
            let file = parts.next().unwrap_or_default();
            let (line, column) = (
                parts.next().and_then(|p| p.parse().ok()),
                parts.next().and_then(|p| p.parse().ok()),
            );
            if line.is_some() {
                place.one(file, line, column, &e.message)
            } else {
                e.to_string()
            }
        })
        .collect();
    all.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        let mut place = Place::default();
        let text = "package aip.policy.limits\n\n\trules contains 1 if oops(input)\n";
        place.add("limits.rego".into(), std::path::Path::new("policies/limits.rego"), text);
        place
    }

    #[test]
    fn the_caret_stands_under_the_mistake() {
        let diagnostic: Diagnostic = serde_json::from_value(serde_json::json!({
            "file": "limits.rego", "line": 3, "column": 22, "reason": "unknown_function", "message": "no function oops",
        }))
        .unwrap();
        let expected = "policies/limits.rego:3:22: no function oops (unknown_function)\n  \
                        3 |  rules contains 1 if oops(input)\n    |                      ^";
        assert_eq!(render(&[diagnostic], &place()), expected);
    }

    #[test]
    fn the_control_planes_errors_are_drawn_alike_and_others_stay_as_they_are() {
        let errors = [
            FieldError::new("limits.rego:3:22", "no function oops"),
            FieldError::new("attach.labels", "name at least one label"),
            FieldError::new("limits.rego:99", "beyond the end"),
        ];
        let text = render_fields(&errors, &place());
        assert!(
            text.contains("3 |  rules contains 1 if oops(input)\n    |                      ^"),
            "{text}"
        );
        assert!(text.contains("attach.labels: name at least one label"), "{text}");
        assert!(text.ends_with("policies/limits.rego:99: beyond the end"), "{text}");
    }
}
