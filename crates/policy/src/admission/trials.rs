//! A policy's own tests: `test_…` rules in the interpreter, and `cases` that both engines must decide alike.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};
use serde::Deserialize;
use serde_json::Value as Json;

use super::lexer::{Kind, Token, tokens};
use super::names::{defined, rule_starts};
use crate::facts::Facts;
use crate::input::json_value;
use crate::set::{PolicySet, data_document};
use crate::source::{Diagnostic, PolicySource};
use crate::verdict::{Decision, builtin};
use crate::{Evaluator, library, outcome};

/// Time for one test in the interpreter. The child process that runs admission has a deadline of its own; this one says
/// which test it was.
const MAX_TEST_TIME: Duration = Duration::from_secs(2);

/// Tests and cases of one policy.
const MAX_TRIALS: usize = 1000;

/// One entry of `cases`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What it shows.
    note: String,
    /// The part of the input that isn't neutral.
    #[serde(default)]
    input: Json,
    /// What the policy sees as `data.mesh`.
    #[serde(default)]
    mesh: Json,
    /// The verdict, or `none` where no rule fires.
    verdict: String,
    /// One of the rules that decide.
    #[serde(default)]
    rule: Option<String>,
}

/// Runs all tests and cases. The number that passed, or what failed.
pub(super) fn run(source: &PolicySource) -> Result<usize, Vec<Diagnostic>> {
    let Some(text) = &source.tests else { return Ok(0) };
    let tokens: Vec<Token<'_>> = tokens(text)
        .unwrap_or_default()
        .into_iter()
        .filter(|token| token.kind != Kind::Comment)
        .collect();
    let mut trials = Trials {
        source,
        file: format!("{}_test.rego", source.name),
        passed: 0,
        faults: Vec::new(),
    };
    let mut engine = trials.engine(&Json::Null).map_err(|fault| vec![fault])?;
    let mut has_cases = false;
    let mut names: Vec<&str> = Vec::new();
    for start in rule_starts(&tokens) {
        match defined(&tokens, start) {
            Some("cases") => has_cases = true,
            Some(name) if name.starts_with("test_") && !names.contains(&name) => {
                names.push(name);
                trials.test(&mut engine, name, &tokens[start]);
            }
            _ => {}
        }
    }
    if has_cases {
        trials.cases(&mut engine);
    }
    if trials.passed == 0 && trials.faults.is_empty() {
        let message = "no tests: rules `test_… if {…}` and entries of `cases` are";
        trials.faults.push(Diagnostic::new(&*trials.file, "no_tests", message));
    }
    if trials.faults.is_empty() {
        Ok(trials.passed)
    } else {
        Err(trials.faults)
    }
}

struct Trials<'a> {
    source: &'a PolicySource,
    file: String,
    passed: usize,
    faults: Vec<Diagnostic>,
}

