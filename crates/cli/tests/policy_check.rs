//! What `aip policy check` says of a policy beside whether it is admitted.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

/// Checks a policy whose condition stands in line 5.
fn check(home: &Path, condition: &str, hint: &str) -> (Output, String) {
    let file = home.join("typo.rego");
    let rule = "rules contains {\"rule\": \"typo/no\", \"verdict\": \"deny\", \"reason\": \"\"}";
    std::fs::write(
        &file,
        format!("package aip.policy.typo\n\n{hint}\n{rule} if {{\n\t{condition}\n}}\n"),
    )
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_aip"));
    command.args(["policy", "check"]).arg(file).env("AIP_HOME", home);
    let output = command.env_remove("AIP_ADMIN").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn a_rule_that_could_never_fire_ends_with_6_and_its_line() {
    let home = tempfile::tempdir().unwrap();
    let (output, said) = check(home.path(), "input.protocol.tol == \"x\"", "");
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("typo.rego:5:"), "{said}");
    assert!(
        said.contains("did you mean `input.protocol.tool`? (unknown_fact)"),
        "{said}"
    );
}

#[test]
fn what_is_read_and_what_to_beware_of_is_shown() {
    let home = tempfile::tempdir().unwrap();
    let condition = "input.source.reputation.score < 4; input.budget.tokens.used < 1; input.protocol.tool == \"x\"";
    let (output, said) = check(home.path(), condition, "# aip:optional budget");
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("typo.rego:5:") && said.contains("warning: "), "{said}");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [
        "typo: 1 warning\n",
        "reads input.budget.tokens.used, input.protocol.tool, input.source.reputation.score\n",
        "denies where it is not known: input.source.reputation, input.protocol.tool\n",
        "at the caller and at the callee",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}
