//! The words of rules that stand in the program as constants: verdicts that are none, and what this version doesn't carry
//! out. A word that is computed is only known when the rule fires; the request is then denied.

use regorus::Value;
use regorus::rvm::instructions::ObjectCreateParams;
use regorus::rvm::{Instruction, Program};

use super::operands::operands;
use super::program::{Origin, line, origin, units};
use crate::obligations::Obligations;
use crate::verdict::Verdict;

type Code = [(usize, Instruction)];

/// A word that nobody would act on.
#[derive(Debug)]
pub(crate) struct Unusable {
    /// The word as the policy has it; none where it isn't a text.
    pub(crate) word: Option<String>,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// Where the value that holds it begins.
    pub(crate) line: Option<(u32, u32)>,
}

/// What the rules of policies say that nobody would act on. An object with the keys `rule`, `verdict` and `reason` is taken
/// for one that ends in `rules`, wherever it is made.
pub(crate) fn unusable(program: &Program) -> Vec<Unusable> {
    let mut found = Vec::new();
    for (rule, info) in program.rule_infos.iter().enumerate() {
        if !matches!(origin(&info.name), Some(Origin::Policy(_))) {
            continue;
        }
        for unit in units(program, rule) {
            let code: Vec<(usize, Instruction)> = unit.map(|pc| (pc, program.instructions[pc])).collect();
            for (at, (pc, instruction)) in code.iter().enumerate() {
                let mut words = Vec::new();
                if let Some(object) = created(program, instruction) {
                    of_object(program, &code, at, object, &mut words);
                } else if let Some(value) = loaded(program, instruction) {
                    of_constant(value, *pc, &mut words);
                }
                found.extend(words.into_iter().map(|(pc, word, fault)| Unusable {
                    word,
                    reason: fault.0,
                    message: fault.1,
                    line: line(program, pc),
                }));
            }
        }
    }
    found
}

/// The instruction, the word, and what is wrong with it.
type Word = (usize, Option<String>, (&'static str, String));

fn created<'p>(program: &'p Program, instruction: &Instruction) -> Option<&'p ObjectCreateParams> {
    match instruction {
        Instruction::ObjectCreate { params_index } => program.instruction_data.get_object_create_params(*params_index),
        _ => None,
    }
}

/// The constant keys of an object, with the registers of their values.
fn keys<'p>(program: &'p Program, object: &'p ObjectCreateParams) -> impl Iterator<Item = (&'p str, u8)> {
    object.literal_key_field_pairs().iter().filter_map(|(key, register)| {
        match program.literals.get(usize::from(*key)) {
            Some(Value::String(key)) => Some((&**key, *register)),
            _ => None,
        }
    })
}

/// An object of which a part is computed.
fn of_object(program: &Program, code: &Code, at: usize, object: &ObjectCreateParams, found: &mut Vec<Word>) {
    let register = |key: &str| {
        keys(program, object)
            .find(|(name, _)| *name == key)
            .map(|(_, register)| register)
    };
    let (Some(_), Some(verdict), Some(_)) = (register("rule"), register("verdict"), register("reason")) else {
        return;
    };
    let made = |register| writer(program, code, at, register).map(|place| code[place]);
    if let Some((pc, instruction)) = made(verdict)
        && let Some(value) = loaded(program, &instruction)
    {
        found.extend(verdict_fault(value).map(|fault| (pc, text(value), fault)));
    }
    if let Some((pc, instruction)) = register("obligations").and_then(made) {
        if let Some(object) = created(program, &instruction) {
            let faults =
                keys(program, object).filter_map(|(key, _)| Some((pc, Some(key.to_owned()), obligation_fault(key)?)));
            found.extend(faults);
        } else if let Some(value) = loaded(program, &instruction) {
            of_obligations(value, pc, found);
        }
    }
}

/// A value that the compiler computed. The parser's gate bounds how deep it nests.
fn of_constant(value: &Value, pc: usize, found: &mut Vec<Word>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| of_constant(item, pc, found)),
        Value::Set(items) => items.iter().for_each(|item| of_constant(item, pc, found)),
        Value::Object(entries) => {
            let part = |name: &str| {
                entries
                    .iter()
                    .find(|(key, _)| text(key).as_deref() == Some(name))
                    .map(|(_, part)| part)
            };
            if let (Some(_), Some(verdict), Some(_)) = (part("rule"), part("verdict"), part("reason")) {
                found.extend(verdict_fault(verdict).map(|fault| (pc, text(verdict), fault)));
                if let Some(obligations) = part("obligations") {
                    of_obligations(obligations, pc, found);
                }
            } else {
                entries.iter().for_each(|(_, part)| of_constant(part, pc, found));
            }
        }
        _ => {}
    }
}

fn of_obligations(value: &Value, pc: usize, found: &mut Vec<Word>) {
    if let Value::Object(entries) = value {
        let keys = entries.iter().filter_map(|(key, _)| text(key));
        found.extend(keys.filter_map(|key| Some((pc, Some(key.clone()), obligation_fault(&key)?))));
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.to_string()),
        _ => None,
    }
}

fn verdict_fault(value: &Value) -> Option<(&'static str, String)> {
    let known = || {
        let words = Verdict::ALL.iter().filter(|verdict| verdict.in_this_version());
        words
            .map(|verdict| format!("`{verdict}`"))
            .collect::<Vec<_>>()
            .join(" or ")
    };
    let verdict = match value {
        Value::String(word) => Verdict::parse(word),
        _ => None,
    };
    match verdict {
        Some(verdict) if verdict.in_this_version() => None,
        Some(verdict) => {
            let message = format!(
                "this version doesn't carry out `{verdict}`: the rule would refuse every request that it fires on; say {}",
                known()
            );
            Some(("unsupported_verdict", message))
        }
        None => Some(("verdict", format!("{value} is no verdict; say {}", known()))),
    }
}

fn obligation_fault(name: &str) -> Option<(&'static str, String)> {
    (!Obligations::IN_THIS_VERSION.contains(&name)).then(|| {
        let known: Vec<String> = Obligations::IN_THIS_VERSION.iter().map(|key| format!("`{key}`")).collect();
        let message = format!(
            "this version doesn't honour the obligation `{name}`: the rule would refuse every request that it fires on; \
             it honours {}",
            known.join(", ")
        );
        ("unsupported_obligation", message)
    })
}

fn loaded<'p>(program: &'p Program, instruction: &Instruction) -> Option<&'p Value> {
    match instruction {
        Instruction::Load { literal_idx, .. } => program.literals.get(usize::from(*literal_idx)),
        _ => None,
    }
}

/// The place in the code of the instruction that made what is in `register`, through copies.
fn writer(program: &Program, code: &Code, at: usize, register: u8) -> Option<usize> {
    let mut wanted = register;
    for place in (0..at).rev() {
        match code[place].1 {
            Instruction::Move { dest, src } if dest == wanted => wanted = src,
            Instruction::Load { dest, .. } if dest == wanted => return Some(place),
            instruction => match created(program, &instruction) {
                Some(object) if object.dest == wanted => return Some(place),
                // What isn't known to read its registers only is not looked through.
                _ if operands(program, &instruction).is_none() => return None,
                _ => {}
            },
        }
    }
    None
}
