//! Admission on this machine: the same pipeline as the control plane's, in a child that may hang or die.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use aip_policy::{Admission, Diagnostic};
use aip_runtime::admission::in_child;
use serde_json::{Value, json};

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
    let mut checked = Checked::new(globals.json());
    for file in &modules {
        match read(verb, file, must_have_tests) {
            // The others are checked all the same.
            Err(unusable) => checked.unusable(file, &unusable),
            Ok(files) => match run(&files).await? {
                Ok(admission) => checked.admitted(file, &files, &admission),
                Err(diagnostics) => checked.refused(file, &files, &diagnostics),
            },
        }
    }
    checked.print();
    if checked.broken > 0 {
        let what = format!("{} of {} policies would not be admitted", checked.broken, modules.len());
        return Err(Failure::new(Exit::Invalid, what).into());
    }
    Ok(ExitCode::SUCCESS)
}

/// What the check of some policies came to, said as it comes to people, and at the end to programs.
struct Checked {
    json: bool,
    table: Table,
    said: Vec<String>,
    documents: Vec<Value>,
    broken: usize,
}

impl Checked {
    fn new(json: bool) -> Self {
        Self {
            json,
            table: Table::new(["POLICY", "READS", "CACHE", "INSTRUCTIONS", "TESTS"]),
            said: Vec::new(),
            documents: Vec::new(),
            broken: 0,
        }
    }

    /// Its files can't be read.
    fn unusable(&mut self, file: &Path, unusable: &Failure) {
        self.broken += 1;
        if !self.json {
            output::note(unusable.to_string());
        }
        let document = json!({ "file": file, "error": unusable.to_string() });
        self.documents.push(document);
    }

    fn admitted(&mut self, file: &Path, files: &PolicyFiles, admission: &Admission) {
        let name = &files.source.name;
        let cache = match admission.cacheable {
            true => admission.volatility.clone(),
            false => "no".into(),
        };
        self.table.row([
            name.clone(),
            shorten(&admission.reads),
            cache,
            admission.instructions.to_string(),
            admission.tests_passed.to_string(),
        ]);
        if !self.json {
            told::warn(admission, &Place::of(files));
        }
        self.said.push(told::of(name, admission));
        let document = json!({ "policy": name, "file": file, "admission": admission });
        self.documents.push(document);
    }

    fn refused(&mut self, file: &Path, files: &PolicyFiles, diagnostics: &[Diagnostic]) {
        self.broken += 1;
        if !self.json {
            output::note(diagnostics::render(diagnostics, &Place::of(files)));
        }
        let document = json!({ "policy": files.source.name, "file": file, "diagnostics": diagnostics });
        self.documents.push(document);
    }

    fn print(&self) {
        if self.json {
            output::json(&self.documents);
        } else if !self.said.is_empty() {
            let table = self.table.render();
            let said = self.said.join("\n");
            output::line(format!("{}\n\n{said}\n{}", table.trim_end(), told::COVERED));
        }
    }
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
