//! Rules that could never do what they say are refused when they are written, not noticed when they don't fire.

#![allow(clippy::unwrap_used)]

use aip_policy::{Admission, Diagnostic, PolicySource, admission};
use serde_json::json;

const ALLOW: &str = "rules contains {\"rule\": \"p/all\", \"verdict\": \"allow\", \"reason\": \"\"} if true\n";

fn admit(body: &str) -> Result<Admission, Vec<Diagnostic>> {
    admission::admit(&PolicySource {
        name: "p".into(),
        rego: format!("package aip.policy.p\n\n{body}\n"),
        data: json!({"word": "allow"}),
        tests: None,
    })
}

/// A policy that denies where the condition holds: the condition stands in line 4.
fn denying(condition: &str) -> String {
    format!(
        "rules contains {{\"rule\": \"p/no\", \"verdict\": \"deny\", \"reason\": \"\"}} if {{\n\t{condition}\n}}\n\n{ALLOW}"
    )
}

fn fault(body: &str) -> Diagnostic {
    let faults = admit(body).unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.into_iter().next().unwrap()
}

fn warnings(body: &str) -> Vec<Diagnostic> {
    match admit(body) {
        Ok(admission) => admission.warnings,
        Err(faults) => panic!("{body}: {faults:?}"),
    }
}

#[test]
fn a_path_that_no_input_has_is_refused_with_its_line() {
    for (condition, path, meant) in [
        (
            "input.protocol.tol == \"x\"",
            "`input.protocol.tol`",
            "`input.protocol.tool`",
        ),
        (
            "input.requst.method == \"GET\"",
            "`input.requst.method`",
            "`input.request.method`",
        ),
        (
            "not input.requst.method == \"GET\"",
            "`input.requst.method`",
            "`input.request.method`",
        ),
        (
            "input[\"protocol\"][\"tol\"] == \"x\"",
            "`input.protocol.tol`",
            "`input.protocol.tool`",
        ),
        (
            "some x in input.source.capabilites\nx == \"y\"",
            "`input.source.capabilites`",
            "`input.source.capabilities`",
        ),
        (
            "input.request.headers[\"X-Team\"]",
            "`input.request.headers[\"X-Team\"]`",
            "`input.request.headers[\"x-team\"]`",
        ),
        (
            "lower(input.source.nme) == \"x\"",
            "`input.source.nme`",
            "`input.source.name`",
        ),
    ] {
        let fault = fault(&denying(condition));
        assert_eq!(
            (fault.reason.as_str(), fault.line),
            ("unknown_fact", Some(4)),
            "{condition}: {fault}"
        );
        assert!(fault.message.starts_with(path), "{fault}");
        assert!(fault.message.ends_with(&format!("did you mean {meant}?")), "{fault}");
        assert!(fault.to_string().starts_with("p.rego:4:"), "{fault}");
    }
}

#[test]
fn every_wrong_path_is_named_in_rules_of_ones_own_too() {
    let body =
        denying("helper") + "\nhelper if input.protocl.tool == \"a\"\n\nhelper if input.source.labls.team == \"b\"\n";
    let faults = admit(&body).unwrap_err();
    let lines: Vec<_> = faults.iter().map(|fault| (fault.reason.as_str(), fault.line)).collect();
    assert_eq!(
        lines,
        [("unknown_fact", Some(9)), ("unknown_fact", Some(11))],
        "{faults:?}"
    );
}

#[test]
fn maps_and_computed_names_stay_open() {
    for condition in [
        "input.request.headers[\"x-team\"][0] == \"a\"",
        "input.request.headers.host[_] == \"a\"",
        "input.request.query.page[0] == \"2\"",
        "input.request.path[0] == \"v1\"",
        "input.source.labels.team == \"a\"",
        "input.source.manifest.protocols[_] == \"mcp\"",
        "input.protocol.arguments.a.b.c == 1",
        "input.protocol[data.user.p.word] == \"x\"",
        "some key, value in input.protocol.arguments\nkey == value",
        "object.get(input.request, \"requst\", \"\") == \"x\"",
        "\"request.size\" in input.unestablished",
    ] {
        assert_eq!(warnings(&denying(condition)), [], "{condition}");
    }
}

fn ruling(verdict: &str, rest: &str) -> String {
    format!(
        "rules contains {{\n\t\"rule\": \"p/r\",\n\t\"verdict\": {verdict},\n\t\"reason\": \"\"{rest}\n}} if input.protocol.tool == \"t\""
    )
}

#[test]
fn a_word_that_is_no_verdict_is_refused() {
    for verdict in ["\"alow\"", "\"Deny\"", "\"\"", "`allowed`", "\"block\""] {
        let fault = fault(&ruling(verdict, ""));
        assert_eq!(
            (fault.reason.as_str(), fault.line),
            ("verdict", Some(5)),
            "{verdict}: {fault}"
        );
        assert!(fault.message.contains("`deny` or `allow`"), "{fault}");
    }
    assert_eq!(fault(&ruling("1", "")).reason, "verdict");
    let table = "table := [{\"rule\": \"p/r\", \"verdict\": \"alow\", \"reason\": \"\"}]\n\nrules contains r if some r in table";
    assert_eq!(fault(table).reason, "verdict", "a rule in a table");
    assert!(admit(&ruling("\"allow\"", "")).is_ok());
    assert!(
        admit(&ruling("data.user.p.word", "")).is_ok(),
        "a computed one is known when the rule fires"
    );
}

