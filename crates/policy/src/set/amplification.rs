//! How often a rule can repeat a value inside another.
//!
//! Values are shared, so `x1 := [x0, x0]`, `x2 := [x1, x1]` … cost nothing to make, yet comparing two of them visits every
//! repetition: forty such rules would hold a worker for hours within a hundred instructions. The bound is on the text of
//! the program: weights are summed where values are put together, and multiplied along calls.

use regorus::rvm::{Instruction, Program};

use super::operands::operands;
use super::program::units;
use crate::limits::MAX_AMPLIFICATION;

/// A comprehension that repeats a composed value is taken to repeat it this often.
const LOOP_TURNS: u64 = 1024;

/// The rules whose values repeat their parts more than [`MAX_AMPLIFICATION`] times. Calls must not be recursive.
pub(crate) fn excessive(program: &Program) -> impl Iterator<Item = usize> {
    let mut known = vec![None; program.rule_infos.len()];
    (0..program.rule_infos.len()).filter(move |rule| weight(program, *rule, &mut known) > MAX_AMPLIFICATION)
}

/// Weight of the rule's value, where its arguments, the input, data and constants weigh one.
fn weight(program: &Program, rule: usize, known: &mut [Option<u64>]) -> u64 {
    match known.get(rule) {
        Some(None) => {}
        Some(Some(weight)) => return *weight,
        None => return u64::MAX,
    }
    let mut heaviest = 1;
    for unit in units(program, rule) {
        let mut registers = [1u64; 256];
        let mut comprehensions: Vec<u8> = Vec::new();
        for pc in unit {
            let instruction = program.instructions[pc];
            let (dest, weight) = step(program, &instruction, &registers, &mut comprehensions, known);
            if let Some(dest) = dest {
                let slot = &mut registers[usize::from(dest)];
                *slot = weight.max(*slot);
                heaviest = heaviest.max(*slot);
            }
        }
    }
    known[rule] = Some(heaviest);
    heaviest
}

/// The register that the instruction gives a value, and the value's weight.
fn step(
    program: &Program,
    instruction: &Instruction,
    registers: &[u64; 256],
    comprehensions: &mut Vec<u8>,
    known: &mut [Option<u64>],
) -> (Option<u8>, u64) {
    use Instruction as I;
    let data = &program.instruction_data;
    let of = |register: u8| registers[usize::from(register)];
    let sum = || {
        operands(program, instruction).unwrap_or_default().into_iter().map(of).fold(0, u64::saturating_add).max(1)
    };
    let heaviest = || operands(program, instruction).unwrap_or_default().into_iter().map(of).max().unwrap_or(1);
    match *instruction {
        I::Move { dest, src } => (Some(dest), of(src)),
        I::Index { dest, container, .. } | I::IndexLiteral { dest, container, .. } => (Some(dest), of(container)),
        I::ChainedIndex { params_index } => match data.get_chained_index_params(params_index) {
            Some(params) => (Some(params.dest), of(params.root)),
            None => (None, 1),
        },
        I::ArrayCreate { params_index } => (data.get_array_create_params(params_index).map(|params| params.dest), sum()),
        I::SetCreate { params_index } => (data.get_set_create_params(params_index).map(|params| params.dest), sum()),
        I::ObjectCreate { params_index } => {
            (data.get_object_create_params(params_index).map(|params| params.dest), sum())
        }
        I::BuiltinCall { params_index } => (data.get_builtin_call_params(params_index).map(|params| params.dest), sum()),
        I::ArrayPush { arr, .. } => (Some(arr), sum()),
        I::SetAdd { set, .. } => (Some(set), heaviest()),
        I::ObjectSet { obj, .. } => (Some(obj), sum()),
        I::CallRule { dest, rule_index } => (Some(dest), weight(program, usize::from(rule_index), known)),
        I::FunctionCall { params_index } => match data.get_function_call_params(params_index) {
            Some(params) => {
                let own = weight(program, usize::from(params.func_rule_index), known);
                (Some(params.dest), own.saturating_mul(heaviest()))
            }
            None => (None, 1),
        },
        I::LoopStart { params_index } => match data.get_loop_params(params_index) {
            Some(params) => (Some(params.value_reg), of(params.collection)),
            None => (None, 1),
        },
        I::ComprehensionBegin { params_index } => {
            if let Some(params) = data.get_comprehension_begin_params(params_index) {
                comprehensions.push(params.result_reg);
            }
            (None, 1)
        }
        I::ComprehensionYield { .. } => match heaviest() {
            1 => (comprehensions.last().copied(), 1),
            composed => (comprehensions.last().copied(), composed.saturating_mul(LOOP_TURNS)),
        },
        I::ComprehensionEnd {} => {
            comprehensions.pop();
            (None, 1)
        }
        _ => (None, 1),
    }
}
