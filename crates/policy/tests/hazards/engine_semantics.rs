//! Where the engine would let a deny rule silently not fire.

use super::*;

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
fn an_assignment_of_nothing_doesnt_hold() {
    // The compiler copies the value, and goes on where there is none.
    let missing = "input.source.labels.none";
    for body in [
        "v := MISSING\nnot v == \"bad\"",
        "v := MISSING\nnot is_string(v)",
        "v := MISSING",
        "v := [MISSING]",
        "v := {\"a\": MISSING}",
        "v := MISSING + 1",
        "v := lower(MISSING)",
        "v := nothing",
        "v := f(1)",
        "v := input.source.labels[MISSING]",
        "some x in [1]\nv := MISSING\nx == 1",
        "v := MISSING\nsome x in [1]\nx == 1",
        "count([v | some x in [1]; v := MISSING]) == 1",
        "count([x | v := MISSING; some x in [1]]) == 1",
        "count({x | v := MISSING; some x in [1]; count([y | w := v; some y in [1]]) == 1}) == 1",
        "every x in [1] { v := MISSING; x == 1 }",
    ] {
        let rules = "nothing := 1 if input.trace.hops == 7\n\nf(x) := 1 if x == 2";
        let body = body.replace("MISSING", missing);
        assert_eq!(decided(denying(&body, rules)).0, Verdict::Allow, "{body}");
        let helper = denying("not helper", &format!("helper if {{\n{body}\n}}\n\n{rules}"));
        assert_denied_by("no", helper);
    }
    for present in [
        "v := false\nnot v",
        "v := null\nv == null",
        "v := input.source.labels\nv == {}",
        "count([x | v := [1, 2]; some x in v]) == 2",
        "count([x | v := input.request.path; w := [1]; some x in w; v == []]) == 1",
        "[v, w] := [1, 2]\nv + w == 3",
        "v := [x | some x in [1]]\ncount(v) == 1",
    ] {
        assert_denied_by("no", denying(present, ""));
    }
    // The machine can't leave a comprehension that has no loop.
    assert_eq!(
        refused(denying("count([1 | v := input.source.labels.none]) == 1", "")),
        "comprehension_condition"
    );
}

#[test]
fn an_error_denies_in_whichever_definition_it_is() {
    // The machine stops at the first that holds, and a caller could see to it that one does.
    let fails = "{ some v in input.direction; v == \"secret\" }";
    for rules in [
        format!("f(x) if true\n\nf(\"a\") if {fails}"),
        format!("f(\"a\") if {fails}\n\nf(x) if true"),
        "f(x) if true\n\nf(\"a\") if not input.request.path + 1".to_owned(),
        format!("f(x) := 7 if true\n\nf(x) := 7 if {fails}"),
        format!("f(x) if helper\n\nhelper if true\n\nhelper if {fails}"),
    ] {
        assert_denied_by("evaluation_error", denying("not f(\"a\")", &rules));
    }
    let ordinary = "f(\"a\") if true\n\nf(x) if x == \"b\"\n\nf(x) if x in [\"b\", \"c\"]\n\n\
                    g(x) := 1 if f(x) else := 2 if x == \"d\" else := 3";
    for (called, verdict) in [
        ("f(\"a\")", Verdict::Deny),
        ("f(\"b\")", Verdict::Deny),
        ("f(\"d\")", Verdict::Allow),
        ("g(\"c\") == 1", Verdict::Deny),
        ("g(\"d\") == 2", Verdict::Deny),
        ("g(\"e\") == 3", Verdict::Deny),
    ] {
        assert_eq!(decided(denying(called, ordinary)).0, verdict, "{called}");
    }
}

#[test]
fn a_comprehension_has_no_element_that_is_nothing() {
    // The machine adds it: a list of who has a label would be as long as the list of who was asked.
    let rules = "nothing := input.source.labels.team\n\nf(x) if true";
    for body in [
        "[input.source.labels.team | some x in [1, 2]] == []",
        "[nothing | some x in [1, 2]] == []",
        "[[x, nothing] | some x in [1, 2]] == []",
        "[{\"a\": [x, f(nothing)]} | some x in [1, 2]] == []",
        "[[x, f(nothing)] | some [x, _] in [[1, 2]]] == []",
        "count([x.id | some x in [{\"id\": 1}, {}]]) == 1",
        "count({x.id | some x in [{\"id\": 1}, {}]}) == 1",
        "{x: x.id | some x in [{\"id\": 1}, {}]} == {{\"id\": 1}: 1}",
        "[[z.id | some z in x] | some x in [[{}], [{\"id\": 1}]]] == [[], [1]]",
        "some y in [1, 2]\ncount([nothing | some x in [y]]) == 0\ny == 2",
        "[y | y := 1] == [1]",
        "[x | some [x, _] in [[1, 2], [3, 4], 5]] == [1, 3]",
        "[x | some x in [false, null]] == [false, null]",
    ] {
        assert_denied_by("no", denying(body, rules));
    }
    for without_loop in [
        "count([nothing | y := 1]) == 0",
        "{1: x.id | x := {\"id\": 1}} == {1: 1}",
    ] {
        assert_eq!(
            refused(denying(without_loop, rules)),
            "comprehension_condition",
            "{without_loop}"
        );
    }
}

