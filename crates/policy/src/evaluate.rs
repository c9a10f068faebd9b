//! A worker's evaluator: its own copies of programs and data, its own virtual machines, its own decisions.
//!
//! Nothing here is shared between threads. Two threads that share a program and its data spend more time on the
//! reference counts than on the evaluation; two that don't are twice as fast as one.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use regorus::Value;
use regorus::rvm::vm::{ExecutionMode, VmError};
use regorus::rvm::{Program, RegoVM};
use regorus::utils::limits::ExecutionTimerConfig;

use crate::cache::{Cached, DecisionCache};
use crate::facts::{Direction, Facts, Kept};
use crate::guard::{self, Trouble};
use crate::input::{self, View, private_copy};
use crate::limits::{
    MAX_CACHE_KEY_BYTES, MAX_EVALUATION, MAX_INSTRUCTIONS, MAX_KEPT_KEY_BYTES, MAX_SETS_PER_WORKER, TIMER_INTERVAL,
};
use crate::outcome;
use crate::reads::Reads;
use crate::set::PolicySet;
use crate::verdict::{Decision, builtin};

/// Decides. One per worker thread; see [`with_evaluator`].
#[derive(Default)]
pub struct Evaluator {
    /// Most recently used last.
    loaded: Vec<Loaded>,
    /// What these have decided.
    cache: DecisionCache,
    key: Vec<u8>,
}

/// A set in memory of this worker's own.
struct Loaded {
    /// Gone once nobody can ask for it any more.
    of: Weak<PolicySet>,
    digest: Arc<str>,
    originals: Arc<Program>,
    guarded: Arc<Program>,
    data: Value,
    reads: Reads,
    vm: Option<RegoVM>,
}

impl Evaluator {
    /// An evaluator that has loaded nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decides on a request. Never fails: what goes wrong is a deny that says so.
    pub fn decide(&mut self, set: &Arc<PolicySet>, facts: &Facts) -> Decision {
        self.decide_with(set, facts, true, false).0
    }

    /// As [`Self::decide`]; and what [`PolicySet::kept`] answers, which requests that are decided alike share.
    pub fn decide_and_keep(&mut self, set: &Arc<PolicySet>, facts: &Facts) -> (Decision, Arc<Kept>) {
        let (decision, kept) = self.decide_with(set, facts, true, true);
        (decision, kept.unwrap_or_else(|| Arc::new(set.kept(facts))))
    }

    /// Decides without looking into the cache or adding to it: for explanations and tests.
    pub fn decide_uncached(&mut self, set: &Arc<PolicySet>, facts: &Facts) -> Decision {
        self.decide_with(set, facts, false, false).0
    }

    /// Decides. What is kept is answered where it is asked for and at hand.
    fn decide_with(
        &mut self,
        set: &Arc<PolicySet>,
        facts: &Facts,
        cached: bool,
        keep: bool,
    ) -> (Decision, Option<Arc<Kept>>) {
        if set.members.is_empty() {
            return (
                Decision::refuse(&set.digest, builtin::NO_RULE, "no policy is attached"),
                None,
            );
        }
        let missing = set.missing(facts);
        if let Some((path, why)) = missing.blocking {
            let reason = format!("{path} could not be established: {why}");
            return (Decision::refuse(&set.digest, builtin::FACT_UNESTABLISHED, reason), None);
        }
        let view = View::new(facts, &missing.paths);
        let at = self.load(set);
        let loaded = &mut self.loaded[at];
        if !cached || !set.cacheable {
            return (loaded.evaluate(&view), None);
        }
        self.key.clear();
        self.key.extend_from_slice(set.digest.as_bytes());
        input::encode(view.root(), &loaded.reads, &mut self.key);
        // What stands for a fact that is not established reads like one that is; what is kept says which it was.
        missing
            .paths
            .iter()
            .for_each(|(path, _)| input::encode_text(path, &mut self.key));
        if self.key.len() > MAX_CACHE_KEY_BYTES {
            return (loaded.evaluate(&view), None);
        }
        let keeps = keep && self.key.len() <= MAX_KEPT_KEY_BYTES;
        let kept = || Arc::new(set.kept_of(facts, &missing.paths));
        if let Some(known) = self.cache.get(&self.key) {
            let decision = Decision {
                cached: true,
                ..known.decision.clone()
            };
            let kept = keeps.then(|| known.kept.get_or_insert_with(kept).clone());
            return (decision, kept);
        }
        let decision = loaded.evaluate(&view);
        let kept = keeps.then(kept);
        // A limit may have been hit because the machine was busy; the next request deserves a try of its own.
        if decision.rule() != builtin::LIMIT_EXCEEDED {
            let known = Cached {
                decision: decision.clone(),
                kept: kept.clone(),
            };
            self.cache.insert(far_end(facts), &self.key, known);
        }
        (decision, kept)
    }

    /// The index of the set in `loaded`, after it was loaded where need be.
    fn load(&mut self, set: &Arc<PolicySet>) -> usize {
        let last = self.loaded.len().wrapping_sub(1);
        match self.loaded.iter().rposition(|loaded| loaded.digest == set.digest) {
            Some(at) if at == last => {}
            Some(at) => {
                let loaded = self.loaded.remove(at);
                self.loaded.push(loaded);
            }
            None => {
                self.let_go();
                self.loaded.push(Loaded::new(set));
            }
        }
        let at = self.loaded.len() - 1;
        // The same policies, compiled again.
        if !std::ptr::eq(self.loaded[at].of.as_ptr(), Arc::as_ptr(set)) {
            self.loaded[at].of = Arc::downgrade(set);
        }
        at
    }

