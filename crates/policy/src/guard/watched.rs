//! Calls that the program makes besides its own: before it loops over something, and before a rule that fired says so.

use regorus::rvm::instructions::BuiltinCallParams;
use regorus::rvm::{Instruction, Program};

use super::{Operator, operator_slot};
use crate::set::insert::Insertions;
use crate::set::program::{Origin, origin, units};

/// The program with these calls. `None` where it has no room for them.
pub(super) fn watched(mut program: Program) -> Option<Program> {
    let mut insertions = Insertions::default();
    collections(&mut program, &mut insertions)?;
    heads(&mut program, &mut insertions)?;
    insertions.apply(&program)
}

/// Looks at each collection before its elements are taken.
fn collections(program: &mut Program, insertions: &mut Insertions) -> Option<()> {
    for index in 0..program.instructions.len() {
        let collection = match program.instructions[index] {
            Instruction::LoopStart { params_index } => {
                program.instruction_data.get_loop_params(params_index)?.collection
            }
            Instruction::Contains { collection, .. } => collection,
            _ => continue,
        };
        // The value goes back where it was.
        let call = call(program, Operator::In, collection)?;
        insertions.before(index, call);
    }
    Some(())
}

/// Looks at what each fired rule of a policy adds to `rules`.
fn heads(program: &mut Program, insertions: &mut Insertions) -> Option<()> {
    for rule in 0..program.rule_infos.len() {
        let info = &program.rule_infos[rule];
        let ours = matches!(origin(&info.name), Some(Origin::Policy(_))) && info.name.split('.').count() == RULES_DEPTH;
        if !ours || !info.name.ends_with(".rules") {
            continue;
        }
        let (result, flag) = (info.result_reg, info.num_registers);
        program.rule_infos[rule].num_registers = flag.checked_add(1)?;
        for unit in units(program, rule) {
            for index in unit {
                let Instruction::SetAdd { set, value } = program.instructions[index] else {
                    continue;
                };
                if set == result {
                    // True for nothing, false for a document.
                    insertions.before(
                        index,
                        Instruction::Not {
                            dest: flag,
                            operand: value,
                        },
                    );
                    let call = call(program, Operator::Head, flag)?;
                    insertions.before(index, call);
                }
            }
        }
    }
    Some(())
}

/// Parts of `data.aip.policy.<name>.rules`.
const RULES_DEPTH: usize = 5;

/// A call that puts its only argument back where it was.
fn call(program: &mut Program, operator: Operator, register: u8) -> Option<Instruction> {
    let builtin_index = operator_slot(program, operator)?;
    let params_index = u16::try_from(program.instruction_data.builtin_call_params.len()).ok()?;
    program.instruction_data.builtin_call_params.push(BuiltinCallParams {
        dest: register,
        builtin_index,
        num_args: 1,
        args: [register, 0, 0, 0, 0, 0, 0, 0],
    });
    Some(Instruction::BuiltinCall { params_index })
}
