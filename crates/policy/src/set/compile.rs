//! From sources to a [`PolicySet`].

use std::collections::BTreeSet;
use std::sync::Arc;

use aip_api::Digest;
use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::Program;
use regorus::rvm::program::RuleType;
use serde_json::Value as Json;

use super::assigned::assigned;
use super::definitions::all_definitions;
use super::hoist::hoisted;
use super::program::{Analysis, Origin};
use super::{Member, PolicySet, program};
use crate::admission::lexical;
use crate::input::json_value;
use crate::limits::{MAX_DATA_BYTES, MAX_DATA_DEPTH, MAX_MESH_DATA_BYTES, MAX_POLICIES};
use crate::reads::{ReadSet, Reads};
use crate::source::{Diagnostic, PolicySource};
use crate::{builtins, guard, library};

const ENTRY: &str = "data.aip.entry.rules";
const ENTRY_FILE: &str = "(entry)";

/// A set, and what admission looks at beside it: the program as the compiler made it, which still knows its lines.
pub(crate) struct Compiled {
    pub(crate) set: PolicySet,
    pub(crate) program: Program,
    pub(crate) analysis: Analysis,
}

pub(super) fn compile(policies: &[PolicySource], mesh_data: &Json) -> Result<PolicySet, Vec<Diagnostic>> {
    if policies.is_empty() {
        let faults = gates(policies, mesh_data);
        let set = PolicySet {
            digest: digest(&[], mesh_data).into(),
            ..PolicySet::empty()
        };
        return if faults.is_empty() { Ok(set) } else { Err(faults) };
    }
    compiled(policies, mesh_data).map(|compiled| compiled.set)
}

/// Compiles at least one policy.
pub(crate) fn compiled(policies: &[PolicySource], mesh_data: &Json) -> Result<Compiled, Vec<Diagnostic>> {
    let mut faults = gates(policies, mesh_data);
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut policies: Vec<&PolicySource> = policies.iter().collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    let built = build(&policies).map_err(|fault| vec![fault])?;
    let analysis = program::analyse(&built);
    faults.extend(analysis.faults.iter().map(|fault| {
        let diagnostic = Diagnostic::new(file_of(&fault.origin, &policies), fault.reason, &*fault.message);
        fault
            .line
            .map_or(diagnostic.clone(), |(line, column)| diagnostic.at(line, column))
    }));
    let members: Vec<Member> = policies
        .iter()
        .map(|policy| member(policy, &built, &analysis, &mut faults))
        .collect();
    let repaired = assigned(&hoisted(&all_definitions(built.clone()))).and_then(|original| {
        let guarded = guard::guarded(&original)?;
        Some((original, guarded))
    });
    let Some((original, guarded)) = repaired else {
        faults.push(Diagnostic::new(
            ENTRY_FILE,
            "too_many_builtins",
            "the policies use too many different builtins, or too many instructions",
        ));
        faults.sort();
        return Err(faults);
    };
    if !faults.is_empty() {
        faults.sort();
        faults.dedup();
        return Err(faults);
    }
    let mut reads = Reads::default();
    members.iter().for_each(|member| reads.join(&member.reads));
    let set = PolicySet {
        digest: digest(&policies, mesh_data).into(),
        original: Arc::new(original),
        guarded: Arc::new(guarded),
        data: json_value(&data_document(&policies, mesh_data)),
        cacheable: !reads.touches("budget") && !members.iter().any(|member| member.volatile),
        reads: ReadSet { reads },
        keep: members.iter().flat_map(|member| member.keep.clone()).collect(),
        members,
    };
    Ok(Compiled {
        set,
        program: built,
        analysis,
    })
}

/// What can be said before the parser sees anything.
fn gates(policies: &[PolicySource], mesh_data: &Json) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    if policies.len() > MAX_POLICIES {
        faults.push(Diagnostic::new(
            "(set)",
            "too_many_policies",
            format!("a set has at most {MAX_POLICIES} policies"),
        ));
    }
    let mut packages = BTreeSet::new();
    for policy in policies {
        faults.extend(lexical::check(&policy.name, &policy.rego).err());
        if !packages.insert(policy.package()) {
            faults.push(Diagnostic::new(
                format!("{}.rego", policy.name),
                "name_collision",
                format!(
                    "two policies of the set share the package aip.policy.{}",
                    policy.package()
                ),
            ));
        }
        faults.extend(data_fault(
            &format!("{} (data)", policy.name),
            &policy.data,
            MAX_DATA_BYTES,
        ));
    }
    faults.extend(data_fault("(mesh data)", mesh_data, MAX_MESH_DATA_BYTES));
    faults
}

pub(crate) fn data_fault(file: &str, data: &Json, limit: usize) -> Option<Diagnostic> {
    fn depth(json: &Json, left: usize) -> bool {
        let Some(left) = left.checked_sub(1) else { return false };
        match json {
            Json::Array(items) => items.iter().all(|item| depth(item, left)),
            Json::Object(map) => map.values().all(|value| depth(value, left)),
            _ => true,
        }
    }
    if !data.is_object() && !data.is_null() {
        return Some(Diagnostic::new(file, "data_shape", "the data of a policy is an object"));
    }
    if !depth(data, MAX_DATA_DEPTH + 1) {
        return Some(Diagnostic::new(
            file,
            "data_depth",
            format!("data nests at most {MAX_DATA_DEPTH} levels deep"),
        ));
    }
    let size = serde_json::to_vec(data).map_or(usize::MAX, |bytes| bytes.len());
    (size > limit).then(|| Diagnostic::new(file, "data_size", format!("{size} bytes of data; at most {limit} fit")))
}

