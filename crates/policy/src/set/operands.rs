//! Which registers an instruction reads.

use regorus::rvm::instructions::LiteralOrRegister;
use regorus::rvm::{Instruction, Program};

/// The registers that the instruction reads; `None` for instructions that no policy needs, or that are malformed.
pub(crate) fn operands(program: &Program, instruction: &Instruction) -> Option<Vec<u8>> {
    use Instruction as I;
    if let Some((left, right)) = operator(instruction) {
        return Some(vec![left, right]);
    }
    Some(match *instruction {
        I::Load { .. }
        | I::LoadTrue { .. }
        | I::LoadFalse { .. }
        | I::LoadNull { .. }
        | I::LoadBool { .. }
        | I::LoadData { .. }
        | I::LoadInput { .. }
        | I::ArrayNew { .. }
        | I::SetNew { .. }
        | I::LoopNext { .. }
        | I::CallRule { .. }
        | I::RuleInit { .. }
        | I::DestructuringSuccess {}
        | I::RuleReturn {}
        | I::Halt {}
        | I::ComprehensionEnd {} => Vec::new(),
        I::Move { src, .. } => vec![src],
        I::Not { operand, .. } => vec![operand],
        I::Return { value } => vec![value],
        I::ObjectSet { obj, key, value } => vec![obj, key, value],
        I::Index { container, key, .. } => vec![container, key],
        I::IndexLiteral { container, .. } => vec![container],
        I::ArrayPush { arr, value } => vec![arr, value],
        I::SetAdd { set, value } => vec![set, value],
        I::Contains { collection, value, .. } => vec![collection, value],
        I::Count { collection, .. } => vec![collection],
        I::Guard { register, .. } => vec![register],
        I::ComprehensionYield { value_reg, key_reg } => std::iter::once(value_reg).chain(key_reg).collect(),
        // Refused by its own name where it is found.
        I::VirtualDataDocumentLookup { .. } => Vec::new(),
        _ => return listed(program, instruction),
    })
}

/// The two sides of an operator.
fn operator(instruction: &Instruction) -> Option<(u8, u8)> {
    use Instruction as I;
    match *instruction {
        I::Add { left, right, .. }
        | I::Sub { left, right, .. }
        | I::Mul { left, right, .. }
        | I::Div { left, right, .. }
        | I::Mod { left, right, .. }
        | I::Eq { left, right, .. }
        | I::Ne { left, right, .. }
        | I::Lt { left, right, .. }
        | I::Le { left, right, .. }
        | I::Gt { left, right, .. }
        | I::Ge { left, right, .. }
        | I::And { left, right, .. }
        | I::Or { left, right, .. }
        | I::AssertEq { left, right } => Some((left, right)),
        _ => None,
    }
}

/// Of instructions whose operands stand in a list of the program.
fn listed(program: &Program, instruction: &Instruction) -> Option<Vec<u8>> {
    use Instruction as I;
    let data = &program.instruction_data;
    Some(match *instruction {
        I::BuiltinCall { params_index } => data.get_builtin_call_params(params_index)?.arg_registers().to_vec(),
        I::FunctionCall { params_index } => data.get_function_call_params(params_index)?.arg_registers().to_vec(),
        I::ObjectCreate { params_index } => {
            let params = data.get_object_create_params(params_index)?;
            let literal = params.literal_key_field_pairs().iter().map(|(_, value)| *value);
            let computed = params.field_pairs().iter().flat_map(|(key, value)| [*key, *value]);
            literal.chain(computed).collect()
        }
        I::ChainedIndex { params_index } => {
            let params = data.get_chained_index_params(params_index)?;
            let keys = params.path_components.iter().filter_map(|part| match part {
                LiteralOrRegister::Register(key) => Some(*key),
                LiteralOrRegister::Literal(_) => None,
            });
            std::iter::once(params.root).chain(keys).collect()
        }
        I::ArrayCreate { params_index } => data.get_array_create_params(params_index)?.element_registers().to_vec(),
        I::SetCreate { params_index } => data.get_set_create_params(params_index)?.element_registers().to_vec(),
        I::LoopStart { params_index } => vec![data.get_loop_params(params_index)?.collection],
        I::ComprehensionBegin { params_index } => {
            vec![data.get_comprehension_begin_params(params_index)?.collection_reg]
        }
        _ => return None,
    })
}
