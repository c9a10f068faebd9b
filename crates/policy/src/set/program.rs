//! What a compiled program can do, read off its instructions: which parts of the input it reads, which data, which
//! rules call which. This is the program that runs, so nothing hides in syntax; what it doesn't understand, it refuses.

use std::collections::BTreeSet;

use regorus::Value;
use regorus::rvm::instructions::LiteralOrRegister;
use regorus::rvm::{Instruction, Program};

use super::ambiguity::ambiguities;
use super::amplification;
use super::operands::operands;
use super::structure;
use crate::limits::MAX_CALL_DEPTH;
use crate::reads::Reads;

/// Where a rule of the program comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The entry that we generate.
    Entry,
    /// The policy with that package name.
    Policy(String),
    /// The library module with that package name.
    Library(String),
}

/// Something a program must not do, and the instruction that does it.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) origin: Origin,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) line: Option<(u32, u32)>,
}

/// Line and column, where the compiler kept them.
pub(crate) type Place = Option<(u32, u32)>;

/// One rule, or one function, with all its definitions.
#[derive(Debug)]
pub(crate) struct RuleUse {
    pub(crate) name: String,
    pub(crate) origin: Origin,
    pub(crate) reads: Reads,
    /// The same reads one by one, and where each of them is.
    pub(crate) read_at: Vec<(Vec<String>, Place)>,
    pub(crate) calls: BTreeSet<usize>,
    pub(crate) builtins: BTreeSet<usize>,
    line: Option<(u32, u32)>,
}

/// What every rule of the program uses, by rule index.
#[derive(Debug)]
pub(crate) struct Analysis {
    pub(crate) rules: Vec<RuleUse>,
    pub(crate) faults: Vec<Fault>,
}

pub(crate) fn origin(rule: &str) -> Option<Origin> {
    let rest = rule.strip_prefix("data.aip.")?;
    let (kind, rest) = rest.split_once('.')?;
    match kind {
        "entry" => Some(Origin::Entry),
        "policy" => rest
            .split_once('.')
            .map(|(package, _)| Origin::Policy(package.to_owned())),
        "lib" => rest
            .split_once('.')
            .map(|(package, _)| Origin::Library(package.to_owned())),
        _ => None,
    }
}

/// Ranges of instructions that belong to the rule: its bodies and the blocks that take its arguments apart.
pub(crate) fn units(program: &Program, rule: usize) -> Vec<std::ops::Range<usize>> {
    let Some(info) = program.rule_infos.get(rule) else {
        return Vec::new();
    };
    let bodies = info.definitions.iter().flatten();
    let blocks = info.destructuring_blocks.iter().flatten();
    bodies
        .chain(blocks)
        .map(|entry| {
            let start = *entry as usize;
            let length = program.instructions[start.min(program.instructions.len())..]
                .iter()
                .position(|instruction| {
                    matches!(
                        instruction,
                        Instruction::RuleReturn {} | Instruction::DestructuringSuccess {}
                    )
                })
                .map_or(program.instructions.len().saturating_sub(start), |last| last + 1);
            start..start + length
        })
        .collect()
}

pub(crate) fn analyse(program: &Program) -> Analysis {
    let mut faults = Vec::new();
    let rules: Vec<RuleUse> = (0..program.rule_infos.len())
        .map(|rule| analyse_rule(program, rule, &mut faults))
        .collect();
    check_calls(&rules, &mut faults);
    if faults.is_empty() {
        // Only now is it certain that following the calls comes to an end.
        let ours = |rule: &usize| rules[*rule].origin != Origin::Entry;
        faults.extend(amplification::excessive(program).find(ours).map(|rule| {
            rules[rule].fault(
                "amplification",
                "the rule repeats values inside values too often".to_owned(),
            )
        }));
    }
    Analysis { rules, faults }
}

