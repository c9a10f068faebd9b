//! The rules of the house, as far as a machine can hold them: who may know whom, how long a file may be, and that every
//! dependency has earned its line. CONTRIBUTING.md says why.

// Clippy knows a test function from its helpers, but here helpers belong to the tests.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{CargoOpt, DependencyKind, Metadata, MetadataCommand, Package, PackageId};

/// Past this a file has two subjects.
const MAX_LINES: usize = 500;

/// Which crates of the workspace each may name, in any kind of dependency. A crate that is not here has no place yet:
/// give it one here and in CONTRIBUTING.md.
const MAY_NAME: [(&str, &[&str]); 11] = [
    ("aip-api", &[]),
    ("aip-policy", &["aip-api"]),
    ("aip-audit", &["aip-api"]),
    ("aip-runtime", &["aip-api"]),
    ("aip-sidecar", &["aip-api", "aip-policy", "aip-audit", "aip-runtime"]),
    (
        "aip-control-plane",
        &["aip-api", "aip-policy", "aip-audit", "aip-runtime"],
    ),
    ("aip", &["aip-api", "aip-policy", "aip-audit", "aip-runtime"]),
    (
        "aip-tests",
        &[
            "aip-api",
            "aip-policy",
            "aip-audit",
            "aip-runtime",
            "aip-sidecar",
            "aip-control-plane",
        ],
    ),
    (
        "aip-decoders",
        &[
            "aip-api",
            "aip-policy",
            "aip-audit",
            "aip-runtime",
            "aip-sidecar",
            "aip-control-plane",
        ],
    ),
    ("aip-bench", &["aip-api", "aip-runtime"]),
    ("aip-demo-agents", &[]),
];

/// What a crate must not reach, however many crates lie between, and why.
const NEVER_REACHES: [(&str, &[&str], &str); 6] = [
    (
        "aip-api",
        &["tokio", "hyper", "rustls", "regorus"],
        "the contract does no I/O",
    ),
    ("aip-policy", &["tokio", "hyper", "rustls"], "deciding is pure"),
    (
        "aip-audit",
        &["tokio", "hyper", "rustls"],
        "the verifier works on files, offline",
    ),
    (
        "aip-sidecar",
        &["redb", "tokio-postgres", "kube", "k8s-openapi"],
        "it is multiplied by the fleet",
    ),
    (
        "aip",
        &["redb", "tokio-postgres", "kube", "k8s-openapi"],
        "it uses the admin API only",
    ),
    (
        "aip-demo-agents",
        &["serde", "tokio", "hyper", "http"],
        "these stand for agents that know nothing of us",
    ),
];

/// What nothing here may reach: a second TLS or cryptography library.
const NOBODY_REACHES: [&str; 4] = ["aws-lc-sys", "aws-lc-rs", "openssl-sys", "native-tls"];

