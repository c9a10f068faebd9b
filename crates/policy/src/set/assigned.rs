//! A repair of the compiler's code: `x := …` of nothing doesn't hold, and a comprehension has no element that is nothing.
//!
//! The compiler copies the value and goes on, also where there is none. A rule that allows when `x := input.a` and
//! `not x == "bad"` would then allow whoever sends no `a`, and one that denies by way of `not helper` would not fire.
//! `[x.id | some x in xs]` would be as long as `xs`, whoever of them has an `id`.

use std::collections::BTreeMap;

use regorus::rvm::instructions::GuardMode;
use regorus::rvm::{Instruction, Program};

use super::insert::Insertions;
use super::program::units;
use super::structure::{Open, walk};

/// What a body's assignments need.
#[derive(Debug, Default)]
pub(crate) struct Assigned {
    /// Registers to look at behind the instruction that fills them.
    after: Vec<(usize, u8)>,
    /// Registers to look at before the first instruction of a loop, or before it yields: the machine can't leave a
    /// comprehension, but it can leave each turn of the loop in it.
    before: Vec<(usize, u8)>,
    /// Comprehensions that yield without a loop what may be nothing: where they yield.
    pub(crate) unguarded: Vec<usize>,
}

/// The program in which they hold only if there is a value. `None` where it grows too long.
pub(crate) fn assigned(program: &Program) -> Option<Program> {
    let mut insertions = Insertions::default();
    for rule in 0..program.rule_infos.len() {
        for unit in units(program, rule) {
            let code: Vec<(usize, Instruction)> = unit.map(|pc| (pc, program.instructions[pc])).collect();
            let found = assignments(program, rule, &code);
            let guard = |register| Instruction::Guard {
                register,
                mode: GuardMode::NotUndefined,
            };
            for (at, register) in found.after {
                insertions.after(at, guard(register));
            }
            for (at, register) in found.before {
                insertions.before(at, guard(register));
            }
        }
    }
    insertions.apply(program)
}

/// The assignments of a body whose values may be nothing.
pub(crate) fn assignments(program: &Program, rule: usize, code: &[(usize, Instruction)]) -> Assigned {
    let result = program.rule_infos[rule].result_reg;
    let writers = writers(program, code);
    let is_binding = |at: usize, dest: u8, src: u8| {
        let next = code
            .iter()
            .find(|(pc, _)| *pc == at + 1)
            .map(|(_, instruction)| instruction);
        let guarded =
            matches!(next, Some(Instruction::Guard { register, mode: GuardMode::NotUndefined }) if *register == dest);
        let certain = writers.get(&src).is_some_and(|how| how.times == 1 && how.certain);
        dest != result && !guarded && !certain && writers.get(&dest).is_some_and(|how| how.times == 1)
    };
    let yields_nothing = |instruction: &Instruction| yielded(instruction).any(|register| !is_value(&writers, register));
    let mut found = Assigned::default();
    // Registers that wait for the loop of the comprehension that is this deep.
    let mut waiting: Vec<(usize, u8)> = Vec::new();
    walk(program, code, |pc, instruction, open| {
        let depth = open.len();
        let in_comprehension = open.last() == Some(&Open::Comprehension);
        waiting.retain(|(at, _)| *at <= depth);
        let mine = waiting.iter().filter(|(at, _)| in_comprehension && *at == depth);
        match instruction {
            Instruction::Move { dest, src } if is_binding(pc, *dest, *src) => {
                if in_comprehension {
                    waiting.push((depth, *dest));
                } else {
                    found.after.push((pc, *dest));
                }
            }
            Instruction::LoopStart { params_index } => {
                if let Some(params) = program.instruction_data.get_loop_params(*params_index) {
                    let first = usize::from(params.body_start);
                    found.before.extend(mine.map(|(_, register)| (first, *register)));
                }
            }
            Instruction::ComprehensionYield { .. } if !in_comprehension => {
                found.before.extend(yielded(instruction).map(|register| (pc, register)));
            }
            Instruction::ComprehensionYield { .. } if mine.count() > 0 || yields_nothing(instruction) => {
                found.unguarded.push(pc);
            }
            _ => {}
        }
    });
    found
}

/// The registers of what a comprehension is given.
fn yielded(instruction: &Instruction) -> impl Iterator<Item = u8> {
    let registers = match *instruction {
        Instruction::ComprehensionYield { value_reg, key_reg } => [Some(value_reg), key_reg],
        _ => [None, None],
    };
    registers.into_iter().flatten()
}

/// Whether a register holds a value in any case, its own or one that was copied.
fn is_value(writers: &BTreeMap<u8, Filled>, mut register: u8) -> bool {
    // A chain of copies is no longer than there are registers; a longer one is a circle.
    for _ in 0..=writers.len() {
        match writers.get(&register) {
            Some(Filled {
                times: 1,
                certain: true,
                ..
            }) => return true,
            Some(Filled {
                times: 1,
                copied: Some(source),
                ..
            }) => register = *source,
            _ => return false,
        }
    }
    false
}

/// How a register is filled in a body.
#[derive(Debug, Default)]
struct Filled {
    times: usize,
    /// What the last of them copies.
    copied: Option<u8>,
    /// Whether what the last of them puts there is a value in any case.
    certain: bool,
}

fn writers(program: &Program, code: &[(usize, Instruction)]) -> BTreeMap<u8, Filled> {
    let mut writers: BTreeMap<u8, Filled> = BTreeMap::new();
    let mut fill = |register: u8, certain: bool, copied: Option<u8>| {
        let filled = writers.entry(register).or_default();
        filled.times += 1;
        filled.certain = certain;
        filled.copied = copied;
    };
    for (_, instruction) in code {
        match *instruction {
            Instruction::Load { dest, .. }
            | Instruction::LoadTrue { dest }
            | Instruction::LoadFalse { dest }
            | Instruction::LoadNull { dest }
            | Instruction::LoadBool { dest, .. }
            | Instruction::LoadInput { dest }
            | Instruction::LoadData { dest } => fill(dest, true, None),
            Instruction::ComprehensionBegin { params_index } => {
                let params = program.instruction_data.get_comprehension_begin_params(params_index);
                params
                    .into_iter()
                    .for_each(|params| fill(params.result_reg, true, None));
            }
            Instruction::LoopStart { params_index } => {
                let params = program.instruction_data.get_loop_params(params_index);
                params.into_iter().for_each(|params| fill(params.value_reg, true, None));
            }
            Instruction::Move { dest, src } => fill(dest, false, Some(src)),
            Instruction::FunctionCall { params_index } => {
                let params = program.instruction_data.get_function_call_params(params_index);
                params.into_iter().for_each(|params| fill(params.dest, false, None));
            }
            Instruction::BuiltinCall { params_index } => {
                let params = program.instruction_data.get_builtin_call_params(params_index);
                params.into_iter().for_each(|params| fill(params.dest, false, None));
            }
            _ => {}
        }
    }
    writers
}