#[test]
fn a_rule_that_fires_and_has_nothing_to_say_denies() {
    // In Rego it would not fire, and a caller would only have to leave out what the reason names.
    let rule = |head: &str, condition: &str| denying("false", &format!("rules contains {head} if {condition}"));
    let missing = "input.source.labels.team";
    for head in [
        format!("{{\"rule\": \"x\", \"verdict\": \"deny\", \"reason\": sprintf(\"%v\", [{missing}])}}"),
        format!("{{\"rule\": \"x\", \"verdict\": \"deny\", \"reason\": {missing}}}"),
        format!("{{\"rule\": \"x\", \"verdict\": {missing}, \"reason\": \"\"}}"),
        missing.to_owned(),
    ] {
        assert_denied_by("evaluation_error", rule(&head, "true"));
        assert_denied_by("evaluation_error", rule(&head, "{ some x in [1, 2]; x == 2 }"));
        // What doesn't fire need not say anything.
        for condition in [
            "false",
            "{ some x in [1, 2]; x == 3 }",
            "{ some x in data.user.p.none; x == 1 }",
        ] {
            assert_eq!(
                decided(rule(&head, condition)).0,
                Verdict::Allow,
                "{head} if {condition}"
            );
        }
    }
    let said = "{\"rule\": \"x\", \"verdict\": \"deny\", \"reason\": concat(\",\", [y, z])}";
    let looped = rule(said, "{ some y in [\"a\", \"b\"]; some z in [\"c\"]; y == \"b\" }");
    assert_denied_by("x", looped);
}

#[test]
fn a_line_doesnt_continue_the_one_before_by_a_bracket() {
    // The engine would call the rule, or index it, and the condition below would be no condition.
    for body in [
        "helper\n(input.direction == \"outbound\")",
        "helper # so far\n\n[input.direction][_] == \"outbound\"",
        "x := [1]\n[0][_] == 0",
    ] {
        assert_eq!(refused(denying(body, "helper if true")), "line_continued", "{body}");
    }
    assert_eq!(refused(denying("helper(1)", "helper if true")), "compile");
    assert_denied_by(
        "no",
        denying("helper;\n(input.direction == \"inbound\")", "helper if true"),
    );
    assert_denied_by("no", denying("count(\n[1, 2]\n) == 2\nx := {\n[1]}\nx", ""));
}

#[test]
fn a_key_in_a_membership_is_refused() {
    // The compiler drops it: whoever anybody is an admin for, is one.
    for body in [
        "input.source.name, \"admin\" in data.user.p.roles",
        "not input.source.name, \"admin\" in data.user.p.roles",
        "some k\nk, 1 in data.user.p.one",
        "some k, v\n-1, v in data.user.p.one",
        "some k\n\"a\", 1 in data.user.p.one",
        "some k\n{1}, 1 in data.user.p.one",
        "some k;\n(1), 1 in data.user.p.one",
        "some k\nset(), 1 in data.user.p.one",
        "some k in [1]\nk, 1 in data.user.p.one",
        "x := 1; x, 1 in data.user.p.one",
        "x := (0, 1 in data.user.p.one)",
        "count([1 | some x in [1]; x, 1 in data.user.p.one]) == 0",
        "every x in [1] { x, 1 in data.user.p.one }",
        "f(0, 1 in data.user.p.one)",
    ] {
        assert_eq!(refused(denying(body, "f(x) if x")), "key_membership", "{body}");
    }
    for body in [
        "some k, v in data.user.p.one\nk == 0\nv in [1]",
        "every k, v in data.user.p.one { k == 0; v in data.user.p.one }",
        "count([k | some k, v in data.user.p.one; v in [1]]) == 1",
        "some [k, v], w in {[0, 1]: 1}\nk in [0]",
        "x := [2, (1 in data.user.p.one)]\nx[1]",
        "[2, 1][_] in data.user.p.one",
    ] {
        assert_denied_by("no", denying(body, ""));
    }
}

#[test]
fn a_loop_over_what_isnt_a_collection_denies() {
    // The engine takes it for an empty one: a caller who sends a text where the rule looks through a list would pass.
    for body in [
        "some x in data.user.p.text\nx == \"secret\"",
        "some k, v in data.user.p.null",
        "data.user.p.text[_] == \"secret\"",
        "\"secret\" in data.user.p.text",
        "not \"secret\" in data.user.p.text",
        "every x in data.user.p.text { x == \"secret\" }",
        "count([x | some x in data.user.p.text]) > 0",
        "some x in [data.user.p.one, data.user.p.text]\nsome y in x\ny == 9",
        "not helper",
    ] {
        assert_denied_by(
            "evaluation_error",
            denying(body, "helper if { some x in data.user.p.text; x == \"secret\" }"),
        );
    }
    for body in [
        "some x in data.user.p.missing",
        "\"secret\" in data.user.p.missing",
        "is_array(data.user.p.text)\nsome x in data.user.p.text",
    ] {
        assert_eq!(decided(denying(body, "")).0, Verdict::Allow, "{body}");
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
