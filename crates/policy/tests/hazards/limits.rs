//! What runs, and ends at a limit.

use super::*;

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
