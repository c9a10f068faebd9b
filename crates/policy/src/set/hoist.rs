//! A repair of the compiler's code.

use regorus::rvm::{Instruction, Program};

use super::program::units;

/// The program with `input` and `data` loaded first thing in each body.
///
/// The compiler loads them where they are first used and keeps them for the rest of the body. Where the first use is in
/// a loop that doesn't turn, the later ones would see nothing, and their condition would silently not hold.
pub(crate) fn hoisted(program: &Program) -> Program {
    let mut program = program.clone();
    for rule in 0..program.rule_infos.len() {
        for unit in units(&program, rule) {
            if !matches!(program.instructions.get(unit.start), Some(Instruction::RuleInit { .. })) {
                continue;
            }
            let first = unit.start + 1;
            for pc in first + 1..unit.end {
                if matches!(
                    program.instructions[pc],
                    Instruction::LoadInput { .. } | Instruction::LoadData { .. }
                ) {
                    program.instructions[first..=pc].rotate_right(1);
                    if program.instruction_spans.len() > pc {
                        program.instruction_spans[first..=pc].rotate_right(1);
                    }
                    shift_targets(&mut program, first, pc);
                }
            }
        }
    }
    program
}

/// After the instruction at `to` moved up to `from`, what was in between is one further down.
fn shift_targets(program: &mut Program, from: usize, to: usize) {
    let shift = |target: &mut u16| {
        if (from..=to).contains(&usize::from(*target)) {
            *target += 1;
        }
    };
    for instruction in &mut program.instructions[from..] {
        if let Instruction::LoopNext { body_start, loop_end } = instruction {
            shift(body_start);
            shift(loop_end);
        }
    }
    for params in &mut program.instruction_data.loop_params {
        shift(&mut params.body_start);
        shift(&mut params.loop_end);
    }
    for params in &mut program.instruction_data.comprehension_begin_params {
        shift(&mut params.body_start);
        shift(&mut params.comprehension_end);
    }
}