impl Trials<'_> {
    /// The interpreter with the policy, its tests and its data.
    fn engine(&self, mesh: &Json) -> Result<Engine, Diagnostic> {
        let mut engine = Engine::new();
        engine.set_strict_builtin_errors(true);
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: MAX_TEST_TIME,
            check_interval: NonZeroU32::MIN,
        });
        let tests = self.source.tests.as_deref().unwrap_or_default();
        let own = [
            (format!("{}.rego", self.source.name), self.source.rego.as_str()),
            (self.file.clone(), tests),
        ];
        let library = library::used_by([self.source.rego.as_str(), tests].into_iter());
        let library = library
            .into_iter()
            .map(|(name, text)| (format!("lib/{name}.rego"), text));
        for (file, text) in own.into_iter().chain(library) {
            engine
                .add_policy(file.clone(), text.to_owned())
                .map_err(|error| Diagnostic::from_engine(&file, "parse", &error.to_string()))?;
        }
        let data = json_value(&data_document(&[self.source], mesh));
        engine
            .add_data(data)
            .map_err(|error| Diagnostic::from_engine(&self.file, "data", &error.to_string()))?;
        Ok(engine)
    }

    fn fail(&mut self, reason: &str, message: String) {
        self.faults.push(Diagnostic::new(&*self.file, reason, message));
    }

    fn test(&mut self, engine: &mut Engine, name: &str, token: &Token<'_>) {
        engine.set_input(json_value(&Facts::default().to_json()));
        let path = format!("data.aip.policy.{}_test.{name}", self.source.package());
        let message = match engine.eval_rule(path) {
            Ok(Value::Bool(true)) => {
                self.passed += 1;
                return;
            }
            Ok(Value::Undefined) => format!("{name} doesn't hold"),
            Ok(value) => format!("{name} is {value}, not true"),
            Err(error) => {
                self.faults
                    .push(Diagnostic::from_engine(&self.file, "test_error", &error.to_string()));
                return;
            }
        };
        self.faults
            .push(Diagnostic::new(&*self.file, "test_failed", message).at(token.line, token.column));
    }

    fn cases(&mut self, engine: &mut Engine) {
        engine.set_input(json_value(&Facts::default().to_json()));
        let path = format!("data.aip.policy.{}_test.cases", self.source.package());
        let cases = engine
            .eval_rule(path)
            .map_err(|error| error.to_string())
            .and_then(|value| serde_json::to_value(value).map_err(|error| error.to_string()));
        let cases = match cases {
            Ok(Json::Array(cases)) if cases.len() <= MAX_TRIALS => cases,
            Ok(_) => return self.fail("cases", format!("`cases` is a set of at most {MAX_TRIALS} objects")),
            Err(error) => {
                return self
                    .faults
                    .push(Diagnostic::from_engine(&self.file, "test_error", &error));
            }
        };
        for case in cases {
            match serde_json::from_value::<Case>(case) {
                Ok(case) => {
                    if let Err((reason, message)) = self.case(&case) {
                        self.fail(reason, format!("case `{}`: {message}", case.note));
                    } else {
                        self.passed += 1;
                    }
                }
                Err(error) => self.fail("cases", format!("not a case: {error}")),
            }
        }
    }

    fn case(&self, case: &Case) -> Result<(), (&'static str, String)> {
        let broken = |error: String| ("case_error", error);
        let input = if case.input.is_null() {
            serde_json::json!({})
        } else {
            case.input.clone()
        };
        let facts = Facts::from_json(input).map_err(|error| broken(error.to_string()))?;
        let set = PolicySet::compile(std::slice::from_ref(self.source), &case.mesh)
            .map_err(|faults| broken(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
        let set = Arc::new(set);
        let decision = Evaluator::new().decide_uncached(&set, &facts);
        if set.missing(&facts).blocking.is_none() {
            let other = self
                .interpret(&set, &facts, &case.mesh)
                .map_err(|fault| broken(fault.to_string()))?;
            if !alike(&decision, &other) {
                let message = format!(
                    "the virtual machine says {}, the interpreter {}",
                    describe(&decision),
                    describe(&other)
                );
                return Err(("engines_differ", message));
            }
        }
        let verdict = if decision.rule() == builtin::NO_RULE {
            "none"
        } else {
            decision.verdict.as_str()
        };
        if verdict != case.verdict {
            return Err(("case_failed", format!("{}, not {}", describe(&decision), case.verdict)));
        }
        match &case.rule {
            Some(rule) if !decision.rules.iter().any(|fired| fired.rule == *rule) => {
                Err(("case_failed", format!("{}, not by {rule}", describe(&decision))))
            }
            _ => Ok(()),
        }
    }

    fn interpret(&self, set: &PolicySet, facts: &Facts, mesh: &Json) -> Result<Decision, Diagnostic> {
        let mut engine = self.engine(mesh)?;
        engine.set_input(json_value(&facts.to_json()));
        let bundle: Arc<str> = set.digest().into();
        Ok(
            match engine.eval_rule(format!("data.aip.policy.{}.rules", self.source.package())) {
                Ok(Value::Set(rules)) => {
                    let name = Value::from(self.source.name.as_str());
                    let tagged = rules.iter().map(|rule| Value::from(vec![name.clone(), rule.clone()]));
                    outcome::decision(&Value::from(tagged.collect::<std::collections::BTreeSet<_>>()), &bundle)
                }
                Ok(_) => outcome::decision(&Value::Undefined, &bundle),
                Err(error) => {
                    let said = Diagnostic::from_engine(&self.file, "test_error", &error.to_string());
                    Decision::refuse(&bundle, builtin::EVALUATION_ERROR, said.message)
                }
            },
        )
    }
}

/// Whether both engines decided the same. Of two evaluations that ended in an error, only that is compared.
fn alike(a: &Decision, b: &Decision) -> bool {
    let failed = |decision: &Decision| decision.rule() == builtin::EVALUATION_ERROR;
    (failed(a) && failed(b)) || (a.verdict == b.verdict && a.rules == b.rules && a.obligations == b.obligations)
}

fn describe(decision: &Decision) -> String {
    format!("{} by {} ({})", decision.verdict, decision.rule(), decision.reason())
}