fn analyse_rule(program: &Program, rule: usize, faults: &mut Vec<Fault>) -> RuleUse {
    let info = &program.rule_infos[rule];
    let known = origin(&info.name);
    let mut used = RuleUse {
        name: info.name.clone(),
        origin: known.clone().unwrap_or(Origin::Entry),
        reads: Reads::default(),
        read_at: Vec::new(),
        calls: BTreeSet::new(),
        builtins: BTreeSet::new(),
        line: units(program, rule).first().and_then(|unit| line(program, unit.start)),
    };
    let mut found = Vec::new();
    if known.is_none() {
        let message = format!("`{}` is not in a package of ours", info.name);
        found.push((0, "foreign_package", message));
    }
    for unit in units(program, rule) {
        let start = unit.start;
        let code: Vec<(usize, Instruction)> = unit.map(|pc| (pc, program.instructions[pc])).collect();
        found.extend(structure::misread(program, rule, &code));
        let ambiguous = ambiguities(program, rule, &code).into_iter();
        found.extend(ambiguous.map(|(reason, message)| (start, reason, message)));
        used.add_calls(program, &code, &mut found);
        used.add_reads(program, &code, &mut found);
    }
    faults.extend(found.into_iter().map(|(pc, reason, message)| Fault {
        origin: used.origin.clone(),
        reason,
        message,
        line: line(program, pc),
    }));
    used
}

