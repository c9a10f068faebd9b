//! Admission on this machine: the same pipeline as the control plane's, in a child that may hang or die.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use aip_policy::{Admission, Diagnostic};
use aip_runtime::admission::in_child;
use serde_json::json;

use super::Check;
use super::diagnostics::{self, Place};
use super::file::{self, PolicyFiles};
use super::told;
use crate::Globals;
use crate::exit::{Exit, Failure};
use crate::output::{self, Table};

/// The hidden verb that the child runs.
pub(crate) const ADMIT: &str = "policy-admit";
/// How long one policy's admission may take: admitted ones need tens of milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);
/// Most bytes that the child reads: a policy with data and tests at their bounds.
const MAX_REQUEST: u64 = 16 * 1024 * 1024;

/// The child's body: a policy on stdin, the outcome on stdout.
pub(crate) fn admit() -> ExitCode {
    if aip_runtime::admission::confine().is_err() {
        return ExitCode::FAILURE;
    }
    let mut request = Vec::new();
    if std::io::stdin().take(MAX_REQUEST).read_to_end(&mut request).is_err() {
        return ExitCode::FAILURE;
    }
    let answer = aip_policy::admission::serve(&request);
    match std::io::stdout().write_all(&answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

pub(super) async fn perform(verb: &Check, globals: &Globals, must_have_tests: bool) -> anyhow::Result<ExitCode> {
    let modules = file::modules(&verb.files)?;
    if modules.len() > 1 && (verb.data.is_some() || verb.tests.is_some()) {
        return Err(Failure::new(Exit::Usage, "--data and --tests belong to one policy")
            .next("check the policies one by one, or put the files beside them")
            .into());
    }
    let mut table = Table::new(["POLICY", "READS", "CACHE", "INSTRUCTIONS", "TESTS"]);
    let (mut documents, mut said, mut broken) = (Vec::new(), Vec::new(), 0_usize);
    for file in &modules {
        let files = match read(verb, file, must_have_tests) {
            Ok(files) => files,
            // The others are checked all the same.
            Err(unusable) => {
                broken += 1;
                if !globals.json() {
                    output::note(unusable.to_string());
                }
                documents.push(json!({ "file": file, "error": unusable.to_string() }));
                continue;
            }
        };
        let name = files.source.name.clone();
        match run(&files).await? {
            Ok(admission) => {
                table.row([
                    name.clone(),
                    shorten(&admission.reads),
                    if admission.cacheable {
                        admission.volatility.clone()
                    } else {
                        "no".into()
                    },
                    admission.instructions.to_string(),
                    admission.tests_passed.to_string(),
                ]);
                if !globals.json() {
                    told::warn(&admission, &Place::of(&files));
                }
                said.push(told::of(&name, &admission));
                documents.push(json!({ "policy": name, "file": file, "admission": admission }));
            }
            Err(diagnostics) => {
                broken += 1;
                if !globals.json() {
                    output::note(diagnostics::render(&diagnostics, &Place::of(&files)));
                }
                documents.push(json!({ "policy": name, "file": file, "diagnostics": diagnostics }));
            }
        }
    }
    if globals.json() {
        output::json(&documents);
    } else if broken < modules.len() {
        let table = table.render();
        output::line(format!(
            "{}\n\n{}\n{}",
            table.trim_end(),
            said.join("\n"),
            told::COVERED
        ));
    }
    if broken > 0 {
        let what = format!("{broken} of {} policies would not be admitted", modules.len());
        return Err(Failure::new(Exit::Invalid, what).into());
    }
    Ok(ExitCode::SUCCESS)
}

fn read(verb: &Check, file: &Path, must_have_tests: bool) -> Result<PolicyFiles, Failure> {
    let files = PolicyFiles::read(file, None, verb.data.as_deref(), verb.tests.as_deref())?;
    if must_have_tests && files.source.tests.is_none() {
        return Err(Failure::new(Exit::Invalid, format!("{} has no tests", file.display()))
            .next("write them beside it as STEM_test.rego, or pass --tests"));
    }
    Ok(files)
}

/// A handful of fact paths; the whole list is below the table.
fn shorten(reads: &[String]) -> String {
    const SHOWN: usize = 3;
    match reads.len() {
        0 => "nothing".into(),
        n if n <= SHOWN => reads.join(", "),
        n => format!("{}, … {} more", reads[..SHOWN].join(", "), n - SHOWN),
    }
}

async fn run(files: &PolicyFiles) -> anyhow::Result<Result<Admission, Vec<Diagnostic>>> {
    let program = std::env::current_exe()?;
    let request = serde_json::to_vec(&files.source)?;
    let answer = in_child(&program, &[ADMIT], request, DEADLINE).await.map_err(|e| {
        Failure::new(Exit::Invalid, format!("policy {} can't be checked", files.source.name)).why(e.to_string())
    })?;
    Ok(serde_json::from_slice(&answer)?)
}
