//! Values that the program could have two of.
//!
//! Rego calls two values of one rule, or of one key, a conflict, and the interpreter fails on it. The virtual machine keeps
//! one of them, or none. Whether it can happen is decided here, from the instructions, and what can't be shown to have
//! one value is refused.

use regorus::rvm::instructions::LoopMode;
use regorus::rvm::program::RuleType;
use regorus::rvm::{Instruction, Program};

use super::operands::operands;
use super::structure;

/// Where a rule that has one value could have several. The interpreter calls that a conflict; the virtual machine takes
/// one of them, or none: a deny rule behind it would silently not fire.
pub(crate) fn ambiguities(
    program: &Program,
    rule: usize,
    code: &[(usize, Instruction)],
) -> Vec<(&'static str, String)> {
    let info = &program.rule_infos[rule];
    let name = info.name.rsplit('.').next().unwrap_or(&info.name);
    let mut found = comprehension_conflicts(program, code);
    match info.rule_type {
        RuleType::PartialSet => return found,
        RuleType::PartialObject => {
            found.push((
                "ambiguous_rule",
                format!("`{name}[key]`: write `{name} := {{key: value | …}}`, a comprehension"),
            ));
            return found;
        }
        RuleType::Complete => {}
    }
    let first = info
        .definitions
        .first()
        .and_then(|bodies| bodies.first())
        .map(|entry| *entry as usize);
    if info.definitions.len() > 1 && !info.early_exit_on_first_success && first == code.first().map(|(pc, _)| *pc) {
        found.push((
            "ambiguous_rule",
            format!("`{name}` has several definitions that can give different values: join them with `else`"),
        ));
    }
    if structure::loops(program, code) && !gives_constant(info.result_reg, code) {
        found.push((
            "ambiguous_rule",
            format!("`{name}` can have several values, one per turn of a loop: use a comprehension"),
        ));
    }
    found
}

/// Object comprehensions that could give a key two values: the interpreter calls that a conflict, the virtual machine
/// keeps the last. Safe are those with one loop whose key is the loop's own: its key, or its element where nothing else
/// depends on the key.
fn comprehension_conflicts(program: &Program, code: &[(usize, Instruction)]) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    // Loops of each open comprehension.
    let mut open: Vec<Vec<(u8, u8)>> = Vec::new();
    let source = |register: u8| {
        let moved = code.iter().find_map(|(_, instruction)| match instruction {
            Instruction::Move { dest, src } if *dest == register => Some(*src),
            _ => None,
        });
        moved.unwrap_or(register)
    };
    let read = |register: u8| {
        code.iter()
            .any(|(_, instruction)| operands(program, instruction).is_none_or(|operands| operands.contains(&register)))
    };
    for (_, instruction) in code {
        match instruction {
            Instruction::ComprehensionBegin { .. } => open.push(Vec::new()),
            Instruction::ComprehensionEnd {} => drop(open.pop()),
            Instruction::LoopStart { params_index } => {
                let params = program.instruction_data.get_loop_params(*params_index);
                if let (Some(loops), Some(params)) = (open.last_mut(), params.filter(|it| it.mode != LoopMode::Every)) {
                    loops.push((params.key_reg, params.value_reg));
                }
            }
            Instruction::ComprehensionYield { key_reg: Some(key), .. } => {
                let key = source(*key);
                let safe = match open.last().map(Vec::as_slice) {
                    Some([]) => true,
                    Some([(loop_key, value)]) => {
                        key == *loop_key && loop_key != value
                            || key == *value && (loop_key == value || !read(*loop_key))
                    }
                    _ => false,
                };
                if !safe {
                    found.push((
                        "ambiguous_comprehension",
                        "an object comprehension that could give a key two values: iterate over one object, and use its \
                         key or its element as the key"
                            .to_owned(),
                    ));
                }
            }
            _ => {}
        }
    }
    found
}

/// Whether all that a body ever writes to its result is one constant, so that a loop can't give it two.
fn gives_constant(result: u8, code: &[(usize, Instruction)]) -> bool {
    let constant = |register: u8| {
        let mut writes = code.iter().filter(|(_, instruction)| match instruction {
            Instruction::Load { dest, .. }
            | Instruction::LoadBool { dest, .. }
            | Instruction::LoadTrue { dest }
            | Instruction::LoadFalse { dest }
            | Instruction::LoadNull { dest } => *dest == register,
            _ => false,
        });
        writes.next().is_some() && writes.next().is_none()
    };
    let mut results = code.iter().filter_map(|(_, instruction)| match instruction {
        Instruction::Move { dest, src } if *dest == result => Some(*src),
        _ => None,
    });
    results.next().is_some_and(constant) && results.next().is_none()
}