/// What only these name, so that there is one place where it is set up.
const NAMED_ONLY_BY: [(&str, &[&str]); 3] = [
    ("rustls", &["aip-runtime", "aip-tests"]),
    ("tokio-rustls", &["aip-runtime", "aip-tests"]),
    ("regorus", &["aip-policy"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .features(CargoOpt::AllFeatures)
        .other_options(["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"].map(String::from))
        .exec()
        .unwrap()
}

fn members(metadata: &Metadata) -> BTreeMap<String, &Package> {
    metadata
        .workspace_packages()
        .into_iter()
        .map(|package| (package.name.to_string(), package))
        .collect()
}

/// Every package that ends up in what `from` builds, tests aside.
fn reached(metadata: &Metadata, from: &PackageId) -> BTreeSet<String> {
    let nodes = &metadata.resolve.as_ref().unwrap().nodes;
    let nodes: BTreeMap<_, _> = nodes.iter().map(|node| (&node.id, node)).collect();
    let mut seen = BTreeSet::from([from]);
    let mut open = vec![from];
    while let Some(id) = open.pop() {
        let built = nodes[id]
            .deps
            .iter()
            .filter(|d| d.dep_kinds.iter().any(|k| k.kind != DependencyKind::Development));
        open.extend(built.map(|dep| &dep.pkg).filter(|pkg| seen.insert(pkg)));
    }
    seen.into_iter().map(|id| metadata[id].name.to_string()).collect()
}

/// The files of the tree with one of these endings, without what is built, fetched or hidden.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().unwrap().is_dir() {
                if !name.starts_with('.') && !["target", "node_modules"].contains(&name.as_str()) {
                    open.push(entry.path());
                }
            } else if name.ends_with(ending) {
                found.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn crates_name_only_those_below_them() {
    let metadata = metadata();
    let members = members(&metadata);
    let rules = BTreeMap::from(MAY_NAME);
    for (name, package) in &members {
        let allowed = rules
            .get(name.as_str())
            .unwrap_or_else(|| panic!("{name} has no place in the house: see MAY_NAME"));
        for dependency in package.dependencies.iter().filter(|d| members.contains_key(&d.name)) {
            assert!(
                allowed.contains(&dependency.name.as_str()),
                "{name} may not depend on {}",
                dependency.name
            );
        }
    }
    let agents = &members["aip-demo-agents"].dependencies;
    assert!(
        agents.is_empty(),
        "the demo's agents are std only, not {:?}",
        agents.first().map(|d| &d.name)
    );
}

#[test]
fn crates_never_reach_what_is_not_theirs() {
    let metadata = metadata();
    let members = members(&metadata);
    for (name, forbidden, why) in NEVER_REACHES {
        let Some(package) = members.get(name) else { continue };
        let reached = reached(&metadata, &package.id);
        for other in forbidden {
            assert!(
                !reached.contains(*other),
                "{name} reaches {other}: {why} (cargo tree -p {name} -i {other})"
            );
        }
    }
    for (name, package) in &members {
        let reached = reached(&metadata, &package.id);
        for other in NOBODY_REACHES {
            assert!(
                !reached.contains(other),
                "{name} reaches {other}; TLS is rustls on ring and nothing else"
            );
        }
    }
    // The rule above would hold for nothing if it looked at the wrong graph.
    assert!(reached(&metadata, &members["aip-control-plane"].id).contains("redb"));
}

#[test]
fn some_libraries_are_set_up_in_one_place() {
    let metadata = metadata();
    for (library, allowed) in NAMED_ONLY_BY {
        for (name, package) in members(&metadata) {
            let names_it = package.dependencies.iter().any(|d| d.name == library);
            assert!(
                !names_it || allowed.contains(&name.as_str()),
                "{name} names {library}; only {allowed:?} may"
            );
        }
    }
}

/// Cargo resolves features for what it is asked to build. Were a feature on in the tests only, then `make demo` and
/// `make test` would each compile their own tokio and everything above it.
#[test]
fn what_tests_switch_on_is_on_in_every_build() {
    let metadata = metadata();
    let members = members(&metadata);
    let always = |wanted: &cargo_metadata::Dependency| {
        members["aip-tests"].dependencies.iter().any(|have| {
            have.name == wanted.name
                && have.kind == DependencyKind::Normal
                && wanted.features.iter().all(|feature| have.features.contains(feature))
        })
    };
    for (name, package) in &members {
        for dependency in package
            .dependencies
            .iter()
            .filter(|d| d.kind == DependencyKind::Development)
        {
            let (wanted, features) = (&dependency.name, &dependency.features);
            assert!(
                always(dependency),
                "{name} tests with {wanted} {features:?}: aip-tests must depend on the same"
            );
        }
    }
}

#[test]
fn every_crate_is_held_to_the_same_lints() {
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(
        workspace.contains("unsafe_code = \"forbid\""),
        "unsafe code is forbidden in the whole workspace"
    );
    for (name, package) in members(&metadata()) {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        assert!(
            manifest.contains("[lints]\nworkspace = true\n"),
            "{name} does not inherit the workspace's lints"
        );
    }
}

#[test]
fn every_dependency_has_earned_its_line() {
    let page = std::fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let listed: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    let metadata = metadata();
    let members = members(&metadata);
    let mut used = BTreeSet::new();
    for package in members.values() {
        used.extend(
            package
                .dependencies
                .iter()
                .map(|d| d.name.as_str())
                .filter(|name| !members.contains_key(*name)),
        );
    }
    let missing: Vec<_> = used.difference(&listed).collect();
    assert!(
        missing.is_empty(),
        "docs/dependencies.md does not say what {missing:?} are for"
    );
    let stale: Vec<_> = listed.difference(&used).collect();
    assert!(
        stale.is_empty(),
        "docs/dependencies.md lists {stale:?}, which nothing uses"
    );
}

#[test]
fn a_file_has_one_subject() {
    let mut long = Vec::new();
    for path in files(".rs") {
        if path.components().any(|part| part.as_os_str() == "gen") {
            continue;
        }
        assert!(
            !path.ends_with("mod.rs"),
            "{}: modules are foo.rs beside foo/",
            path.display()
        );
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        if lines > MAX_LINES {
            long.push(format!("{} has {lines}", path.display()));
        }
    }
    assert!(long.is_empty(), "files past {MAX_LINES} lines: {long:#?}");
}

/// Links between our own pages lead somewhere.
#[test]
fn links_in_the_documentation_resolve() {
    let mut broken = Vec::new();
    for page in files(".md") {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')'))
            .map(|(link, _)| link)
        {
            let file = link.split('#').next().unwrap_or_default();
            let elsewhere = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
            if !elsewhere && !page.parent().unwrap().join(file).exists() {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
}

/// Each attack that the documentation names has a test of that name in that file.
#[test]
fn attacks_in_the_documentation_have_their_tests() {
    let page = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let (_, table) = page
        .split_once("## Attacks and their tests")
        .expect("the page ends with the attacks");
    let mut sections = 0;
    for section in table.split("\n### ").skip(1) {
        let title = section.lines().next().unwrap_or_default();
        let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
        assert!(!rows.is_empty(), "{title} names no attack");
        for row in rows {
            let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
            let mut words = tests.split('`').skip(1).step_by(2);
            let named = words.clone().count();
            assert!(named >= 2 && named % 2 == 0, "{title}: no file and test in {row}");
            while let (Some(file), Some(test)) = (words.next(), words.next()) {
                let text = std::fs::read_to_string(root().join(file)).unwrap_or_default();
                assert!(
                    text.contains(&format!("fn {test}(")),
                    "{title}: no test {test} in {file}"
                );
            }
        }
        sections += 1;
    }
    assert!(sections > 0, "the page names no attacks");
}