    /// Makes room for a set: those that were let go of go, with what they decided, which nobody would find again; else the one
    /// that was used least recently, where there are as many as may be. Policies that change every second would otherwise
    /// fill the cache with decisions of the versions before.
    fn let_go(&mut self) {
        let is_full = self.loaded.len() >= MAX_SETS_PER_WORKER;
        let mut gone: Vec<Loaded> = self
            .loaded
            .extract_if(.., |loaded| loaded.of.strong_count() == 0)
            .collect();
        if gone.is_empty() && is_full {
            gone.push(self.loaded.remove(0));
        }
        for loaded in gone {
            self.cache.forget(&loaded.digest);
        }
    }
}

/// The peer whose share of the cache a decision counts against: the end of the hop that isn't this sidecar's agent.
fn far_end(facts: &Facts) -> &str {
    match facts.direction {
        Direction::Inbound => &facts.source.id,
        Direction::Outbound => &facts.destination.name,
    }
}

impl Loaded {
    fn new(set: &Arc<PolicySet>) -> Self {
        Self {
            of: Arc::downgrade(set),
            digest: set.digest.clone(),
            originals: Arc::new(private_program(&set.original)),
            guarded: Arc::new(private_program(&set.guarded)),
            data: private_copy(&set.data),
            reads: set.reads.reads.private_copy(),
            vm: None,
        }
    }

    fn machine(&self) -> Result<RegoVM, VmError> {
        let mut vm = RegoVM::new();
        vm.load_program(self.guarded.clone());
        vm.set_data(self.data.clone())?;
        vm.set_max_instructions(MAX_INSTRUCTIONS);
        vm.set_strict_builtin_errors(true);
        // Only programs without recursion are ever compiled into a set, so the stack is bounded.
        vm.set_execution_mode(ExecutionMode::RunToCompletion);
        vm.set_execution_timer_config(Some(ExecutionTimerConfig {
            limit: MAX_EVALUATION,
            check_interval: TIMER_INTERVAL,
        }));
        Ok(vm)
    }

    fn evaluate(&mut self, view: &View<'_>) -> Decision {
        let mut vm = match self.vm.take().map_or_else(|| self.machine(), Ok) {
            Ok(vm) => vm,
            Err(error) => return Decision::refuse(&self.digest, builtin::EVALUATION_ERROR, error.to_string()),
        };
        vm.set_input(input::to_value(view.root(), &self.reads));
        let (result, trouble) = guard::watch(&self.originals, || vm.execute_entry_point_by_index(0));
        match (result, trouble) {
            (Ok(value), None) => {
                let decision = outcome::decision(&value, &self.digest);
                self.vm = Some(vm);
                decision
            }
            // After an error the machine's state is not to be trusted; it is dropped, and a new one costs a microsecond.
            (_, Some(Trouble::Error(message))) => Decision::refuse(&self.digest, builtin::EVALUATION_ERROR, message),
            (_, Some(Trouble::Limit(message))) => Decision::refuse(&self.digest, builtin::LIMIT_EXCEEDED, message),
            (Err(error), None) => self.refusal(&error),
        }
    }

    fn refusal(&self, error: &VmError) -> Decision {
        match error {
            VmError::InstructionLimitExceeded { .. } => Decision::refuse(
                &self.digest,
                builtin::INSTRUCTION_LIMIT,
                format!("the policies need more than {MAX_INSTRUCTIONS} instructions"),
            ),
            VmError::TimeLimitExceeded { .. } => Decision::refuse(
                &self.digest,
                builtin::LIMIT_EXCEEDED,
                format!("the policies need more than {} ms", MAX_EVALUATION.as_millis()),
            ),
            VmError::MemoryLimitExceeded { .. } | VmError::RegexSizeLimitExceeded { .. } => {
                Decision::refuse(&self.digest, builtin::LIMIT_EXCEEDED, error.to_string())
            }
            _ => Decision::refuse(&self.digest, builtin::EVALUATION_ERROR, error.to_string()),
        }
    }
}

/// The program with literals and tables of its own. The sources stay behind: only diagnostics need them.
fn private_program(program: &Program) -> Program {
    let mut copy = program.clone();
    copy.literals = program.literals.iter().map(private_copy).collect();
    copy.rule_tree = private_copy(&program.rule_tree);
    for rule in &mut copy.rule_infos {
        rule.definitions = Arc::new((*rule.definitions).clone());
    }
    copy.sources = Vec::new();
    copy.instruction_spans = Vec::new();
    copy
}

thread_local! {
    static EVALUATOR: RefCell<Evaluator> = RefCell::new(Evaluator::new());
}

/// Runs `f` with this thread's evaluator. Not to be nested.
pub fn with_evaluator<R>(f: impl FnOnce(&mut Evaluator) -> R) -> R {
    EVALUATOR.with(|evaluator| match evaluator.try_borrow_mut() {
        Ok(mut evaluator) => f(&mut evaluator),
        // Nested after all: correct, only slower.
        Err(_) => f(&mut Evaluator::new()),
    })
}

#[cfg(test)]
mod tests;
