//! A policy as it lies in files: the module, its data, its tests.

use std::path::{Path, PathBuf};

use aip_policy::PolicySource;
use serde_json::Value;

use crate::bounded;
use crate::exit::{Exit, Failure};

/// Largest file that is read; admission's own bounds are far lower and say so.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// What was read, and from where.
#[derive(Debug)]
pub(super) struct PolicyFiles {
    pub(super) source: PolicySource,
    pub(super) rego: PathBuf,
    pub(super) tests: Option<PathBuf>,
}

impl PolicyFiles {
    /// Reads a module and what belongs to it; `name` overrides the package's.
    pub(super) fn read(
        rego: &Path,
        name: Option<&str>,
        data: Option<&Path>,
        tests: Option<&Path>,
    ) -> Result<Self, Failure> {
        let text = read(rego)?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => package(&text).ok_or_else(|| {
                Failure::new(Exit::Invalid, format!("{} names no policy", rego.display()))
                    .why("a policy is a module `package aip.policy.<name>`")
            })?,
        };
        let tests = tests.map(Path::to_owned).or_else(|| beside(rego, TESTS));
        let data = data.map(Path::to_owned);
        let data = data
            .or_else(|| beside(rego, ".data.json"))
            .or_else(|| beside(rego, ".data.yaml"));
        let data = data.map(|path| read_data(&path)).transpose()?.unwrap_or(Value::Null);
        let source = PolicySource {
            name,
            rego: text,
            data,
            tests: tests.as_deref().map(read).transpose()?,
        };
        Ok(Self {
            source,
            rego: rego.to_owned(),
            tests,
        })
    }
}

/// What a module's tests end in, behind its stem.
const TESTS: &str = "_test.rego";

/// The modules that arguments name. A directory stands for those directly in it, tests for the module beside them: so
/// that `policies`, `policies/*.rego` and one file all do what is meant.
pub(super) fn modules(named: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut modules = Vec::new();
    for path in named {
        let found = if path.is_dir() {
            in_directory(path)?
        } else {
            vec![tested_by(path)?.unwrap_or_else(|| path.clone())]
        };
        for module in found {
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
    }
    Ok(modules)
}

fn in_directory(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let what = || format!("{} holds no policies", dir.display());
    let entries = std::fs::read_dir(dir).map_err(|e| Failure::new(Exit::Usage, what()).why(e.to_string()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> = paths
        .filter(|p| p.is_file() && p.extension().is_some_and(|e| e == "rego") && !is_test(p))
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(Failure::new(Exit::Usage, what()).next("name a directory with modules STEM.rego, or the files"));
    }
    Ok(found)
}

fn is_test(path: &Path) -> bool {
    path.file_name()
        .and_then(|n| n.to_str())
        .is_some_and(|n| n.ends_with(TESTS))
}

/// The module that a test module lies beside.
fn tested_by(path: &Path) -> Result<Option<PathBuf>, Failure> {
    let name = path.file_name().and_then(|n| n.to_str());
    let Some(stem) = name.and_then(|n| n.strip_suffix(TESTS)) else {
        return Ok(None);
    };
    let module = path.with_file_name(format!("{stem}.rego"));
    if module.is_file() {
        return Ok(Some(module));
    }
    let what = format!("{} tests nothing: {} is not there", path.display(), module.display());
    Err(Failure::new(Exit::Usage, what).next("tests lie beside their module, or are passed with --tests"))
}

/// `<stem><ending>` beside the module, if it is there.
fn beside(rego: &Path, ending: &str) -> Option<PathBuf> {
    let stem = rego.file_stem()?.to_str()?;
    Some(rego.with_file_name(format!("{stem}{ending}"))).filter(|p| p.is_file())
}

/// The name in `package aip.policy.<name>`, where `-` is written as `_`.
fn package(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).find_map(|l| l.strip_prefix("package "))?;
    let name = line.split_whitespace().next()?.strip_prefix("aip.policy.")?;
    if name.is_empty() {
        return None;
    }
    Some(name.replace('_', "-"))
}

fn read(path: &Path) -> Result<String, Failure> {
    let fail = |why: String| Failure::new(Exit::Invalid, format!("{} can't be read", path.display())).why(why);
    bounded::text(path, MAX_FILE).map_err(|e| fail(e.to_string()))
}

/// JSON is YAML too, so that one parser reads both and names the line of a mistake.
fn read_data(path: &Path) -> Result<Value, Failure> {
    serde_yaml::from_str(&read(path)?).map_err(|e| {
        Failure::new(Exit::Invalid, format!("{} is neither JSON nor YAML", path.display())).why(e.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_tests_beside_the_module_belong_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let rego = dir.path().join("limits.rego");
        std::fs::write(&rego, "# about\npackage aip.policy.day_limits\n").unwrap();
        std::fs::write(dir.path().join("limits_test.rego"), "package aip.policy.limits_test\n").unwrap();
        std::fs::write(dir.path().join("limits.data.yaml"), "max: 7\n").unwrap();
        let read = PolicyFiles::read(&rego, None, None, None).unwrap();
        assert_eq!(read.source.name, "day-limits");
        assert_eq!(read.source.data["max"], 7);
        assert!(read.source.tests.unwrap().contains("limits_test"));
        std::fs::write(&rego, "package other\n").unwrap();
        assert_eq!(
            PolicyFiles::read(&rego, None, None, None).unwrap_err().exit,
            Exit::Invalid
        );
    }
}
