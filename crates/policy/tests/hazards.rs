//! What hostile or careless policies try, and how each of them ends: refused before it runs, or in a deny. None may hang
//! or end the process, and none may turn an error into permission.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use aip_policy::{Decision, Evaluator, Facts, PolicySet, PolicySource, Verdict, admission};
use serde_json::json;

/// Far above what any of these takes, far below what an unbounded one would.
const PATIENCE: Duration = Duration::from_secs(20);

/// A module that allows everything and denies when `body` holds; `rules` are further rules.
fn denying(body: &str, rules: &str) -> String {
    format!(
        "package aip.policy.p\n\nrules contains {{\"rule\": \"all\", \"verdict\": \"allow\", \"reason\": \"\"}} if true\n\n\
         rules contains {{\"rule\": \"no\", \"verdict\": \"deny\", \"reason\": \"\"}} if {{\n{body}\n}}\n\n{rules}\n"
    )
}

fn source(rego: String) -> PolicySource {
    let data = json!({"none": [], "one": [1], "text": "x", "null": null});
    PolicySource {
        name: "p".into(),
        rego,
        data,
        tests: None,
    }
}

/// The reason for which the module is refused.
fn refused(rego: String) -> String {
    let start = Instant::now();
    let faults = PolicySet::compile(&[source(rego)], &json!({"k": {"a": 1}})).unwrap_err();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    faults[0].reason.clone()
}

fn decided_on(rego: String, facts: &Facts) -> Decision {
    let start = Instant::now();
    let set = match PolicySet::compile(&[source(rego)], &json!({"k": {"a": 1}})) {
        Ok(set) => Arc::new(set),
        Err(faults) => panic!("{}", faults[0]),
    };
    let mut evaluator = Evaluator::new();
    let decision = evaluator.decide(&set, facts);
    assert_eq!(
        evaluator.decide_uncached(&set, facts),
        decision,
        "the machine is as good as new after an error"
    );
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    decision
}

/// The verdict and the rule on neutral facts.
fn decided(rego: String) -> (Verdict, String) {
    let decision = decided_on(rego, &Facts::default());
    (decision.verdict, decision.rule().to_owned())
}

fn assert_denied_by(rule: &str, rego: String) {
    assert_eq!(decided(rego.clone()), (Verdict::Deny, rule.to_owned()), "{rego}");
}

#[test]
fn recursion_is_refused_not_run() {
    assert_eq!(refused(denying("x", "x if y\ny if x")), "recursion");
    assert_eq!(refused(denying("x", "x if x")), "recursion");
    assert_eq!(refused(denying("f(1)", "f(a) if g(a)\ng(a) if f(a)")), "recursion");
    assert_eq!(refused(denying("f(1) == 2", "f(a) := f(a - 1) + 1")), "recursion");
    assert_eq!(refused(denying("true", "unused if unused")), "recursion");
    assert_eq!(
        refused(denying("x", "x if data.aip.policy.p.y\ny if data.aip.policy.p.x")),
        "recursion"
    );
}

#[test]
fn recursion_in_tests_is_refused_not_run() {
    let tests = "package aip.policy.p_test\n\ntest_a if f(1)\n\nf(a) if g(a)\n\ng(a) if f(a)\n";
    let policy = PolicySource {
        tests: Some(tests.to_owned()),
        ..source(denying("false", ""))
    };
    assert_eq!(admission::admit(&policy).unwrap_err()[0].reason, "recursion");
}

#[test]
fn calls_that_go_too_deep_are_refused() {
    let chain: String = (0..3000).map(|rule| format!("c{rule} if c{}\n", rule + 1)).collect();
    assert_eq!(refused(denying("c0", &format!("{chain}c3000 if true"))), "call_depth");
}

