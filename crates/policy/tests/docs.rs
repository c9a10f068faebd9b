//! What the documentation says of the input, of limits, builtins and reasons is what the types and constants say.
//! `AIP_REGENERATE=1` writes it anew.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use aip_policy::admission::NEVER_ESTABLISHED;
use aip_policy::source::REASONS;
use aip_policy::{Facts, Obligations, PolicySource, Verdict, admission, builtins, limits, verdict};
use serde_json::Value as Json;

/// The schema with its keys in order, whatever order the workspace's features give JSON objects.
fn schema_of<T: schemars::JsonSchema>() -> Json {
    fn sorted(json: Json) -> Json {
        match json {
            Json::Object(map) => {
                let mut entries: Vec<(String, Json)> =
                    map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                Json::Object(entries.into_iter().collect())
            }
            Json::Array(items) => items.into_iter().map(sorted).collect(),
            plain => plain,
        }
    }
    sorted(serde_json::to_value(schemars::schema_for!(T)).unwrap())
}

fn docs(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(file)
}

fn check(file: &str, want: &str) {
    let path = docs(file);
    if std::env::var_os("AIP_REGENERATE").is_some() {
        fs::write(&path, want).unwrap();
    }
    let have = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        have == want,
        "docs/{file} is stale: AIP_REGENERATE=1 cargo test -p aip-policy --test docs"
    );
}

#[test]
fn the_schema_is_the_types() {
    let schema = schemars::schema_for!(Facts);
    check(
        "policy-input.schema.json",
        &(serde_json::to_string_pretty(&schema).unwrap() + "\n"),
    );
}

#[test]
fn the_tables_are_the_types_and_the_constants() {
    let mut page = fs::read_to_string(docs("policy.md")).unwrap();
    for (name, text) in [
        ("verdicts", verdicts_table()),
        ("input", input_table()),
        ("obligations", obligations_table()),
        ("limits", limits_table()),
        (
            "builtins",
            list(builtins::PURE) + "\n\nWith `# aip:volatile` also: " + &list(builtins::VOLATILE),
        ),
        ("rules", list(&verdict::builtin::ALL)),
        ("optional", list(aip_policy::admission::OPTIONAL_FACTS)),
        ("sensitive", list(aip_policy::SENSITIVE_FACTS)),
        ("reasons", reasons_table()),
    ] {
        page = with_section(&page, name, &text);
    }
    check("policy.md", &page);
}

#[test]
fn the_example_of_the_page_is_admitted() {
    let page = fs::read_to_string(docs("policy.md")).unwrap();
    let blocks: Vec<&str> = page
        .split("```rego\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .collect();
    let find = |package: &str| *blocks.iter().find(|block| block.contains(package)).unwrap();
    let policy = PolicySource {
        name: "billing-only".to_owned(),
        rego: find("package aip.policy.billing_only\n").to_owned(),
        data: Json::Null,
        tests: Some(find("package aip.policy.billing_only_test\n").to_owned()),
    };
    assert_eq!(admission::admit(&policy).unwrap().tests_passed, 2);
}

#[test]
fn every_link_of_the_page_leads_to_a_page() {
    let page = fs::read_to_string(docs("policy.md")).unwrap();
    let links = page
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next());
    let missing: Vec<&str> = links
        .filter(|link| link.ends_with(".md") && !docs(link).exists())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn an_obligation_of_this_version_is_one() {
    let schema = schema_of::<Obligations>();
    for key in Obligations::IN_THIS_VERSION {
        assert!(schema["properties"][*key].is_object(), "{key}");
    }
}

fn with_section(page: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- generated: {name} -->\n"), "<!-- end -->");
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no section {name}"));
    let (_, after) = rest.split_once(end).unwrap();
    format!("{before}{begin}{}\n{end}{after}", text.trim_end())
}

fn list(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

/// The schema that a property refers to, if it refers to one.
fn resolved<'a>(root: &'a Json, schema: &'a Json) -> &'a Json {
    match schema["$ref"].as_str() {
        Some(name) => &root["$defs"][name.trim_start_matches("#/$defs/")],
        None => schema,
    }
}

fn kind(root: &Json, schema: &Json) -> String {
    let target = resolved(root, schema);
    if target["oneOf"].is_array() || target["enum"].is_array() {
        return "text".to_owned();
    }
    match target["type"].as_str() {
        Some("string") => "text".to_owned(),
        Some("integer") => "integer".to_owned(),
        Some("boolean") => "flag".to_owned(),
        Some("array") => format!("list of {}", kind(root, &target["items"])),
        Some("object") => match &target["additionalProperties"] {
            values @ Json::Object(_) => format!("object of {}", kind(root, values)),
            _ => "object".to_owned(),
        },
        Some(other) => other.to_owned(),
        None => "any".to_owned(),
    }
}

fn rows(root: &Json, schema: &Json, prefix: &str, neutral: &Json, volatility: &str, out: &mut String) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    for (name, property) in properties {
        let path = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        let target = resolved(root, property);
        let volatility = property["x-aip-volatility"].as_str().unwrap_or(volatility);
        let about = property["description"]
            .as_str()
            .or(target["description"].as_str())
            .unwrap_or_default();
        let fact = match property["x-aip-fact"] == true {
            true if NEVER_ESTABLISHED.contains(&path.as_str()) => "never there",
            true => "yes",
            false => "",
        };
        let value = &neutral[name];
        let nested = target["properties"].is_object() && !value.is_null();
        let shown = if nested { String::new() } else { format!("`{value}`") };
        let kind = kind(root, property);
        writeln!(
            out,
            "| `{path}` | {kind} | {shown} | {volatility} | {fact} | {} |",
            cell(about)
        )
        .unwrap();
        if nested {
            rows(root, target, &path, value, volatility, out);
        }
        // What a list or an object of named entries consists of.
        let inner = [&target["items"], &target["additionalProperties"]]
            .into_iter()
            .find(|inner| inner["$ref"].is_string());
        if let Some(inner) = inner {
            let entry = resolved(root, inner);
            for (field, part) in entry["properties"].as_object().into_iter().flatten() {
                let about = part["description"].as_str().unwrap_or_default();
                writeln!(
                    out,
                    "| `{path}[_].{field}` | {} |  | {volatility} |  | {} |",
                    self::kind(root, part),
                    cell(about)
                )
                .unwrap();
            }
        }
    }
}

fn input_table() -> String {
    let schema = schema_of::<Facts>();
    let mut out = "| `input.` | type | neutral | changes with | can fail | |\n|---|---|---|---|---|---|\n".to_owned();
    rows(&schema, &schema, "", &Facts::default().to_json(), "request", &mut out);
    out
}

fn in_this_version(there: bool) -> &'static str {
    if there { "yes" } else { "no: refused" }
}