/// What is wrong at an instruction: its place, the reason, and a sentence.
type Found = (usize, &'static str, String);

impl RuleUse {
    /// The rules, functions and builtins that the code calls.
    fn add_calls(&mut self, program: &Program, code: &[(usize, Instruction)], found: &mut Vec<Found>) {
        let data = &program.instruction_data;
        let broken = |pc: usize| (pc, "unsupported", "a call without parameters".to_owned());
        for (pc, instruction) in code {
            match *instruction {
                Instruction::CallRule { rule_index, .. } => drop(self.calls.insert(usize::from(rule_index))),
                Instruction::FunctionCall { params_index } => match data.get_function_call_params(params_index) {
                    Some(params) => {
                        let callee = usize::from(params.func_rule_index);
                        self.calls.insert(callee);
                        let callee = program.rule_infos.get(callee).filter(|callee| callee.function_info.is_none());
                        found.extend(callee.map(|rule| (*pc, "compile", format!("`{}` is no function", rule.name))));
                    }
                    None => found.push(broken(*pc)),
                },
                Instruction::BuiltinCall { params_index } => match data.get_builtin_call_params(params_index) {
                    Some(params) => drop(self.builtins.insert(usize::from(params.builtin_index))),
                    None => found.push(broken(*pc)),
                },
                Instruction::VirtualDataDocumentLookup { .. } => found.push((
                    *pc,
                    "dynamic_rule_reference",
                    "a package, or a rule chosen by a variable, can't be read: name the rule in full (through an import, only \
                     functions can be called)"
                        .to_owned(),
                )),
                _ => {}
            }
        }
    }

    /// What the code takes from the input, and from data what it must not.
    fn add_reads(&mut self, program: &Program, code: &[(usize, Instruction)], found: &mut Vec<Found>) {
        let (mut inputs, mut datas) = (BTreeSet::new(), BTreeSet::new());
        for (_, instruction) in code {
            match *instruction {
                Instruction::LoadInput { dest } => drop(inputs.insert(dest)),
                Instruction::LoadData { dest } => drop(datas.insert(dest)),
                _ => {}
            }
        }
        for (pc, instruction) in code {
            let Some(operands) = operands(program, instruction) else {
                let message = format!("the program uses {instruction:?}, which policies have no need of");
                found.push((*pc, "unsupported", message));
                continue;
            };
            for register in &operands {
                if inputs.contains(register) {
                    let path = path_from(program, instruction, *register);
                    self.reads.add(&path);
                    self.read_at.push((path, line(program, *pc)));
                }
                if datas.contains(register) {
                    let path = path_from(program, instruction, *register);
                    let forbidden = forbidden_data(&path, &self.origin);
                    found.extend(forbidden.map(|message| (*pc, "data_reference", message)));
                }
            }
        }
    }
}

/// The constant path that the instruction takes from the document in `register`; empty if it can take all of it.
fn path_from(program: &Program, instruction: &Instruction, register: u8) -> Vec<String> {
    let literal = |index: u16| match program.literals.get(usize::from(index)) {
        Some(Value::String(name)) => Some(name.to_string()),
        _ => None,
    };
    match instruction {
        Instruction::IndexLiteral {
            container, literal_idx, ..
        } if *container == register => literal(*literal_idx).into_iter().collect(),
        Instruction::ChainedIndex { params_index } => {
            let Some(params) = program.instruction_data.get_chained_index_params(*params_index) else {
                return Vec::new();
            };
            let key = |part: &LiteralOrRegister| matches!(part, LiteralOrRegister::Register(key) if *key == register);
            if params.root != register || params.path_components.iter().any(key) {
                return Vec::new();
            }
            params
                .path_components
                .iter()
                .map_while(|part| match part {
                    LiteralOrRegister::Literal(index) => literal(*index),
                    LiteralOrRegister::Register(_) => None,
                })
                .collect()
        }
        _ => Vec::new(),
    }
}

fn forbidden_data(path: &[String], origin: &Origin) -> Option<String> {
    match (path.first().map(String::as_str), path.get(1), origin) {
        (Some("mesh"), _, _) | (_, _, Origin::Entry) => None,
        (Some("user"), Some(name), Origin::Policy(package)) if name == package => None,
        (Some("user"), _, Origin::Policy(package)) => Some(format!(
            "of data.user, this policy may read data.user.{package} only, and by that name"
        )),
        _ => {
            Some("of data, a policy may read data.mesh and its own data.user.<name> only, by constant names".to_owned())
        }
    }
}

fn check_calls(rules: &[RuleUse], faults: &mut Vec<Fault>) {
    for rule in rules {
        for callee in rule.calls.iter().filter_map(|callee| rules.get(*callee)) {
            let permitted = match (&rule.origin, &callee.origin) {
                (Origin::Entry, Origin::Policy(_)) | (_, Origin::Library(_)) => true,
                (Origin::Policy(caller), Origin::Policy(callee)) => caller == callee,
                _ => false,
            };
            if !permitted {
                faults.push(rule.fault(
                    "foreign_package",
                    format!(
                        "`{}` can't be used here: a policy uses its own rules and data.aip.lib",
                        callee.name
                    ),
                ));
            }
        }
    }
    let mut depth = vec![None; rules.len()];
    for rule in 0..rules.len() {
        if let Err(fault) = call_depth(rules, rule, &mut Vec::new(), &mut depth) {
            faults.push(fault);
            return;
        }
    }
}

impl RuleUse {
    fn fault(&self, reason: &'static str, message: String) -> Fault {
        Fault {
            origin: self.origin.clone(),
            reason,
            message,
            line: self.line,
        }
    }
}

/// Levels of calls below a rule, itself included. Its own recursion ends at `MAX_CALL_DEPTH`.
fn call_depth(
    rules: &[RuleUse],
    rule: usize,
    path: &mut Vec<usize>,
    known: &mut [Option<usize>],
) -> Result<usize, Fault> {
    let Some(this) = rules.get(rule) else { return Ok(0) };
    if let Some(start) = path.iter().position(|caller| *caller == rule) {
        let names: Vec<&str> = path[start..]
            .iter()
            .chain([&rule])
            .map(|index| rules[*index].name.as_str())
            .collect();
        return Err(this.fault(
            "recursion",
            format!("rules must not call themselves: {}", names.join(" → ")),
        ));
    }
    if let Some(depth) = known[rule] {
        return Ok(depth);
    }
    let too_deep = || {
        this.fault(
            "call_depth",
            format!("rules call each other more than {MAX_CALL_DEPTH} levels deep"),
        )
    };
    if path.len() >= MAX_CALL_DEPTH {
        return Err(too_deep());
    }
    path.push(rule);
    let mut deepest = 0;
    for callee in &this.calls {
        deepest = deepest.max(call_depth(rules, *callee, path, known)?);
    }
    path.pop();
    if deepest >= MAX_CALL_DEPTH {
        return Err(too_deep());
    }
    known[rule] = Some(deepest + 1);
    Ok(deepest + 1)
}

impl Analysis {
    /// The rules that run when `root` runs.
    pub(crate) fn reachable(&self, root: &str) -> Vec<&RuleUse> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<usize> = self
            .rules
            .iter()
            .position(|rule| rule.name == root)
            .into_iter()
            .collect();
        while let Some(rule) = open.pop() {
            if rule < self.rules.len() && seen.insert(rule) {
                open.extend(&self.rules[rule].calls);
            }
        }
        seen.into_iter().map(|rule| &self.rules[rule]).collect()
    }
}

/// Line and column of an instruction, where the compiler kept them.
pub(crate) fn line(program: &Program, pc: usize) -> Option<(u32, u32)> {
    let span = program.instruction_spans.get(pc)?.as_ref()?;
    match (u32::try_from(span.line), u32::try_from(span.column)) {
        (Ok(line), Ok(column)) if line > 0 => Some((line, column)),
        _ => None,
    }
}
