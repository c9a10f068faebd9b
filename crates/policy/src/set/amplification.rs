//! How often a rule can repeat a value inside another.
//!
//! Values are shared, so `x1 := [x0, x0]`, `x2 := [x1, x1]` … cost nothing to make, yet comparing two of them visits every
//! repetition: forty such rules would hold a worker for hours within a hundred instructions. The bound is on the text of
//! the program: weights are summed where values are put together, and multiplied along calls and where a loop repeats
//! what doesn't change with it.

use regorus::Value;
use regorus::rvm::{Instruction, Program};

use super::operands::operands;
use super::program::units;
use crate::limits::MAX_AMPLIFICATION;

/// A loop is taken to repeat what doesn't change with it this often.
const LOOP_TURNS: u64 = 1024;

/// Builtins that pass parts of their arguments on. The others give texts, numbers or lists of these, whose size is
/// bounded at each call.
const PASSING: &[&str] = &[
    "array.concat",
    "array.reverse",
    "array.slice",
    "intersection",
    "json.filter",
    "json.remove",
    "max",
    "min",
    "object.filter",
    "object.get",
    "object.keys",
    "object.remove",
    "object.union",
    "object.union_n",
    "sort",
    "union",
    "__builtin_sets.intersection",
    "__builtin_sets.union",
];

/// What is known about the value in a register.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// How often it repeats parts of arguments, input, data and constants.
    weight: u64,
    /// Whether all that isn't flat in it is a part of the element of a loop, other in each turn.
    varies: bool,
    /// Whether it is a text, a number, a flag or null.
    flat: bool,
}

const FLAT: Part = Part {
    weight: 1,
    varies: true,
    flat: true,
};
const WHOLE: Part = Part {
    weight: 1,
    varies: false,
    flat: false,
};

impl Part {
    fn heavier(self, other: Self) -> Self {
        Self {
            weight: self.weight.max(other.weight),
            varies: self.varies && other.varies,
            flat: self.flat && other.flat,
        }
    }
}

/// The rules whose values repeat their parts more than [`MAX_AMPLIFICATION`] times. Calls must not be recursive.
pub(crate) fn excessive(program: &Program) -> impl Iterator<Item = usize> {
    let mut known = vec![None; program.rule_infos.len()];
    (0..program.rule_infos.len()).filter(move |rule| weights(program, *rule, &mut known).heaviest > MAX_AMPLIFICATION)
}

#[derive(Debug, Clone, Copy)]
struct Weights {
    /// Of the rule's value.
    result: u64,
    /// Of the heaviest value on the way.
    heaviest: u64,
}

fn weights(program: &Program, rule: usize, known: &mut [Option<Weights>]) -> Weights {
    match known.get(rule) {
        Some(None) => {}
        Some(Some(weights)) => return *weights,
        None => {
            return Weights {
                result: u64::MAX,
                heaviest: u64::MAX,
            };
        }
    }
    let (mut result, result_reg) = (1, program.rule_infos[rule].result_reg);
    let mut heaviest = 1;
    for unit in units(program, rule) {
        let mut walk = Walk {
            program,
            registers: [None; 256],
            comprehensions: Vec::new(),
        };
        for pc in unit {
            if let Some((dest, part)) = walk.step(&program.instructions[pc], known) {
                let slot = &mut walk.registers[usize::from(dest)];
                let part = slot.map_or(part, |before: Part| before.heavier(part));
                *slot = Some(part);
                heaviest = heaviest.max(part.weight);
            }
        }
        result = result.max(walk.registers[usize::from(result_reg)].map_or(1, |part| part.weight));
    }
    let weights = Weights { result, heaviest };
    known[rule] = Some(weights);
    weights
}

struct Walk<'a> {
    program: &'a Program,
    registers: [Option<Part>; 256],
    /// Result registers of the open comprehensions.
    comprehensions: Vec<u8>,
}