#[test]
fn verdicts_and_obligations_that_nobody_carries_out_are_refused() {
    for verdict in ["warn", "escalate", "restrict", "transform"] {
        let fault = fault(&ruling(&format!("\"{verdict}\""), ""));
        assert_eq!(
            (fault.reason.as_str(), fault.line),
            ("unsupported_verdict", Some(5)),
            "{fault}"
        );
    }
    for obligations in [
        "{\"rate_per_minute\": 5}",
        "{\"redact\": [\"/a\"]}",
        "{\"tgas\": [\"x\"]}",
        "{\"audit\": \"required\", \"timeout_ms\": 5}",
    ] {
        let fault = fault(&ruling("\"allow\"", &format!(",\n\t\"obligations\": {obligations}")));
        assert_eq!(fault.reason, "unsupported_obligation", "{fault}");
        assert!(
            fault.line.is_some() && fault.message.ends_with("it honours `audit`, `tags`"),
            "{fault}"
        );
    }
    assert!(admit(&ruling("\"allow\"", ",\n\t\"obligations\": {\"tags\": [\"x\"]}")).is_ok());
    let helper = "refuse(id) := {\"rule\": id, \"verdict\": \"warn\", \"reason\": \"\"}\n\nrules contains refuse(\"p/r\") if input.protocol.tool == \"t\"";
    let computed = ruling("\"warn\"", ",\n\t\"obligations\": {\"timeout_ms\": input.trace.hops}");
    let faults = admit(&computed).unwrap_err();
    let found: Vec<_> = faults.iter().map(|fault| (fault.reason.as_str(), fault.line)).collect();
    assert_eq!(
        found,
        [("unsupported_verdict", Some(5)), ("unsupported_obligation", Some(7))]
    );
    assert_eq!(
        fault(helper).reason,
        "unsupported_verdict",
        "a rule that a function makes"
    );
}

#[test]
fn what_denies_every_request_is_refused() {
    for condition in [
        "count(numbers.range(1, 10000000)) > 0",
        "r := numbers.range(1, 1000)\ncount([1 | some a in r; some b in r; some c in r]) > 0",
        "input.direction == \"outbound\"\ncount(numbers.range(1, 10000000)) > 0",
        "input.request.method + 1 > 2",
    ] {
        let faults = admit(&denying(condition)).unwrap_err();
        assert!(
            faults.iter().all(|fault| fault.reason == "rehearsal"),
            "{condition}: {faults:?}"
        );
    }
    let unnamed = "rules contains {\"verdict\": \"deny\", \"reason\": \"\"} if true";
    assert!(admit(unnamed).unwrap_err()[0].message.contains("malformed_rule"));
    let computed = "rules contains {\"rule\": \"p/r\", \"verdict\": lower(\"WARN\"), \"reason\": \"\"} if true";
    assert!(admit(computed).unwrap_err()[0].message.contains("unsupported_verdict"));
}

#[test]
fn an_error_on_some_requests_is_a_warning() {
    let warned = warnings(&denying("input.time / input.trace.hops > 5"));
    assert_eq!(warned.len(), 2, "{warned:?}");
    assert!(
        warned.iter().all(|warning| warning.reason == "rehearsal_error"),
        "{warned:?}"
    );
    let mesh = "rules contains {\"rule\": \"p/r\", \"verdict\": \"deny\", \"reason\": data.mesh.why} if true";
    let warned = warnings(mesh);
    assert!(
        !warned.is_empty() && warned.iter().all(|warning| warning.reason == "rehearsal_error"),
        "{warned:?}"
    );
}

#[test]
fn facts_that_are_never_established_are_refused_or_warned_of() {
    for (condition, fact) in [
        ("input.delegation.chain[_] == \"x\"", "delegation"),
        ("input.budget.tokens.remaining < 1", "budget"),
        (
            "some finding in input.content.findings\nfinding.kind == \"secret\"",
            "content.findings",
        ),
    ] {
        let refused = fault(&denying(condition));
        assert_eq!(
            (refused.reason.as_str(), refused.line),
            ("never_established", Some(4)),
            "{refused}"
        );
        assert!(
            refused.message.contains(&format!("`# aip:optional {fact}`")),
            "{refused}"
        );
        let optional = format!("# aip:optional {fact}\n\n{}", denying(condition));
        let warned = warnings(&optional);
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert_eq!(
            (warned[0].reason.as_str(), warned[0].line),
            ("never_established", Some(6))
        );
    }
    let whole = denying("bad(input.content)") + "\nbad(content) if content.findings[_] == \"x\"\n";
    let refused = fault(&whole);
    assert!(
        refused.message.starts_with("all of `input.content` is read here"),
        "{refused}"
    );
}

#[test]
fn what_a_policy_denies_without_is_told() {
    let told = |body: &str| admit(body).unwrap().denies_without;
    assert_eq!(told(&denying("input.protocol.tool == \"x\"")), ["input.protocol.tool"]);
    assert!(told(&denying("input.source.name == \"x\"")).is_empty());
    let optional = format!(
        "# aip:optional protocol.tool\n\n{}",
        denying("input.protocol.tool == \"x\"")
    );
    assert!(told(&optional).is_empty());
}
