//! Instructions put between others, with every jump moved along.

use std::collections::BTreeMap;
use std::sync::Arc;

use regorus::rvm::{Instruction, Program};

/// What to put where, by the index of an instruction.
#[derive(Debug, Default)]
pub(crate) struct Insertions {
    before: BTreeMap<usize, Vec<Instruction>>,
    after: BTreeMap<usize, Vec<Instruction>>,
}

impl Insertions {
    /// Runs `instruction` before the one at `at`, also when that is jumped to.
    pub(crate) fn before(&mut self, at: usize, instruction: Instruction) {
        self.before.entry(at).or_default().push(instruction);
    }

    /// Runs `instruction` after the one at `at`; who jumps behind that doesn't run it.
    pub(crate) fn after(&mut self, at: usize, instruction: Instruction) {
        self.after.entry(at).or_default().push(instruction);
    }

    /// The program with them. `None` where it grows longer than its jumps reach.
    pub(crate) fn apply(&self, program: &Program) -> Option<Program> {
        let mut new = program.clone();
        new.instructions.clear();
        new.instruction_spans.clear();
        let spanned = program.instruction_spans.len() == program.instructions.len();
        // Where a jump to each instruction goes, and to the end.
        let mut moved = Vec::with_capacity(program.instructions.len() + 1);
        for (at, instruction) in program.instructions.iter().enumerate() {
            moved.push(new.instructions.len());
            new.instructions.extend(self.before.get(&at).into_iter().flatten());
            new.instructions.push(*instruction);
            new.instructions.extend(self.after.get(&at).into_iter().flatten());
            if spanned {
                new.instruction_spans
                    .resize(new.instructions.len(), program.instruction_spans[at].clone());
            }
        }
        moved.push(new.instructions.len());
        retarget(&mut new, &moved)?;
        Some(new)
    }
}

fn retarget(program: &mut Program, moved: &[usize]) -> Option<()> {
    let near = |target: &mut u16| -> Option<()> {
        *target = u16::try_from(*moved.get(usize::from(*target))?).ok()?;
        Some(())
    };
    let far = |target: &mut u32| -> Option<()> {
        *target = u32::try_from(*moved.get(*target as usize)?).ok()?;
        Some(())
    };
    for instruction in &mut program.instructions {
        if let Instruction::LoopNext { body_start, loop_end } = instruction {
            near(body_start)?;
            near(loop_end)?;
        }
    }
    for params in &mut program.instruction_data.loop_params {
        near(&mut params.body_start)?;
        near(&mut params.loop_end)?;
    }
    for params in &mut program.instruction_data.comprehension_begin_params {
        near(&mut params.body_start)?;
        near(&mut params.comprehension_end)?;
    }
    for rule in &mut program.rule_infos {
        let definitions = Arc::make_mut(&mut rule.definitions).iter_mut().flatten();
        for entry in definitions.chain(rule.destructuring_blocks.iter_mut().flatten()) {
            far(entry)?;
        }
    }
    far(&mut program.main_entry_point)?;
    for entry in program.entry_points.values_mut() {
        *entry = *moved.get(*entry)?;
    }
    Some(())
}
