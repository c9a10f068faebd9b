//! The policies that the project ships are admitted, with all their tests.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use aip_policy::{PolicySet, PolicySource, admission};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies")
}

fn shipped() -> Vec<PolicySource> {
    let mut policies = Vec::new();
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(name) = file.strip_suffix(".rego") else {
            continue;
        };
        if name.ends_with("_test") {
            continue;
        }
        let data = fs::read_to_string(directory().join(format!("{name}.data.json")));
        policies.push(PolicySource {
            name: name.to_owned(),
            rego: fs::read_to_string(&path).unwrap(),
            data: data.map_or(serde_json::Value::Null, |text| serde_json::from_str(&text).unwrap()),
            tests: Some(fs::read_to_string(directory().join(format!("{name}_test.rego"))).unwrap()),
        });
    }
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    policies
}

#[test]
fn every_shipped_policy_is_admitted() {
    let mut faults = Vec::new();
    for policy in shipped() {
        match admission::admit(&policy) {
            Ok(admission) => assert!(admission.tests_passed >= 4, "{}: {admission:?}", policy.name),
            Err(found) => faults.extend(found.into_iter().map(|fault| fault.to_string())),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn all_shipped_policies_compile_into_one_set() {
    let policies = shipped();
    let set = PolicySet::compile(&policies, &serde_json::json!({})).unwrap();
    assert_eq!(set.policies().count(), policies.len());
    let reversed: Vec<PolicySource> = policies.into_iter().rev().collect();
    assert_eq!(
        set.digest(),
        PolicySet::compile(&reversed, &serde_json::json!({})).unwrap().digest()
    );
}

#[test]
fn every_rule_of_a_shipped_policy_is_in_a_test() {
    for policy in shipped() {
        let tests = policy.tests.unwrap();
        let rules: BTreeSet<&str> = policy
            .rego
            .lines()
            .filter_map(|line| line.trim().strip_prefix("\"rule\": \"")?.split('"').next())
            .collect();
        assert!(!rules.is_empty(), "{}", policy.name);
        for rule in rules {
            assert!(tests.contains(rule), "no test of {} names {rule}", policy.name);
        }
    }
}

#[test]
fn the_readme_lists_every_shipped_policy() {
    let readme = fs::read_to_string(directory().join("README.md")).unwrap();
    for policy in shipped() {
        assert!(readme.contains(&format!("`{}`", policy.name)), "{}", policy.name);
    }
}
