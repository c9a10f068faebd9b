//! The settings with which the processes start, and policies.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aip_policy::admission::{admit, lexical_gate};
use aip_policy::limits::{MAX_INSTRUCTIONS, MAX_MODULE_BYTES};
use aip_policy::{Evaluator, Facts, PolicySet, PolicySource, Verdict};
use aip_runtime::settings::{Said, SettingsError};
use tempfile::TempDir;

use crate::{Seeds, in_memory, text_of};

thread_local! {
    static DIR: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

fn file_with(bytes: &[u8]) -> PathBuf {
    DIR.with_borrow_mut(|dir| {
        let path = dir.get_or_insert_with(in_memory).path().join("settings.yaml");
        std::fs::write(&path, bytes).unwrap();
        path
    })
}

/// Whoever wrote the file is told what is wrong with it.
fn is_told(error: &SettingsError) -> bool {
    assert!(error.is_mistake() && !error.to_string().is_empty(), "{error:?}");
    false
}

/// A sidecar's file of settings.
pub(crate) fn sidecar_settings(bytes: &[u8]) -> bool {
    let flags = aip_sidecar::config::Flags {
        config: Some(file_with(bytes)),
        ..Default::default()
    };
    match flags.resolve(Said::default()) {
        Err(error) => is_told(&error),
        Ok(config) => {
            assert!((1..=64).contains(&config.workers) && config.drain_seconds <= 3_600 && config.audit_mib >= 1);
            assert!(config.outbound.ip().is_loopback() && config.admin.ip().is_loopback());
            assert!(config.serves == (config.agent.port() != 0));
            true
        }
    }
}

pub(crate) fn sidecar_settings_seeds() -> Seeds {
    let of = |text: &str| text.as_bytes().to_vec();
    vec![
        (
            "short",
            of("name: a\ncontrol_plane: 127.0.0.1:15012\nagent: 127.0.0.1:9000\ndata: /tmp/x\n"),
        ),
        (
            "long",
            of(
                "name: a\ncontrol_plane: 127.0.0.1:15012\nno_serve: true\ndata: /tmp/x\nworkers: 4\ndrain_seconds: 9\n\
                keys: memory\ncode:\n  - '**/*.py'\nroot: /srv\nlog_format: text\nlog: info,aip=debug\nadmin: 127.0.0.1:15000\n",
            ),
        ),
        ("wrong_types", of("name: [1]\nworkers: many\nnmae: x\nagent: {a: b}\n")),
        ("aliases", of("name: &a [x, x]\ncode: [*a, *a, *a]\n")),
        ("twice", of("name: a\nname: b\n")),
        (
            "open",
            of("name: a\ncontrol_plane: 1.2.3.4:1\nagent: 0.0.0.0:1\ndata: /x\nadmin: 0.0.0.0:1\n"),
        ),
        ("no_mapping", of("- a\n- b\n")),
        ("tags", of("name: !!binary aGk=\n--- \ndata: ~\n")),
    ]
}

/// The control plane's.
pub(crate) fn control_plane_settings(bytes: &[u8]) -> bool {
    let flags = aip_control_plane::settings::Flags {
        config: Some(file_with(bytes)),
        ..Default::default()
    };
    match flags.resolve(Said::default()) {
        Err(error) => is_told(&error),
        Ok(settings) => !settings.data.as_os_str().is_empty(),
    }
}

pub(crate) fn control_plane_settings_seeds() -> Seeds {
    let of = |text: &str| text.as_bytes().to_vec();
    vec![
        ("short", of("data: /var/lib/aip\n")),
        (
            "long",
            of(
                "data: /d\nmode: prod\ntrust_domain: mesh.example\nmesh_listen: '[::1]:1'\nadmin_listen: 127.0.0.1:2\n\
                admin_socket: /s\nkey_file: /k\nsecrets: /x\nlog_format: json\nlog: warn\n",
            ),
        ),
        ("wrong", of("data: 1\nmode: test\nadmin_listen: here\n")),
        (
            "bomb",
            of("a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\ndata: *c\n"),
        ),
        (
            "deep",
            format!("data: {}{}\n", "[".repeat(60), "]".repeat(60)).into_bytes(),
        ),
    ]
}

/// What a policy may take to be looked at, whatever is in it: a hundred times what the largest of ours does here.
const PATIENCE: Duration = Duration::from_secs(20);

/// A policy as it is pushed.
pub(crate) fn policy(bytes: &[u8]) -> bool {
    let source = PolicySource {
        name: "p".into(),
        rego: text_of(bytes),
        data: serde_json::Value::Null,
        tests: None,
    };
    let begun = Instant::now();
    let gate = lexical_gate(&source.name, &source.rego);
    if gate.is_err() {
        assert!(
            admit(&source).is_err(),
            "admitted, and a sidecar would not take it: {gate:?}"
        );
        return false;
    }
    assert!(source.rego.len() <= MAX_MODULE_BYTES);
    let compiled = PolicySet::compile(std::slice::from_ref(&source), &serde_json::Value::Null);
    let admitted = admit(&source);
    if let Ok(admission) = &admitted {
        let set = compiled
            .as_ref()
            .unwrap_or_else(|e| panic!("admitted, and does not compile: {e:?}"));
        assert_eq!(
            (admission.digest.as_str(), admission.instructions),
            (set.digest(), set.instructions())
        );
    }
    if let Ok(set) = compiled {
        let set = Arc::new(set);
        let decision = Evaluator::new().decide(&set, &Facts::default());
        let again = Evaluator::new().decide_uncached(&set, &Facts::default());
        assert!(
            decision.verdict == again.verdict || !set.cacheable(),
            "{decision:?} or {again:?}"
        );
        assert!(set.instructions() > 0 && MAX_INSTRUCTIONS > 0);
        // Nothing is known of this request: only a rule that says so allows it.
        assert!(decision.verdict != Verdict::Allow || !decision.rules.is_empty());
    }
    assert!(begun.elapsed() < PATIENCE, "it took {:?}", begun.elapsed());
    admitted.is_ok()
}

pub(crate) fn policy_seeds() -> Seeds {
    let module = |body: &str| format!("package aip.policy.p\n\n{body}\n").into_bytes();
    let rule = |condition: &str| {
        module(&format!(
            "rules contains {{\"rule\": \"r\", \"verdict\": \"allow\", \"reason\": \"x\"}} if {{\n\t{condition}\n}}"
        ))
    };
    vec![
        ("method", rule("input.request.method == \"GET\"")),
        (
            "loop",
            rule("some segment in input.request.path\n\tstartswith(segment, \"a\")"),
        ),
        (
            "arguments",
            rule("input.protocol.tool == \"pay\"\n\tto_number(input.protocol.arguments.amount) < 5"),
        ),
        ("every", rule("every s in input.request.path { s != \"x\" }")),
        ("comprehension", rule("count({s | some s in input.request.path}) > 2")),
        (
            "helper",
            module(
                "f(x) := y if { y := x + 1 }\n\nrules contains {\"rule\": \"r\", \"verdict\": \"deny\", \"reason\": \"\"} if f(1) == 2",
            ),
        ),
        (
            "recursion",
            module("a if b\nb if a\nrules contains {\"rule\": \"r\", \"verdict\": \"deny\", \"reason\": \"\"} if a"),
        ),
        ("brackets", rule("[[[[[[[[[[[[1]]]]]]]]]]]]")),
        ("regex", rule("regex.match(`^(a+)+$`, input.request.raw_path)")),
        (
            "else",
            module(
                "x := 1 if { input.time > 5 } else := 2\n\nrules contains {\"rule\": \"r\", \"verdict\": \"deny\", \"reason\": sprintf(\"%d\", [x])} if x == 2",
            ),
        ),
        (
            "optional",
            module(
                "# aip:optional protocol.arguments\nrules contains {\"rule\": \"r\", \"verdict\": \"deny\", \"reason\": \"\"} if not input.protocol.arguments.x",
            ),
        ),
        ("not_rego", b"SELECT 1".to_vec()),
    ]
}
