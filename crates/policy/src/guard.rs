//! A watch over builtin calls, arithmetic and order.
//!
//! The virtual machine treats an error inside a rule's body as "the body doesn't hold", so a deny rule whose builtin
//! fails would silently not fire, and its instruction limit doesn't see what one call costs. Both are decided here: the
//! table of builtins in the compiled program is replaced by calls that first look at the arguments, and that turn every
//! error into one that ends the evaluation. Arithmetic and ordering become such calls too, and loops look at what they
//! loop over: an argument that is a text where the rule compares numbers, or looks through a list, must not slip past it.
//!
//! The engine's function type can't be named outside of it and carries no state, hence one function per table slot and
//! a thread-local that says which program is running.

mod watched;

use std::cell::RefCell;
use std::sync::Arc;

use regorus::rvm::instructions::BuiltinCallParams;
use regorus::rvm::program::BuiltinInfo;
use regorus::rvm::{Instruction, Program};
use regorus::{LimitError, Value};

use crate::bounds;
use crate::limits::{MAX_EXAMINED, MAX_PRODUCED};

/// Slots in the table: our allow-list of builtins fits.
const SLOTS: usize = 128;

/// What went wrong in the evaluation that runs on this thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// A builtin or an operator failed.
    Error(String),
    /// A call would have produced, or the evaluation has produced, too much.
    Limit(String),
}

struct Run {
    originals: Arc<Program>,
    trouble: Option<Trouble>,
    /// Bytes and elements that builtins were given, and made, so far.
    examined: usize,
    produced: usize,
}

thread_local! {
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
}

/// Runs `evaluate` on a guarded program, and reports what its builtins and operators ran into.
pub(crate) fn watch<R>(originals: &Arc<Program>, evaluate: impl FnOnce() -> R) -> (R, Option<Trouble>) {
    let run = Run {
        originals: originals.clone(),
        trouble: None,
        examined: 0,
        produced: 0,
    };
    let before = RUN.with(|slot| slot.borrow_mut().replace(run));
    let result = evaluate();
    let after = RUN.with(|slot| std::mem::replace(&mut *slot.borrow_mut(), before));
    (result, after.and_then(|run| run.trouble))
}

/// Puts a watch on every builtin and operator of the program. `None` if it uses more of them than there are slots.
pub(crate) fn guarded(original: &Program) -> Option<Program> {
    let mut program = original.clone();
    for index in 0..program.instructions.len() {
        let instruction = program.instructions[index];
        let (operator, dest, left, right) = match instruction {
            Instruction::Add { dest, left, right } => (Operator::Add, dest, left, right),
            Instruction::Sub { dest, left, right } => (Operator::Sub, dest, left, right),
            Instruction::Mul { dest, left, right } => (Operator::Mul, dest, left, right),
            Instruction::Div { dest, left, right } => (Operator::Div, dest, left, right),
            Instruction::Mod { dest, left, right } => (Operator::Mod, dest, left, right),
            Instruction::Lt { dest, left, right } => (Operator::Lt, dest, left, right),
            Instruction::Le { dest, left, right } => (Operator::Le, dest, left, right),
            Instruction::Gt { dest, left, right } => (Operator::Gt, dest, left, right),
            Instruction::Ge { dest, left, right } => (Operator::Ge, dest, left, right),
            _ => continue,
        };
        let builtin_index = operator_slot(&mut program, operator)?;
        let args = [left, right, 0, 0, 0, 0, 0, 0];
        let call = BuiltinCallParams {
            dest,
            builtin_index,
            num_args: 2,
            args,
        };
        let params_index = u16::try_from(program.instruction_data.builtin_call_params.len()).ok()?;
        program.instruction_data.builtin_call_params.push(call);
        program.instructions[index] = Instruction::BuiltinCall { params_index };
    }
    let mut program = watched::watched(program)?;
    if program.builtin_info_table.len() > SLOTS {
        return None;
    }
    fill_slots(&mut program, original.builtin_info_table.len());
    Some(program)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Lt,
    Le,
    Gt,
    Ge,
    /// Of one collection: its elements are asked for.
    In,
    /// Of one flag: whether a rule that fired has nothing to say.
    Head,
}

