//! The command as its users meet it: what it prints, and how it ends.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn aip(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aip"));
    command
        .args(arguments)
        .env("AIP_HOME", home)
        .env_remove("AIP_ADMIN")
        .env_remove("AIP_TOKEN_FILE");
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn usage_mistakes_end_with_2() {
    let home = tempfile::tempdir().unwrap();
    for arguments in [
        &["no-such-verb"][..],
        &["agent", "create", "Not A Name"],
        &["agent", "create"],
        &["agent", "observe", "a", "--for", "0"],
        &["token", "revoke", ""],
        &["approvals", "approve", ""],
        &["up", "--mode", "prod"],
        &["agent", "observe", "a", "--for", "604801"],
        &["agent", "observe", "a", "--for", "999999999999"],
        &["run", "--name", "a"],
        &["run", "--name", "a", "--", "no-such-program-here"],
        &["policy", "check"],
        &["status", "--output", "xml"],
        &["--admin", "http://192.0.2.1:1", "--token-file", "/dev/null", "status"],
    ] {
        let output = aip(home.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).starts_with("error: "), "{arguments:?}: {}", said(&output));
    }
}

#[test]
fn without_a_control_plane_it_says_what_to_do_and_ends_with_4() {
    let home = tempfile::tempdir().unwrap();
    for arguments in [
        &["status"][..],
        &["agent", "list"],
        &["call", "a", "/"],
        &["run", "--name", "a", "--", "true"],
    ] {
        let output = aip(home.path(), arguments);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {}", said(&output));
        assert!(
            said(&output).contains("next: start one with `aip "),
            "{arguments:?}: {}",
            said(&output)
        );
    }
}

#[test]
fn a_broken_policy_is_drawn_with_its_line_and_ends_with_6() {
    let home = tempfile::tempdir().unwrap();
    let broken = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/policies/broken.rego");
    let broken = broken.to_str().unwrap();
    let output = aip(home.path(), &["policy", "check", broken]);
    assert_eq!(output.status.code(), Some(6));
    let text = said(&output);
    assert!(text.contains(&format!("{broken}:5:")), "{text}");
    assert!(
        text.contains("5 | ") && text.contains("| ") && text.contains('^'),
        "{text}"
    );
    let as_json = aip(home.path(), &["policy", "check", broken, "--output", "json"]);
    let documents: serde_json::Value = serde_json::from_slice(&as_json.stdout).unwrap();
    assert_eq!(documents[0]["diagnostics"][0]["line"], 5);
}

#[test]
fn the_demos_policies_are_admitted_and_their_tests_pass() {
    let home = tempfile::tempdir().unwrap();
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/policies");
    let limits = policies.join("ledger_limits.rego");
    let output = aip(
        home.path(),
        &["policy", "test", limits.to_str().unwrap(), "--output", "json"],
    );
    assert!(output.status.success(), "{}", said(&output));
    let documents: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(documents[0]["admission"]["tests_passed"], 3);
    let hours = policies.join("research_hours.rego");
    assert!(
        aip(home.path(), &["policy", "check", hours.to_str().unwrap()])
            .status
            .success()
    );
    let untested = aip(home.path(), &["policy", "test", hours.to_str().unwrap()]);
    assert_eq!(untested.status.code(), Some(6), "{}", said(&untested));
}

/// A directory, what a shell makes of `*.rego`, and one file: the tests that lie beside run, each policy once.
#[test]
fn checking_runs_the_tests_that_lie_beside() {
    let home = tempfile::tempdir().unwrap();
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
    let (dir, module) = (policies.to_str().unwrap(), policies.join("read-only.rego"));
    let tests = policies.join("read-only_test.rego");
    let (module, tests) = (module.to_str().unwrap(), tests.to_str().unwrap());
    for (arguments, count) in [
        (&[dir][..], 9),
        (&[module], 1),
        (&[tests, module], 1),
        (&[dir, tests], 9),
    ] {
        let output = aip(
            home.path(),
            &[&["policy", "check", "--output", "json"], arguments].concat(),
        );
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        let documents: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(documents.len(), count, "{arguments:?}");
        for document in documents {
            assert!(document["admission"]["tests_passed"].as_u64() > Some(0), "{document}");
        }
    }
    let lonely = home.path().join("lonely_test.rego");
    std::fs::write(&lonely, "package aip.policy.lonely_test\n").unwrap();
    for path in [&lonely, home.path()] {
        let output = aip(home.path(), &["policy", "check", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2), "{path:?}: {}", said(&output));
    }
}

/// One file that can't be read, or names no policy, is a mistake of its own: the others are checked.
#[test]
fn an_unusable_file_ends_with_6_and_does_not_stop_the_check() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("policies");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("a.rego"), [0xff, 0xfe]).unwrap();
    std::fs::write(dir.join("b.rego"), "package aip.policy.\n").unwrap();
    std::fs::write(dir.join("c.rego"), "package aip.policy.c\n\nrules contains {").unwrap();
    let output = aip(home.path(), &["policy", "check", dir.to_str().unwrap()]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(6), "{text}");
    for part in [
        "a.rego can't be read",
        "b.rego names no policy",
        "c.rego:3",
        "3 of 3 policies",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let absent = aip(home.path(), &["policy", "check", "absent.rego"]);
    assert_eq!(absent.status.code(), Some(6), "{}", said(&absent));
}

#[test]
fn every_mistake_of_up_is_said_at_once() {
    let home = tempfile::tempdir().unwrap();
    let wrong = [
        "up",
        "--mode",
        "test",
        "--mesh-listen",
        "x",
        "--admin-listen",
        "y",
        "--trust-domain",
        "A B",
    ];
    let output = aip(home.path(), &wrong);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for flag in ["--mode: ", "--mesh-listen: ", "--admin-listen: ", "--trust-domain: "] {
        assert!(text.contains(flag), "{text}");
    }
    let beside = home.path().join("key");
    for arguments in [
        &["up", "--mode", "prod"][..],
        &["up", "--mode", "prod", "--key-file", beside.to_str().unwrap()],
    ] {
        let output = aip(home.path(), arguments);
        assert!(said(&output).contains("--key-file: "), "{}", said(&output));
        assert!(!beside.exists());
    }
}

/// A variable counts as given by nobody: usage lines name what the line lacks, and nothing else.
#[test]
fn usage_names_only_what_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_aip"));
    command.args(["agent", "show"]).env("AIP_HOME", home.path());
    let output = command.env("AIP_ADMIN", "http://127.0.0.1:1").output().unwrap();
    let usage = said(&output);
    let usage = usage.lines().find(|l| l.starts_with("Usage:")).unwrap();
    assert_eq!(usage, "Usage: aip agent show <NAME>");
}

#[test]
fn the_admission_child_answers_for_a_policy_that_can_not_be_read() {
    use std::io::Write as _;
    let mut child = Command::new(env!("CARGO_BIN_EXE_aip"))
        .arg("policy-admit")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"not json").unwrap();
    let output = child.wait_with_output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer["Err"].is_array(), "{answer}");
}
