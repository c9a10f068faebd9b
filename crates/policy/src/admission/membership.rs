//! `key, value in collection` outside of `some` and `every`.
//!
//! The compiler drops the key and asks for the value alone: `input.source.name, "admin" in data.mesh.roles` would hold for
//! everybody as long as anybody is an admin. The program that runs no longer shows that there was a key, so it is looked
//! for in the text.

use super::lexer::{Kind, Token};
use super::lexical::ends_operand;
use crate::source::Diagnostic;

/// What is known about the statement, or the item in brackets, that is being read.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    /// A comma that no `some` or `every` explains.
    comma: bool,
    /// Behind `some` or `every`, before their `in`.
    declares: bool,
}

/// Refuses each `in` that could have a key. An element list with an `in` behind its first comma could be one as well: it
/// takes parentheses.
pub(super) fn check(file: &str, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    let mut open = vec![Reading::default()];
    for (index, token) in tokens.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| &tokens[before]);
        let after_operand = before.is_some_and(ends_operand);
        let field = before.is_some_and(|before| before.text == ".");
        let nested = open.len() > 1;
        let Some(reading) = open.last_mut() else { return Ok(()) };
        match (token.kind, token.text) {
            _ if field => {}
            (Kind::Symbol, "(" | "[" | "{") => {
                if reading.declares && after_operand {
                    // Another statement: what is declared is not indexed, and not called.
                    *reading = Reading::default();
                }
                open.push(Reading::default());
            }
            (Kind::Symbol, ")" | "]" | "}") if nested => drop(open.pop()),
            (Kind::Symbol, ";") => *reading = Reading::default(),
            (Kind::Symbol, ",") => reading.comma = !reading.declares,
            (Kind::Symbol, _) if reading.declares => *reading = Reading::default(),
            (Kind::Name, "some" | "every") => {
                *reading = Reading {
                    comma: false,
                    declares: true,
                };
            }
            (Kind::Name, "in") => {
                if reading.comma {
                    let message = "`key, value in …` is for `some` and `every`; to look for a pair write `…[key] == value`, and \
                                   in a list write `(value in …)`";
                    return Err(Diagnostic::new(file, "key_membership", message).at(token.line, token.column));
                }
                *reading = Reading::default();
            }
            // Two operands without an operator between them, or a word that begins a statement.
            (Kind::Name | Kind::Text | Kind::Number, _) if after_operand => *reading = Reading::default(),
            _ => {}
        }
    }
    Ok(())
}