fn build(policies: &[&PolicySource]) -> Result<Program, Diagnostic> {
    let mut engine = regorus::Engine::new();
    for policy in policies {
        add(&mut engine, &format!("{}.rego", policy.name), &policy.rego)?;
    }
    for (name, text) in library::used_by(policies.iter().map(|policy| policy.rego.as_str())) {
        add(&mut engine, &format!("lib/{name}.rego"), text)?;
    }
    let mut entry = String::from("package aip.entry\n");
    for policy in policies {
        // The name goes along, so that a rule says which policy it is from whatever it calls itself.
        let (name, package) = (&policy.name, policy.package());
        entry.push_str(&format!(
            "rules contains [\"{name}\", r] if some r in data.aip.policy.{package}.rules\n"
        ));
    }
    add(&mut engine, ENTRY_FILE, &entry)?;
    let compiled = engine
        .compile_with_entrypoint(&ENTRY.into())
        .map_err(|error| Diagnostic::from_engine(ENTRY_FILE, "compile", &error.to_string()))?;
    let program = Compiler::compile_from_policy(&compiled, &[ENTRY])
        .map_err(|error| Diagnostic::from_engine(ENTRY_FILE, "compile", &error.to_string()))?;
    Ok(Arc::unwrap_or_clone(program))
}

fn add(engine: &mut regorus::Engine, file: &str, text: &str) -> Result<(), Diagnostic> {
    engine
        .add_policy(file.to_owned(), text.to_owned())
        .map(drop)
        .map_err(|error| Diagnostic::from_engine(file, "parse", &error.to_string()))
}

fn member(policy: &PolicySource, program: &Program, analysis: &Analysis, faults: &mut Vec<Diagnostic>) -> Member {
    let file = format!("{}.rego", policy.name);
    let root = format!("data.aip.policy.{}.rules", policy.package());
    let shape = program
        .rule_infos
        .iter()
        .find(|info| info.name == root)
        .map(|info| &info.rule_type);
    if shape != Some(&RuleType::PartialSet) {
        faults.push(Diagnostic::new(
            &file,
            "rules_shape",
            "a policy defines `rules contains {…} if {…}`",
        ));
    }
    let hints = lexical::hints(&policy.rego);
    let mut reads = Reads::default();
    let mut volatile = false;
    for rule in analysis.reachable(&root) {
        reads.join(&rule.reads);
        for name in rule
            .builtins
            .iter()
            .filter_map(|index| program.builtin_info_table.get(*index))
        {
            match builtins::class(&name.name) {
                builtins::Class::Pure => {}
                builtins::Class::Volatile if hints.volatile => volatile = true,
                _ => faults.push(Diagnostic::new(
                    &file,
                    "builtin",
                    format!("`{}` calls {}: {}", rule.name, name.name, builtins::refusal(&name.name)),
                )),
            }
        }
    }
    Member {
        name: policy.name.clone(),
        reads,
        optional: hints.optional,
        keep: hints.keep,
        volatile,
    }
}

fn file_of(origin: &Origin, policies: &[&PolicySource]) -> String {
    match origin {
        Origin::Entry => ENTRY_FILE.to_owned(),
        Origin::Library(name) => format!("lib/{name}.rego"),
        Origin::Policy(package) => policies
            .iter()
            .find(|policy| policy.package() == *package)
            .map_or_else(|| format!("{package}.rego"), |policy| format!("{}.rego", policy.name)),
    }
}

pub(crate) fn data_document(policies: &[&PolicySource], mesh_data: &Json) -> Json {
    let object = |json: &Json| {
        if json.is_object() {
            json.clone()
        } else {
            Json::Object(serde_json::Map::new())
        }
    };
    let user: serde_json::Map<String, Json> = policies
        .iter()
        .map(|policy| (policy.package(), object(&policy.data)))
        .collect();
    serde_json::json!({ "mesh": object(mesh_data), "user": user })
}

/// Digest of a set. Every part is preceded by its length, and objects are written in the order of their keys, so that
/// neither the boundaries nor the order of a map can make two sets look alike or one set look like two.
pub(super) fn digest(policies: &[&PolicySource], mesh_data: &Json) -> String {
    let mut bytes = b"aip policy set v1\0".to_vec();
    let mut part = |text: &[u8]| {
        bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
        bytes.extend_from_slice(text);
    };
    part(canonical(mesh_data).as_bytes());
    for policy in policies {
        part(policy.name.as_bytes());
        part(policy.rego.as_bytes());
        part(canonical(&policy.data).as_bytes());
    }
    for (name, text) in library::used_by(policies.iter().map(|policy| policy.rego.as_str())) {
        part(name.as_bytes());
        part(text.as_bytes());
    }
    Digest::sha256(&bytes).to_string()
}

fn canonical(json: &Json) -> String {
    match json {
        Json::Object(map) => {
            let mut entries: Vec<(&String, &Json)> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let entries: Vec<String> = entries
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Json::String(key.clone()), canonical(value)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        Json::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        plain => plain.to_string(),
    }
}
