//! What is refused before it is compiled or run.

use super::*;

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
