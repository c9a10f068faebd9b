//! Shapes of code that the virtual machine runs otherwise than Rego means them. They are refused, with the way out.
//!
//! When a condition fails, the machine asks which loop is open, then which comprehension, and goes on from there. That is
//! right only where the innermost of both is the loop, and only where the loop itself can tell that it found nothing.

use regorus::rvm::instructions::LoopMode;
use regorus::rvm::{Instruction, Program};

use super::assigned::assignments;

/// What is open around an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Open {
    Comprehension,
    /// Up to that instruction.
    Loop(usize),
    Every(usize),
}

/// What the machine would get wrong in this body of the rule.
pub(crate) fn misread(
    program: &Program,
    rule: usize,
    code: &[(usize, Instruction)],
) -> Vec<(usize, &'static str, String)> {
    let info = &program.rule_infos[rule];
    let name = info.name.rsplit('.').next().unwrap_or(&info.name);
    let mut found = Vec::new();
    let Some(entry) = code.first().map(|(pc, _)| *pc) else {
        return found;
    };
    let followed = info.definitions.iter().any(|bodies| {
        let before_last = bodies.split_last().map_or(&[][..], |(_, rest)| rest);
        before_last.iter().any(|body| *body as usize == entry)
    });
    if followed && loops(program, code) {
        // A body that ends is taken for one that holds, also where its loop never got to a value.
        let message =
            format!("`{name}`: the condition before an `else` must not loop: give the loop a rule of its own");
        found.push((entry, "else_after_loop", message));
    }
    const AHEAD: &str = "a comprehension begins with its loop: move conditions that don't depend on the loop, and values that \
                         may not be there, out of it, or behind it";
    let unguarded = assignments(program, rule, code).unguarded;
    found.extend(
        unguarded
            .into_iter()
            .map(|pc| (pc, "comprehension_condition", AHEAD.to_owned())),
    );
    walk(program, code, |pc, instruction, open| match instruction {
        Instruction::Guard { .. } | Instruction::AssertEq { .. } if open.last() == Some(&Open::Comprehension) => {
            found.push((pc, "comprehension_condition", AHEAD.to_owned()));
        }
        Instruction::LoopStart { .. } if matches!(open.last(), Some(Open::Every(_))) => {
            // Each turn in which the inner loop finds nothing would count as one that holds.
            let message = "the body of an `every` must not loop: give the loop a function of its own";
            found.push((pc, "every_loop", message.to_owned()));
        }
        _ => {}
    });
    found
}

/// Whether the body iterates, outside of comprehensions and of `every`, which have one value.
pub(crate) fn loops(program: &Program, code: &[(usize, Instruction)]) -> bool {
    let mut found = false;
    walk(program, code, |_, instruction, open| {
        if let Instruction::LoopStart { params_index } = instruction {
            let every = is_every(program, *params_index);
            found |= !every && !open.contains(&Open::Comprehension);
        }
    });
    found
}

fn is_every(program: &Program, params_index: u16) -> bool {
    program
        .instruction_data
        .get_loop_params(params_index)
        .is_some_and(|params| params.mode == LoopMode::Every)
}

/// Calls `visit` with each instruction and what is open around it, outermost first.
pub(crate) fn walk(
    program: &Program,
    code: &[(usize, Instruction)],
    mut visit: impl FnMut(usize, &Instruction, &[Open]),
) {
    let mut open: Vec<Open> = Vec::new();
    for (pc, instruction) in code {
        while let Some(Open::Loop(end) | Open::Every(end)) = open.last() {
            if pc < end {
                break;
            }
            open.pop();
        }
        if matches!(instruction, Instruction::ComprehensionEnd {}) {
            open.pop();
        }
        visit(*pc, instruction, &open);
        match instruction {
            Instruction::ComprehensionBegin { .. } => open.push(Open::Comprehension),
            Instruction::LoopStart { params_index } => {
                let end = program
                    .instruction_data
                    .get_loop_params(*params_index)
                    .map_or(usize::MAX, |params| usize::from(params.loop_end));
                open.push(if is_every(program, *params_index) {
                    Open::Every(end)
                } else {
                    Open::Loop(end)
                });
            }
            _ => {}
        }
    }
}
