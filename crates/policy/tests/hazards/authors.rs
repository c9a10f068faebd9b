//! What an author would try who wants more than to decide: to read what is not theirs, to reach the network, the clock or
//! the machine, and to make little text into much work.

use super::*;

/// How it ends: the reason for which the module is refused, or the rule that decides.
fn end(rego: String) -> String {
    let start = Instant::now();
    let ended = match PolicySet::compile(&[source(rego)], &json!({"k": {"a": 1}})) {
        Err(faults) => faults[0].reason.clone(),
        Ok(set) => {
            let decision = Evaluator::new().decide(&Arc::new(set), &Facts::default());
            format!("{:?} {}", decision.verdict, decision.rule())
        }
    };
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    ended
}

fn assert_end(expected: &str, bodies: &[&str]) {
    for body in bodies {
        assert_eq!(end(denying(body, "")), expected, "{body}");
    }
}

#[test]
fn nothing_outside_is_reached() {
    assert_end(
        "compile",
        &[
            "http.send({\"method\": \"get\", \"url\": \"http://169.254.169.254/\"}).status_code == 200",
            "net.lookup_ip_addr(\"a.example\") == set()",
            "opa.runtime().env.HOME == \"/root\"",
            "rego.parse_module(\"x\", \"package x\") == {}",
            "rego.metadata.rule() == {}",
            "uuid.rfc4122(\"x\") == \"\"",
            "io.jwt.decode(\"a.b.c\") == []",
            "io.jwt.verify_hs256(\"a.b.c\", \"secret\")",
            "crypto.x509.parse_certificates(\"\") == []",
            "crypto.hmac.sha256(\"a\", \"b\") == \"\"",
            "providers.aws.sign_req({}, {}, 1) == {}",
            "print(\"x\")",
        ],
    );
    assert_end(
        "builtin",
        &["time.now_ns() > 0", "rand.intn(\"a\", 9) == 1", "trace(\"x\")"],
    );
}

#[test]
fn nothing_is_unpacked() {
    // What is packed is small, and what comes out of it is not: no policy opens anything that a caller packed.
    for call in [
        "json.unmarshal(\"[]\") == []",
        "yaml.unmarshal(\"a: &a [*a]\") == []",
        "json.patch({}, []) == {}",
        "base64.decode(\"\") == \"\"",
        "base64url.decode(\"\") == \"\"",
        "hex.decode(\"\") == \"\"",
        "urlquery.decode(\"\") == \"\"",
        "urlquery.decode_object(\"\") == {}",
        "graph.reachable({}, []) == set()",
        "walk(input, [p, x])",
        "some p, x\nwalk(input, [p, x])\nx == 1",
    ] {
        let ended = end(denying(call, ""));
        assert!(["compile", "builtin"].contains(&ended.as_str()), "{call}: {ended}");
    }
}

#[test]
fn no_fact_is_put_in_the_place_of_another() {
    for body in [
        "y with input as {}",
        "y with input.source.id as \"x\"",
        "y with data.user.q as {}",
        "y with data.mesh as {}",
        "y with data.aip.lib as {}",
        "y with count as f",
    ] {
        let ended = end(denying(body, "y if input.source.id == \"x\"\n\nf(x) := 0"));
        assert!(!ended.starts_with("Allow"), "{body}: {ended}");
        assert!(!ended.starts_with("Deny no"), "{body}: {ended}");
    }
}

#[test]
fn numbers_don_t_grow_without_end() {
    let mut squares = "x0 := 3\n".to_owned();
    for (at, before) in (1..40).zip(0..) {
        squares += &format!("x{at} := x{before} * x{before}\n");
    }
    let mut all = vec![end(denying("x39 > 0", &squares))];
    let inside = squares.replace("x0 := 3\n", "x0 := input.trace.hops + 3\n");
    all.push(end(denying(&format!("{inside}x39 > 0"), "")));
    for body in [
        "product(numbers.range(1, 5000)) > 0",
        "p := product(numbers.range(1, 10000))\nproduct([p | some i in numbers.range(1, 10000)]) > 0",
        "x := to_number(concat(\"\", [\"9\" | some i in numbers.range(1, 10000)]))\nproduct([x, x, x]) > 0",
        "1e999999999 > 0",
        "x := to_number(\"1e999999999\")\nx > 0",
        "count(format_int(bits.lsh(1, 60) * bits.lsh(1, 60), 2)) > 0",
        "bits.lsh(1, 63) * bits.lsh(1, 63) * bits.lsh(1, 63) > 0",
        "sum([x * x * x * x * x * x | some x in numbers.range(1000000, 1000009)]) > 0",
    ] {
        all.push(end(denying(body, "")));
    }
    for (at, ended) in all.iter().enumerate() {
        assert!(
            !ended.starts_with("Allow") && !ended.starts_with("Deny no"),
            "{at}: {ended}"
        );
    }
}

#[test]
fn comprehensions_in_comprehensions_end_at_a_limit() {
    let range = "r := numbers.range(1, 10000)\n";
    for body in [
        "count({[a, b] | some a in r; some b in r}) > 0",
        "count({a: {b: c | some b in r; some c in r} | some a in r}) > 0",
        "every a in r { every b in r { a + b > 0 } }",
        "count([s | some a in r; s := concat(\",\", [sprintf(\"%d\", [b]) | some b in r])]) > 0",
        "s := concat(\"\", [\"ab\" | some a in r])\ncount([split(s, \"a\") | some b in r]) > 0",
        "count([regex.match(\"(a|a)*$\", sprintf(\"%d\", [a])) | some a in r; some b in r]) > 0",
    ] {
        let ended = end(denying(&format!("{range}{body}"), ""));
        assert!(
            !ended.starts_with("Allow") && !ended.starts_with("Deny no"),
            "{body}: {ended}"
        );
    }
}

#[test]
fn a_reason_tells_a_caller_one_short_line_whatever_it_is_made_of() {
    let all = "rules contains {\"rule\": \"all\", \"verdict\": \"deny\", \"reason\": sprintf(\"%v %v %v\", [input, data.mesh, data.user.p])} if true";
    let rego = format!("package aip.policy.p\n\n{all}\n");
    let mut facts = Facts::default();
    facts.request.path = vec!["\u{1b}[2J\r\n\u{2028}".repeat(200)];
    let decision = decided_on(rego, &facts);
    assert_eq!(decision.verdict, Verdict::Deny);
    let reason = decision.reason();
    assert!(reason.len() <= aip_policy::limits::MAX_REASON_BYTES, "{}", reason.len());
    assert!(!reason.chars().any(char::is_control), "{reason:?}");
}