impl Operator {
    const fn name(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
            Self::In => "in",
            Self::Head => "if",
        }
    }

    const fn arguments(self) -> u16 {
        match self {
            Self::In | Self::Head => 1,
            _ => 2,
        }
    }
}

fn operator_slot(program: &mut Program, operator: Operator) -> Option<u16> {
    let known = program
        .builtin_info_table
        .iter()
        .position(|builtin| builtin.name == operator.name());
    let slot = known.unwrap_or_else(|| {
        program.builtin_info_table.push(BuiltinInfo {
            name: operator.name().to_owned(),
            num_args: operator.arguments(),
        });
        program.builtin_info_table.len() - 1
    });
    u16::try_from(slot).ok()
}

macro_rules! slots {
    ($table:ident, $originals:ident, $($slot:literal)+) => {
        $(if $slot < $originals {
            $table[$slot].0 = |span, expressions, args, _strict| {
                let original = begin($slot, args)?;
                let result = (original.resolved_builtins[$slot].0)(span, expressions, args, true);
                Ok(end($slot, &original, result)?)
            };
        })+
    };
}

fn fill_slots(program: &mut Program, originals: usize) {
    let operators: Vec<String> = program.builtin_info_table[originals..]
        .iter()
        .map(|builtin| builtin.name.clone())
        .collect();
    let table = &mut program.resolved_builtins;
    slots!(table, originals,
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
        64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95
        96 97 98 99 100 101 102 103 104 105 106 107 108 109 110 111 112 113 114 115 116 117 118 119 120 121 122
        123 124 125 126 127);
    for operator in operators {
        match operator.as_str() {
            "+" => table.push((|_, _, args, _| Ok(operate(Operator::Add, args)?), 2)),
            "-" => table.push((|_, _, args, _| Ok(operate(Operator::Sub, args)?), 2)),
            "*" => table.push((|_, _, args, _| Ok(operate(Operator::Mul, args)?), 2)),
            "in" => table.push((|_, _, args, _| Ok(collection(args)?), 1)),
            "if" => table.push((|_, _, args, _| Ok(said(args)?), 1)),
            "/" => table.push((|_, _, args, _| Ok(operate(Operator::Div, args)?), 2)),
            "%" => table.push((|_, _, args, _| Ok(operate(Operator::Mod, args)?), 2)),
            "<" => table.push((|_, _, args, _| Ok(compare(Operator::Lt, args)?), 2)),
            "<=" => table.push((|_, _, args, _| Ok(compare(Operator::Le, args)?), 2)),
            ">" => table.push((|_, _, args, _| Ok(compare(Operator::Gt, args)?), 2)),
            _ => table.push((|_, _, args, _| Ok(compare(Operator::Ge, args)?), 2)),
        }
    }
}

/// The kind of error that the virtual machine never takes for "doesn't hold"; what it means is in `Run::trouble`.
fn fatal() -> LimitError {
    LimitError::MemoryLimitExceeded { usage: 0, limit: 0 }
}

fn stop(trouble: Trouble) -> LimitError {
    RUN.with(|slot| {
        if let Some(run) = slot.borrow_mut().as_mut() {
            run.trouble.get_or_insert(trouble);
        }
    });
    fatal()
}

fn begin(slot: usize, args: &[Value]) -> Result<Arc<Program>, LimitError> {
    let original = RUN
        .with(|run| run.borrow().as_ref().map(|run| run.originals.clone()))
        .ok_or_else(fatal)?;
    let name = original
        .builtin_info_table
        .get(slot)
        .map_or("", |builtin| builtin.name.as_str());
    let examined = bounds::examined(name, args);
    bounds::before(name, args, examined).map_err(|message| stop(Trouble::Limit(message)))?;
    charge(|run| &mut run.examined, examined, MAX_EXAMINED, "examined")?;
    Ok(original)
}

/// Adds to one of the run's counters.
fn charge(
    counter: impl FnOnce(&mut Run) -> &mut usize,
    amount: usize,
    limit: usize,
    did: &str,
) -> Result<(), LimitError> {
    let total = RUN.with(|slot| {
        slot.borrow_mut().as_mut().map_or(usize::MAX, |run| {
            let counter = counter(run);
            *counter = counter.saturating_add(amount);
            *counter
        })
    });
    if total <= limit {
        return Ok(());
    }
    Err(stop(Trouble::Limit(format!(
        "builtins {did} more than {limit} bytes and elements"
    ))))
}