fn verdicts_table() -> String {
    let schema = schema_of::<Verdict>();
    let mut out = "| verdict, strictest first | in this version | the request |\n|---|---|---|\n".to_owned();
    for verdict in Verdict::ALL {
        let described = schema["oneOf"].as_array().unwrap();
        let described = described.iter().find(|word| word["const"] == verdict.as_str()).unwrap();
        let about = cell(described["description"].as_str().unwrap());
        let there = in_this_version(verdict.in_this_version());
        writeln!(out, "| `{verdict}` | {there} | {about} |").unwrap();
    }
    out
}

fn accepted(obligation: &str) -> &'static str {
    if Obligations::IN_THIS_VERSION.contains(&obligation) {
        "accepted"
    } else {
        in_this_version(false)
    }
}

fn obligations_table() -> String {
    let schema = schema_of::<Obligations>();
    let mut out = "| key | in this version | |\n|---|---|---|\n".to_owned();
    for (name, property) in schema["properties"].as_object().unwrap() {
        writeln!(
            out,
            "| `{name}` | {} | {} |",
            accepted(name),
            cell(property["description"].as_str().unwrap())
        )
        .unwrap();
    }
    out
}

fn limits_table() -> String {
    let rows: [(&str, String); 22] = [
        ("bytes of a module", limits::MAX_MODULE_BYTES.to_string()),
        ("nested brackets", limits::MAX_BRACKET_DEPTH.to_string()),
        (
            "tokens of a module, twice for each bracket around them",
            limits::MAX_PARSER_WORK.to_string(),
        ),
        ("operators in one expression", limits::MAX_EXPRESSION_CHAIN.to_string()),
        (
            "levels of rules that call each other",
            limits::MAX_CALL_DEPTH.to_string(),
        ),
        (
            "repetitions of a value inside another",
            limits::MAX_AMPLIFICATION.to_string(),
        ),
        ("bytes of a policy's data, as JSON", limits::MAX_DATA_BYTES.to_string()),
        (
            "bytes of the mesh's data, as JSON",
            limits::MAX_MESH_DATA_BYTES.to_string(),
        ),
        ("levels of data", limits::MAX_DATA_DEPTH.to_string()),
        ("policies in a set", limits::MAX_POLICIES.to_string()),
        ("instructions of a decision", limits::MAX_INSTRUCTIONS.to_string()),
        (
            "milliseconds of a decision",
            limits::MAX_EVALUATION.as_millis().to_string(),
        ),
        (
            "bytes and elements that the builtins of a decision produce",
            limits::MAX_PRODUCED.to_string(),
        ),
        (
            "bytes and elements that the builtins of a decision are given",
            limits::MAX_EXAMINED.to_string(),
        ),
        ("numbers in a range", limits::MAX_RANGE.to_string()),
        ("rules that fire", limits::MAX_FIRED_RULES.to_string()),
        ("bytes of a rule id", limits::MAX_RULE_ID_BYTES.to_string()),
        (
            "bytes of a reason (longer ones are cut)",
            limits::MAX_REASON_BYTES.to_string(),
        ),
        (
            "entries in a list of an obligation",
            limits::MAX_OBLIGATION_ENTRIES.to_string(),
        ),
        ("sets that a worker keeps", limits::MAX_SETS_PER_WORKER.to_string()),
        ("cached decisions of a worker", limits::MAX_CACHED_DECISIONS.to_string()),
        ("of these for one caller", limits::MAX_CACHED_PER_CALLER.to_string()),
    ];
    let mut out = "| at most | |\n|---|---|\n".to_owned();
    for (what, number) in rows {
        writeln!(out, "| {what} | {number} |").unwrap();
    }
    out
}

fn reasons_table() -> String {
    let mut out = "| reason | |\n|---|---|\n".to_owned();
    for (reason, meaning) in REASONS {
        writeln!(out, "| `{reason}` | {} |", cell(meaning)).unwrap();
    }
    out
}