#[test]
fn nested_brackets_are_refused_before_the_parser_sees_them() {
    for (open, close) in [
        ("[", "]"),
        ("{\"a\": ", "}"),
        ("{", "}"),
        ("(", ")"),
        ("[{1, [", "]}]"),
        ("f(", ")"),
    ] {
        let nested = format!("x := {}1{}", open.repeat(24), close.repeat(24));
        assert_eq!(refused(denying(&nested, "")), "bracket_depth", "{nested}");
    }
    let unclosed = format!("x := {}", "[".repeat(60));
    assert_eq!(refused(denying(&unclosed, "")), "bracket_depth");
    let hidden = format!(
        "x := \"]]]]]]]]]]]]\\\"]]]]]]]\"\ny := `]]]]]]]]]]\\`\nz := {}1{}",
        "[".repeat(24),
        "]".repeat(24)
    );
    assert_eq!(
        refused(denying(&hidden, "")),
        "bracket_depth",
        "brackets in texts close nothing"
    );
}

#[test]
fn what_the_gate_lets_through_is_parsed_at_once() {
    // The body's own brace is one level.
    let deepest = format!("x := {}1{}", "[".repeat(9), "]".repeat(9));
    let start = Instant::now();
    assert_eq!(decided(denying(&deepest, "")).0, Verdict::Deny);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn much_text_in_deep_brackets_is_refused() {
    // The parser reads what is in brackets twice, at each level: 54 KB at depth ten took it three seconds.
    let wide = format!("x := {}{}1{}", "[".repeat(9), "1,\n".repeat(18_000), "]".repeat(9));
    assert_eq!(refused(denying(&wide, "")), "parser_work");
}

#[test]
fn a_loop_over_a_large_body_ends_at_a_limit() {
    let mut facts = Facts::default();
    let list: Vec<serde_json::Value> = (0..5000).map(|index| json!({"a": [index, "x".repeat(40)]})).collect();
    facts.protocol.arguments = json!({"list": list}).as_object().unwrap().clone().into();
    for call in [
        "json.marshal(input.protocol.arguments) == x",
        "sort(input.protocol.arguments.list) == x",
    ] {
        let decision = decided_on(
            denying(&format!("some x in input.protocol.arguments.list\n{call}"), ""),
            &facts,
        );
        assert_eq!(decision.rule(), "limit_exceeded", "{call}");
    }
    let cheap = "some x in input.protocol.arguments.list\ncount(input.protocol.arguments.list) == x";
    let ended = decided_on(denying(cheap, ""), &facts);
    assert!(
        ["all", "instruction_limit"].contains(&ended.rule()),
        "{}",
        ended.reason()
    );
}

#[test]
fn long_expressions_dont_overflow_the_stack() {
    let broken = |text: String| {
        text.as_bytes()
            .chunks(600)
            .map(String::from_utf8_lossy)
            .collect::<Vec<_>>()
            .join("\n")
    };
    for (first, again) in [
        ("1", " + 1"),
        ("{1}", " | {1}"),
        ("input", ".aa"),
        ("input", "[1]"),
        ("1", " == 1"),
    ] {
        let long = format!("x := {first}{}", broken(again.repeat(5000)));
        assert_eq!(refused(denying(&long, "")), "expression_chain", "{again}");
    }
    assert_eq!(
        refused(denying(&format!("x := {}1", broken("- ".repeat(5000))), "")),
        "expression_chain"
    );
    assert_eq!(
        refused(denying(
            &format!("x := f({})", broken("1 + 1, ".repeat(30) + &"1 + ".repeat(5000) + "1")),
            ""
        )),
        "expression_chain"
    );
    let elses = "x := 1 if input.trace.hops == 9\n".to_owned() + &"else := 2 if false\n".repeat(3000);
    assert_eq!(refused(denying("x == 1", &elses)), "compile");
}

#[test]
fn what_is_too_large_is_refused() {
    assert_eq!(refused(denying("true", &"# x\n".repeat(20_000))), "size");
    let big = PolicySource {
        data: json!({"a": "x".repeat(300_000)}),
        ..source(denying("true", ""))
    };
    assert_eq!(
        PolicySet::compile(&[big], &json!({})).unwrap_err()[0].reason,
        "data_size"
    );
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    let deep = PolicySource {
        data: json!({"a": deep}),
        ..source(denying("true", ""))
    };
    assert_eq!(
        PolicySet::compile(&[deep], &json!({})).unwrap_err()[0].reason,
        "data_depth"
    );
}

#[test]
fn one_call_cant_produce_without_bound() {
    for body in [
        "count(numbers.range(1, 5000000)) > 0",
        "count(numbers.range(1, 99999999999999999999999)) > 0",
        "count(numbers.range_step(1, 5000000, 1)) > 0",
        "count(sprintf(\"%999999999d\", [1])) > 0",
        "bits.lsh(1, 1000000000) > 0",
        "x := concat(\",\", [sprintf(\"%d\", [i]) | some i in numbers.range(1, 500)])\ny := replace(x, \",\", x)\n\
         z := replace(y, \",\", y)\nz != x",
        "x := concat(\",\", [sprintf(\"%d\", [i]) | some i in numbers.range(1, 500)])\n\
         y := regex.replace(x, \",\", x)\nz := regex.replace(y, \",\", y)\nz != x",
    ] {
        assert_denied_by("limit_exceeded", denying(body, ""));
    }
}

#[test]
fn chains_of_repetition_are_refused() {
    let mut text = "x0 := \"aaaaaaaaaaaaaaaa\"\n".to_owned();
    let mut tree = "x0 := [1]\ny0 := [1]\n".to_owned();
    let mut nested = "x0 := [1]\n".to_owned();
    for (at, before) in (1..40).zip(0..) {
        text += &format!("x{at} := concat(\"\", [x{before}, x{before}])\n");
        tree += &format!("x{at} := [x{before}, x{before}]\ny{at} := {{\"a\": y{before}, \"b\": y{before}}}\n");
        nested += &format!("x{at} := [x{before} | some i in [1, 2, 3]]\n");
    }
    assert_denied_by("limit_exceeded", denying("count(x39) > 0", &text));
    assert_eq!(refused(denying("x39 == y39", &tree)), "amplification");
    assert_eq!(refused(denying("count(x39) > 0", &nested)), "amplification");
    let functions = "f1(a) := [a, a]\n".to_owned()
        + &(2..20)
            .map(|at| format!("f{at}(a) := f{0}(f{0}(a))\n", at - 1))
            .collect::<String>();
    assert_eq!(refused(denying("f19(1) == f19(2)", &functions)), "amplification");
}

#[test]
fn loops_end_at_the_instruction_limit() {
    let body = "r := numbers.range(1, 1000)\ncount([1 | some a in r; some b in r; some c in r]) > 0";
    assert_denied_by("instruction_limit", denying(body, ""));
}

#[test]
fn regex_bombs_end_in_a_deny() {
    assert_denied_by(
        "evaluation_error",
        denying("regex.match(\"(((a{100}){100}){100})\", \"x\")", ""),
    );
    let body = format!("regex.match(\"^(a*)*b$\", \"{}\")", "a".repeat(500));
    assert_eq!(
        decided(denying(&body, "")).0,
        Verdict::Allow,
        "matching takes linear time"
    );
}

#[test]
fn an_error_in_a_deny_rule_denies() {
    // The engine takes an error for a condition that doesn't hold: each of these would be an allow.
    for body in [
        "to_number(input.direction) > 0",
        "not to_number(input.direction) > 0",
        "1 / input.trace.hops > 0",
        "1 % input.trace.hops > 0",
        "input.direction + 1 == 2",
        "input.direction > 1",
        "input.source.labels < 1",
        "9223372036854775807 * 9223372036854775807 > 0",
        "time.weekday([0, \"nowhere\"]) == \"Monday\"",
        "regex.match(\"(\", \"x\")",
        "net.cidr_contains(\"x\", \"1.2.3.4\")",
        "some x in [1, 2]; to_number(input.direction) == x",
        "count([x | some x in [1]; to_number(input.direction) == x]) == 0",
        "not helper",
    ] {
        assert_denied_by(
            "evaluation_error",
            denying(body, "helper if to_number(input.direction) == 1"),
        );
    }
}

#[test]
fn the_input_is_there_after_a_loop_that_didnt_turn() {
    // The compiler loads the input where it is first used: here, in a loop over nothing.
    for body in [
        "count([1 | some x in data.user.p.none; input.direction == x]) == 0\ninput.direction == \"inbound\"",
        "count([1 | some x in input.source.capabilities; data.user.p.text == x]) == 0\ndata.user.p.text == \"x\"",
        "every x in data.user.p.none { input.direction == x }\ninput.direction == \"inbound\"",
        "not helper\ninput.direction == \"inbound\"",
    ] {
        assert_denied_by(
            "no",
            denying(body, "helper if { some x in data.user.p.none; input.direction == x }"),
        );
    }
}

#[test]
fn rules_that_could_have_two_values_are_refused() {
    // The virtual machine would take one of them, or none, where Rego knows a conflict.
    assert_eq!(
        refused(denying("x == 2", "x := 1 if input.trace.hops == 0\nx := 2 if true")),
        "ambiguous_rule"
    );
    assert_eq!(
        refused(denying("f(1) == 2", "f(a) := 1 if a > 0\nf(a) := 2 if a > 0")),
        "ambiguous_rule"
    );
    assert_eq!(
        refused(denying("x == 2", "x := y if some y in [1, 2]")),
        "ambiguous_rule"
    );
    assert_eq!(
        refused(denying("x.a == 1", "x[k] := v if some k, v in data.mesh.k")),
        "ambiguous_rule"
    );
    for conflict in [
        "x := {k: v | some v in [1, 2]; k := \"a\"}",
        "x := {\"a\": v | some v in [1, 2]}",
        "x := {v.id: v | some v in data.mesh.k}",
        "x := {a: b | some a in [1, 2]; some b in [1, 2]}",
        "x := {v: k | some k, v in data.mesh.k}",
    ] {
        assert_eq!(
            refused(denying(&format!("{conflict}\nx.a == 1"), "")),
            "ambiguous_comprehension",
            "{conflict}"
        );
    }
    for harmless in [
        "x := {k: v | some k, v in data.mesh.k}\nx.a == 1",
        "x := {e: true | some e in [\"a\", \"b\"]}\nx.a",
        "helper",
        "y == 1",
    ] {
        let rules = "helper if some x in [1, 2]\nhelper if input.trace.hops == 7\n\
                     y := 1 if input.trace.hops == 0 else := 2 if true";
        assert_denied_by("no", denying(harmless, rules));
    }
}

#[test]
fn a_loop_before_an_else_is_refused() {
    // The machine takes a loop that found nothing for a condition that holds, and never gets to the else.
    let found = "x := 1 if { some c in input.source.capabilities; c == \"a\" } else := 2 if true";
    assert_eq!(refused(denying("x == 2", found)), "else_after_loop");
    let function = "f(a) := 1 if { input.source.capabilities[_] == a } else := 2 if true";
    assert_eq!(refused(denying("f(1) == 2", function)), "else_after_loop");
    let apart = "x := 1 if found else := 2 if true\n\nfound if { some c in input.source.capabilities; c == \"a\" }";
    assert_denied_by("no", denying("x == 2", apart));
    let every = "x := 1 if { every c in [1, 2] { c > 1 } } else := 2 if true";
    assert_denied_by("no", denying("x == 2", every));
}

#[test]
fn a_condition_outside_of_a_comprehensions_loop_is_refused() {
    // The machine would go on in the loop around the comprehension, or end in a circle.
    let bare = "count([1 | input.direction == \"outbound\"]) == 0";
    assert_eq!(refused(denying(bare, "")), "comprehension_condition");
    let before = "count([x | input.direction == \"outbound\"; some x in [1]]) == 0";
    assert_eq!(refused(denying(before, "")), "comprehension_condition");
    let inside = "some x in [1, 2]\ncount([1 | x == 3]) == 0";
    assert_eq!(refused(denying(inside, "")), "comprehension_condition");
    for sound in [
        "count([x | some x in [1]; input.direction == \"outbound\"]) == 0",
        "some x in [1, 2]\ncount([1 | some y in [3]; x == y]) == 0",
        "some x in [1, 2]\ncount([1 | some y in [3]; count([1 | some z in [4]; z == y]) == 1]) == 0\nx == 2",
    ] {
        assert_denied_by("no", denying(sound, ""));
    }
}

#[test]
fn a_loop_in_an_every_is_refused() {
    // Each turn in which the inner loop found nothing would count as one that holds.
    assert_eq!(
        refused(denying("every x in [1] { some y in [2]; y == x }", "")),
        "every_loop"
    );
    assert_eq!(refused(denying("every x in [1] { [2, 3][_] == x }", "")), "every_loop");
    let apart = "found(x) if { some y in [2]; y == x }";
    assert_eq!(decided(denying("every x in [1] { found(x) }", apart)).0, Verdict::Allow);
    assert_denied_by("no", denying("every x in [2] { found(x) }", apart));
    assert_denied_by(
        "no",
        denying("every x in [2] { count([y | some y in [2]; y == x]) == 1 }", ""),
    );
}

#[test]
fn only_named_documents_can_be_read() {
    for body in [
        "data.user.q.x == 1",
        "data.user[input.direction].x == 1",
        "data[input.direction] == 1",
        "data.aip.policy[input.direction] == 1",
        "data.aip.policy.q.rules == 1",
        "data.aip.entry.rules == 1",
        "data == 1",
        "x := data\nx.aip == 1",
        "data[\"aip\"].entry.rules == 1",
        "some x in data.aip",
        "walk(data, [x, y])",
    ] {
        assert_eq!(refused(denying(body, "")), "data_reference", "{body}");
    }
    assert_eq!(refused(denying("f(1)", "f(data) if data == 1")), "data_reference");
    for import in [
        "data.user.q",
        "data.aip.entry",
        "input.source",
        "data",
        "data.mesh as x",
        "data.aip.lib.http as input",
    ] {
        let rego = denying("true", "").replacen('\n', &format!("\nimport {import}\n"), 1);
        assert_eq!(refused(rego), "import", "{import}");
    }
}

#[test]
fn builtins_are_listed() {
    for call in ["time.now_ns() > 0", "rand.intn(\"a\", 9) > 0", "trace(\"x\")"] {
        assert_eq!(refused(denying(call, "")), "builtin", "{call}");
    }
    for call in [
        "http.send({}) == 1",
        "opa.runtime() == 1",
        "crypto.sha256(\"x\") == 1",
        "net.lookup_ip_addr(\"x\") == 1",
    ] {
        assert_eq!(refused(denying(call, "")), "compile", "{call}");
    }
    let marked = format!("# aip:volatile\n{}", denying("time.now_ns() < 0", ""));
    let set = Arc::new(PolicySet::compile(&[source(marked)], &json!({})).unwrap());
    let mut evaluator = Evaluator::new();
    for _ in 0..2 {
        let decision = evaluator.decide(&set, &Facts::default());
        assert_eq!((decision.verdict, decision.cached), (Verdict::Allow, false));
    }
}

#[test]
fn defaults_are_constants() {
    // They are computed by the compiler, where no limit holds.
    for value in [
        "numbers.range(1, 50000000)",
        "f(1)",
        "[a | a := 1]",
        "input.trace.hops",
        "1 + 1",
    ] {
        assert_eq!(
            refused(denying("x", &format!("f(a) := a\n\ndefault x := {value}"))),
            "default",
            "{value}"
        );
    }
    let constants = "default x := {\"a\": [1, -2, null], \"b\": \"c\"}\n\ny := 1 if x.b == \"c\"";
    assert_denied_by("no", denying("y == 1", constants));
}

#[test]
fn a_module_is_what_it_says() {
    let other = |package: &str| denying("true", "").replacen("aip.policy.p", package, 1);
    for package in [
        "aip.policy.q",
        "aip.policy.p.q",
        "aip.entry",
        "aip.lib.http",
        "aip.policy[\"p\"]",
    ] {
        assert_eq!(refused(other(package)), "package", "{package}");
    }
    assert_eq!(refused(denying("true", "package aip.policy.q")), "package");
    assert_eq!(
        refused("package aip.policy.p\n\nrules := {1}\n".to_owned()),
        "rules_shape"
    );
    assert_eq!(
        refused("package aip.policy.p\n\nother := 1\n".to_owned()),
        "rules_shape"
    );
    assert_eq!(
        refused(denying("true", "x := 1 \u{0} y")),
        "lexical",
        "the engine stops at NUL"
    );
    for name in ["", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(64), "a\"b"] {
        assert_eq!(admission::lexical_gate(name, "").unwrap_err().reason, "name", "{name}");
    }
}

#[test]
fn two_policies_cant_share_a_package() {
    let named = |name: &str| PolicySource {
        name: name.into(),
        ..source(denying("true", "").replacen("policy.p", "policy.a_b", 1))
    };
    let faults = PolicySet::compile(&[named("a-b"), named("a-b")], &json!({})).unwrap_err();
    assert_eq!(faults[0].reason, "name_collision");
}

#[test]
fn what_isnt_a_rule_denies() {
    let giving = |object: &str| denying("false", &format!("rules contains {object} if true"));
    for object in [
        "1",
        "{}",
        "{\"rule\": \"a\", \"verdict\": \"allow\"}",
        "{\"rule\": 1, \"verdict\": \"allow\", \"reason\": \"\"}",
        "{\"rule\": \"\", \"verdict\": \"allow\", \"reason\": \"\"}",
        "{\"rule\": \"a b\", \"verdict\": \"allow\", \"reason\": \"\"}",
        "{\"rule\": \"a\", \"verdict\": \"allow\", \"reason\": \"\", \"extra\": 1}",
        "{\"rule\": \"a\", \"verdict\": \"allow\", \"reason\": \"\", \"obligations\": {\"unknown\": 1}}",
        "{\"rule\": \"a\", \"verdict\": \"allow\", \"reason\": \"\", \"obligations\": {\"concurrency\": -1}}",
        "{\"rule\": \"a\", \"verdict\": \"allow\", \"reason\": \"\", \"obligations\": {\"concurrency\": 1.5}}",
        "{\"rule\": \"a\", \"verdict\": \"allow\", \"reason\": \"\", \"obligations\": [1]}",
        "{\"rule\": \"a\", \"verdict\": \"transform\", \"reason\": \"\"}",
        "{\"rule\": \"a\", \"verdict\": \"transform\", \"reason\": \"\", \"obligations\": {\"redact\": [\"x\"]}}",
    ] {
        assert_denied_by("malformed_rule", giving(object));
    }
    for verdict in ["Allow", "ok", "", "allow "] {
        let object = format!("{{\"rule\": \"a\", \"verdict\": \"{verdict}\", \"reason\": \"\"}}");
        assert_denied_by("unsupported_verdict", giving(&object));
    }
}

#[test]
fn results_are_bounded() {
    let many = "rules contains {\"rule\": sprintf(\"r%d\", [i]), \"verdict\": \"allow\", \"reason\": \"\"} if \
                some i in numbers.range(1, 65)";
    assert_denied_by("too_many_rules", denying("false", many));
    let long = "rules contains {\"rule\": \"a\", \"verdict\": \"deny\", \"reason\": concat(\"\", [\"ä\\n\" | some i in \
                numbers.range(1, 900)])} if true";
    let decision = decided_on(denying("false", long), &Facts::default());
    assert_eq!(decision.rule(), "a");
    assert!(decision.reason().len() <= aip_policy::limits::MAX_REASON_BYTES && decision.reason().ends_with('…'));
    assert!(!decision.reason().contains('\n'), "a reason stays on one line of a log");
}

#[test]
fn large_numbers_are_compared_exactly() {
    let mut facts = Facts::default();
    facts.trace.hops = 9_007_199_254_740_993;
    assert_eq!(
        decided_on(denying("input.trace.hops == 9007199254740993", ""), &facts).rule(),
        "no"
    );
    assert_eq!(
        decided_on(denying("input.trace.hops == 9007199254740992", ""), &facts).rule(),
        "all"
    );
    assert_eq!(
        decided_on(
            denying("input.trace.hops < 99999999999999999999999999999999999999", ""),
            &facts
        )
        .rule(),
        "no"
    );
}

#[test]
fn deep_arguments_dont_overflow_the_stack() {
    // As deep as a JSON parser lets a body be.
    let text = format!("{{\"a\": {}1{}}}", "[".repeat(120), "]".repeat(120));
    let mut facts = Facts::default();
    facts.protocol.arguments = serde_json::from_str::<serde_json::Map<_, _>>(&text).unwrap().into();
    assert_eq!(
        decided_on(
            denying("input.protocol.arguments.a == input.protocol.arguments.a", ""),
            &facts
        )
        .rule(),
        "no"
    );
}

#[test]
fn serve_answers_whatever_it_is_given() {
    for request in [&b""[..], b"{", b"[]", b"{\"name\": 1}", b"\xff"] {
        let answer: Result<aip_policy::Admission, Vec<aip_policy::Diagnostic>> =
            serde_json::from_slice(&admission::serve(request)).unwrap();
        assert_eq!(answer.unwrap_err()[0].reason, "request");
    }
    let request = serde_json::to_vec(&source(denying("input.source.id == \"\"", ""))).unwrap();
    let answer: Result<aip_policy::Admission, Vec<aip_policy::Diagnostic>> =
        serde_json::from_slice(&admission::serve(&request)).unwrap();
    assert_eq!(answer.unwrap().reads, ["input.source.id"]);
}

mod whatever_the_gate_lets_through {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    /// Pieces of which hostile modules are made; joined at random, most are no Rego at all.
    const PIECES: &[&str] = &[
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        "x",
        "y",
        "f",
        "input",
        "input.a",
        "data.mesh",
        "1",
        "-",
        "\"a\"",
        "`[`",
        "# [\n",
        ",",
        ":",
        ":=",
        "=",
        "==",
        "|",
        "&",
        ".",
        ";",
        "\n",
        " ",
        "if",
        "else",
        "not",
        "some",
        "in",
        "every",
        "contains",
        "default",
        "rules",
        "numbers.range(1,9)",
        "set()",
        "\\",
        "\t",
        "with",
        "as",
        "import",
        "\u{e4}",
        "0.1e9",
        "`",
        "\"",
        "[x |",
        "{x |",
        "{x: y |",
        "{\"a\":",
        "x[",
        "f(",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn is_compiled_or_refused_at_once(pieces in proptest::collection::vec(select(PIECES), 0..120)) {
            let start = Instant::now();
            let rego = denying("true", &pieces.join(" "));
            drop(PolicySet::compile(&[source(rego.clone())], &json!({})).map(Arc::new).map(|set| {
                Evaluator::new().decide(&set, &Facts::default())
            }));
            prop_assert!(start.elapsed() < Duration::from_secs(5), "{}", rego);
        }
    }
}