fn end<E: std::fmt::Display>(slot: usize, original: &Program, result: Result<Value, E>) -> Result<Value, LimitError> {
    let name = || {
        original
            .builtin_info_table
            .get(slot)
            .map_or("", |builtin| builtin.name.as_str())
    };
    let value = result.map_err(|error| stop(Trouble::Error(describe(name(), &error.to_string()))))?;
    // A product of products takes as long as its numbers have digits, within one call.
    if !bounds::is_plain_number(&value) {
        return Err(stop(Trouble::Error(describe(name(), "overflows"))));
    }
    charge(
        |run| &mut run.produced,
        bounds::shallow_size(&value),
        MAX_PRODUCED,
        "produced",
    )?;
    Ok(value)
}

/// The engine's message is a drawing of the source line, of which the last line says what happened.
fn describe(name: &str, message: &str) -> String {
    let last = message
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or(message)
        .trim();
    format!("{name}: {}", last.strip_prefix("error: ").unwrap_or(last))
}

fn operate(operator: Operator, args: &[Value]) -> Result<Value, LimitError> {
    let failed = |what: &str| stop(Trouble::Error(format!("`{}` {what}", operator.name())));
    match (args.first(), args.get(1)) {
        (Some(Value::Number(left)), Some(Value::Number(right))) => {
            let zero = matches!(args.get(1), Some(right) if *right == Value::from(0u64));
            let result = match operator {
                Operator::Add => left.add(right),
                Operator::Sub => left.sub(right),
                Operator::Mul => left.mul(right),
                Operator::Div | Operator::Mod if zero => return Err(failed("by zero")),
                Operator::Mod if !left.is_integer() || !right.is_integer() => return Err(failed("of a fraction")),
                Operator::Div => left.clone().divide(right),
                _ => left.clone().modulo(right),
            };
            let number = Value::Number(result.map_err(|_| failed("overflows"))?);
            if bounds::is_plain_number(&number) {
                Ok(number)
            } else {
                Err(failed("overflows"))
            }
        }
        (Some(Value::Set(left)), Some(Value::Set(right))) if operator == Operator::Sub => {
            Ok(Value::Set(regorus::Rc::new(left.difference(right))))
        }
        _ => Err(failed("on something that isn't a number")),
    }
}

/// Order is between two numbers or two texts. The engine says of others that they don't compare, and a rule
/// `amount > 100` would not fire for the text "999".
fn compare(operator: Operator, args: &[Value]) -> Result<Value, LimitError> {
    match (args.first(), args.get(1)) {
        (Some(left @ Value::Number(_)), Some(right @ Value::Number(_)))
        | (Some(left @ Value::String(_)), Some(right @ Value::String(_))) => Ok(Value::from(match operator {
            Operator::Lt => left < right,
            Operator::Le => left <= right,
            Operator::Gt => left > right,
            _ => left >= right,
        })),
        _ => Err(stop(Trouble::Error(format!(
            "`{}` between values that have no order",
            operator.name()
        )))),
    }
}

/// Elements are taken out of lists, sets and objects. The engine takes anything else for an empty one, and a rule that
/// looks through `paths` would not fire for a caller who sends a single text there.
fn collection(args: &[Value]) -> Result<Value, LimitError> {
    match args.first() {
        Some(value @ (Value::Array(_) | Value::Set(_) | Value::Object(_))) => Ok(value.clone()),
        _ => Err(stop(Trouble::Error(
            "`in` something that isn't a collection".to_owned(),
        ))),
    }
}

/// A rule whose condition holds says something. In Rego a head of which a part has no value is no element, and a deny
/// whose reason names what a caller left out would not fire.
fn said(args: &[Value]) -> Result<Value, LimitError> {
    match args.first() {
        Some(Value::Bool(true)) | None => Err(stop(Trouble::Error(
            "a rule fired, and a part of what it says has no value".to_owned(),
        ))),
        Some(said) => Ok(said.clone()),
    }
}