impl Walk<'_> {
    fn part(&self, register: u8) -> Part {
        // What nothing was put into is an argument.
        self.registers[usize::from(register)].unwrap_or(WHOLE)
    }

    /// A value that is put together from all operands.
    fn together(&self, instruction: &Instruction) -> Part {
        let parts = operands(self.program, instruction).unwrap_or_default();
        let mut sum = Part {
            weight: 0,
            varies: true,
            flat: false,
        };
        for part in parts.into_iter().map(|register| self.part(register)) {
            sum.weight = sum.weight.saturating_add(part.weight);
            sum.varies &= part.varies;
        }
        Part {
            weight: sum.weight.max(1),
            ..sum
        }
    }

    /// The register that the instruction puts a value into, and what is known about it.
    fn step(&mut self, instruction: &Instruction, known: &mut [Option<Weights>]) -> Option<(u8, Part)> {
        use Instruction as I;
        match instruction {
            I::LoopStart { .. }
            | I::ComprehensionBegin { .. }
            | I::ComprehensionYield { .. }
            | I::ComprehensionEnd {} => self.repeated(instruction),
            I::CallRule { .. } | I::FunctionCall { .. } | I::BuiltinCall { .. } => self.called(instruction, known),
            I::Index { .. } | I::IndexLiteral { .. } | I::ChainedIndex { .. } => self.taken(instruction),
            I::ArrayCreate { .. }
            | I::SetCreate { .. }
            | I::ObjectCreate { .. }
            | I::ArrayPush { .. }
            | I::ObjectSet { .. }
            | I::SetAdd { .. } => self.made(instruction),
            _ => self.plain(instruction),
        }
    }

    /// Loops and comprehensions: what turns with the loop is another value each time, the rest is repeated.
    fn repeated(&mut self, instruction: &Instruction) -> Option<(u8, Part)> {
        use Instruction as I;
        let data = &self.program.instruction_data;
        match *instruction {
            I::LoopStart { params_index } => {
                let params = data.get_loop_params(params_index)?;
                let element = Part {
                    varies: true,
                    flat: false,
                    ..self.part(params.collection)
                };
                self.registers[usize::from(params.key_reg)] = Some(element);
                Some((params.value_reg, element))
            }
            I::ComprehensionBegin { params_index } => {
                let params = data.get_comprehension_begin_params(params_index)?;
                self.comprehensions.push(params.result_reg);
                None
            }
            I::ComprehensionYield { .. } => {
                let part = self.together(instruction);
                let turns = if part.varies { 1 } else { LOOP_TURNS };
                let weight = part.weight.saturating_mul(turns);
                Some((*self.comprehensions.last()?, Part { weight, ..WHOLE }))
            }
            _ => {
                self.comprehensions.pop();
                None
            }
        }
    }

    /// The value of a rule, a function or a builtin.
    fn called(&self, instruction: &Instruction, known: &mut [Option<Weights>]) -> Option<(u8, Part)> {
        use Instruction as I;
        let data = &self.program.instruction_data;
        match *instruction {
            I::CallRule { dest, rule_index } => {
                let weight = weights(self.program, usize::from(rule_index), known).result;
                Some((dest, Part { weight, ..WHOLE }))
            }
            I::FunctionCall { params_index } => {
                let params = data.get_function_call_params(params_index)?;
                let own = weights(self.program, usize::from(params.func_rule_index), known).result;
                let given = self.together(instruction);
                let part = Part {
                    weight: own.saturating_mul(given.weight),
                    varies: given.varies && own == 1,
                    flat: false,
                };
                Some((params.dest, part))
            }
            I::BuiltinCall { params_index } => {
                let params = data.get_builtin_call_params(params_index)?;
                let builtin = self.program.get_builtin_info(params.builtin_index);
                let passing = builtin.is_some_and(|builtin| PASSING.contains(&builtin.name.as_str()));
                Some((params.dest, if passing { self.together(instruction) } else { FLAT }))
            }
            _ => None,
        }
    }

    /// A part of a value.
    fn taken(&self, instruction: &Instruction) -> Option<(u8, Part)> {
        use Instruction as I;
        let (dest, whole) = match *instruction {
            I::Index { dest, container, .. } | I::IndexLiteral { dest, container, .. } => (dest, container),
            I::ChainedIndex { params_index } => {
                let params = self.program.instruction_data.get_chained_index_params(params_index)?;
                (params.dest, params.root)
            }
            _ => return None,
        };
        let part = Part {
            flat: false,
            ..self.part(whole)
        };
        Some((dest, part))
    }

    /// A collection, or what is put into one.
    fn made(&self, instruction: &Instruction) -> Option<(u8, Part)> {
        use Instruction as I;
        let data = &self.program.instruction_data;
        let dest = match *instruction {
            I::ArrayCreate { params_index } => data.get_array_create_params(params_index)?.dest,
            I::SetCreate { params_index } => data.get_set_create_params(params_index)?.dest,
            I::ObjectCreate { params_index } => data.get_object_create_params(params_index)?.dest,
            I::ArrayPush { arr, .. } => arr,
            I::ObjectSet { obj, .. } => obj,
            I::SetAdd { set, value } => return Some((set, self.part(value))),
            _ => return None,
        };
        Some((dest, self.together(instruction)))
    }

    /// Constants, documents, and what operators give.
    fn plain(&self, instruction: &Instruction) -> Option<(u8, Part)> {
        use Instruction as I;
        Some(match *instruction {
            I::Load { dest, literal_idx } => match self.program.literals.get(usize::from(literal_idx)) {
                Some(Value::Array(_) | Value::Set(_) | Value::Object(_)) | None => (dest, WHOLE),
                Some(_) => (dest, FLAT),
            },
            I::LoadInput { dest } | I::LoadData { dest } => (dest, WHOLE),
            I::Move { dest, src } => (dest, self.part(src)),
            // Also the difference of two sets.
            I::Sub { dest, left, .. } => (dest, self.part(left)),
            I::Eq { dest, .. }
            | I::Ne { dest, .. }
            | I::Lt { dest, .. }
            | I::Le { dest, .. }
            | I::Gt { dest, .. }
            | I::Ge { dest, .. }
            | I::Add { dest, .. }
            | I::Mul { dest, .. }
            | I::Div { dest, .. }
            | I::Mod { dest, .. }
            | I::And { dest, .. }
            | I::Or { dest, .. }
            | I::Not { dest, .. }
            | I::Contains { dest, .. }
            | I::Count { dest, .. }
            | I::LoadBool { dest, .. }
            | I::LoadTrue { dest }
            | I::LoadFalse { dest }
            | I::LoadNull { dest } => (dest, FLAT),
            _ => return None,
        })
    }
}
