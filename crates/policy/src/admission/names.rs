//! Which documents and rules a module names, as its text says: with a line for every mistake, and also for rules that
//! the compiled program leaves out because only tests use them.

use std::collections::{BTreeMap, BTreeSet};

use super::lexer::{Kind, Token};
use super::lexical::{Module, ends_operand, is_keyword};
use crate::limits::MAX_CALL_DEPTH;
use crate::source::Diagnostic;

/// Checks that `data` is followed by what the module may read, and that no rule can call itself.
pub(crate) fn check(file: &str, package: &str, module: Module, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    check_data(file, package, module, tokens)?;
    check_recursion(file, tokens)
}

fn is_field(tokens: &[Token<'_>], index: usize) -> bool {
    index > 0 && tokens[index - 1].text == "."
}

fn check_data(file: &str, package: &str, module: Module, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    for (index, token) in tokens.iter().enumerate() {
        if token.kind != Kind::Name || token.text != "data" || is_field(tokens, index) {
            continue;
        }
        let next: Vec<&str> = tokens[index + 1..].iter().take(6).map(|token| token.text).collect();
        let tests = module == Module::Tests;
        let permitted = match next.as_slice() {
            [".", "mesh", ..] | [".", "aip", ".", "lib", ".", _] => true,
            [".", "user", ".", name, ..] => *name == package,
            [".", "aip", ".", "policy", ".", name] => *name == package || (tests && *name == format!("{package}_test")),
            // `with data.mesh as …` is the first case; `with data as …` would replace the policies too.
            _ => false,
        };
        // A bare library or policy package is as good as all of its rules; the compiler refuses that by itself.
        if !permitted {
            let message = format!(
                "of data, `{package}` may read data.mesh, data.user.{package} and data.aip.lib.<name>, by constant names"
            );
            return Err(Diagnostic::new(file, "data_reference", message).at(token.line, token.column));
        }
    }
    Ok(())
}

/// Where the rules of a module begin: at the first token of each statement outside of brackets.
pub(crate) fn rule_starts(tokens: &[Token<'_>]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" if token.kind == Kind::Symbol => depth += 1,
            ")" | "]" | "}" if token.kind == Kind::Symbol => depth = depth.saturating_sub(1),
            _ => {}
        }
        let begins = token.kind == Kind::Name
            && depth == 0
            && (index == 0 || (ends_operand(&tokens[index - 1]) && tokens[index - 1].line < token.line));
        let continues = matches!(token.text, "if" | "else" | "with" | "as" | "in" | "contains");
        if begins && !continues {
            starts.push(index);
        }
    }
    starts
}

/// The name that the statement at `start` defines, if it defines a rule.
pub(crate) fn defined<'a>(tokens: &[Token<'a>], start: usize) -> Option<&'a str> {
    let first = tokens.get(start)?;
    match first.text {
        "default" => tokens.get(start + 1).map(|token| token.text),
        "package" | "import" => None,
        name if is_keyword(name) => None,
        name => Some(name),
    }
}

/// Any name in a rule that is also the name of a rule counts as a call. A local variable of that name counts too: that
/// refuses too much rather than too little, and renaming the variable settles it.
fn check_recursion(file: &str, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    let starts = rule_starts(tokens);
    let names: BTreeSet<&str> = starts.iter().filter_map(|start| defined(tokens, *start)).collect();
    let mut calls: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (at, start) in starts.iter().enumerate() {
        let Some(name) = defined(tokens, *start) else { continue };
        let end = starts.get(at + 1).copied().unwrap_or(tokens.len());
        let skip = if tokens[*start].text == "default" { 2 } else { 1 };
        let called = (start + skip..end).filter_map(|index| {
            let token = &tokens[index];
            let own = index >= 6
                && is_field(tokens, index)
                && tokens[index - 6].text == "data"
                && tokens[index - 4].text == "policy";
            let bare = token.kind == Kind::Name && !is_field(tokens, index) && !is_key(tokens, index);
            ((bare || own) && names.contains(token.text)).then_some(token.text)
        });
        calls.entry(name).or_default().extend(called);
    }
    let (name, reason, message) = match fault(&calls) {
        None => return Ok(()),
        Some(Fault::Cycle(path)) => {
            let way = path.join(" → ");
            (
                path.first().copied(),
                "recursion",
                format!("rules must not call themselves: {way}"),
            )
        }
        Some(Fault::Deep(rule)) => (
            Some(rule),
            "call_depth",
            format!("rules call each other more than {MAX_CALL_DEPTH} levels deep"),
        ),
    };
    let place = starts
        .iter()
        .find(|start| defined(tokens, **start) == name)
        .map(|start| &tokens[*start]);
    let diagnostic = Diagnostic::new(file, reason, message);
    Err(match place {
        Some(token) => diagnostic.at(token.line, token.column),
        None => diagnostic,
    })
}

/// A bare word before a colon is not a key in Rego, but a variable; a text is no name at all. So nothing is skipped but
/// the first word of `name := …` inside a body, which declares a variable.
fn is_key(tokens: &[Token<'_>], index: usize) -> bool {
    matches!((tokens.get(index + 1), tokens.get(index + 2)), (Some(colon), Some(equals))
        if colon.text == ":" && equals.text == "=" && colon.line == equals.line)
}

enum Fault<'a> {
    /// A way from a rule back to itself.
    Cycle(Vec<&'a str>),
    /// A rule below which the calls go too deep.
    Deep(&'a str),
}

/// What is wrong with the calls. Visits every call once, and without recursion of its own: a module may have
/// thousands of rules in a row.
fn fault<'a>(calls: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Option<Fault<'a>> {
    let callees = |name: &str| calls.get(name).into_iter().flatten().copied();
    let mut done = BTreeSet::new();
    for root in calls.keys().copied() {
        let mut path = vec![(root, callees(root))];
        while let Some((name, rest)) = path.last_mut() {
            let Some(callee) = rest.next() else {
                done.insert(*name);
                path.pop();
                continue;
            };
            if let Some(start) = path.iter().position(|(name, _)| *name == callee) {
                return Some(Fault::Cycle(
                    path[start..].iter().map(|(name, _)| *name).chain([callee]).collect(),
                ));
            }
            if path.len() > MAX_CALL_DEPTH {
                return Some(Fault::Deep(root));
            }
            if !done.contains(callee) {
                path.push((callee, callees(callee)));
            }
        }
    }
    None
}
