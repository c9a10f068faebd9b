//! The gates before the parser: cheap, and safe on any bytes.

use super::lexer::{Kind, Token, tokens};
use super::{membership, names};
use crate::facts::may_be_named;
use crate::limits::{MAX_BRACKET_DEPTH, MAX_EXPRESSION_CHAIN, MAX_MODULE_BYTES, MAX_PARSER_WORK};
use crate::source::Diagnostic;

/// Facts that may be called optional: those that can fail to be established.
pub const OPTIONAL_FACTS: &[&str] = &[
    "source.attestation",
    "source.reputation",
    "source.manifest",
    "destination.attestation",
    "destination.reputation",
    "destination.manifest",
    "request.size",
    "protocol.method",
    "protocol.tool",
    "protocol.arguments",
    "protocol.resource",
    "protocol.prompt",
    "protocol.skill",
    "protocol.task",
    "protocol.context",
    "protocol.session",
    "content.findings",
    "delegation",
    "budget",
];

/// What a policy says about itself in comments.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    /// `# aip:optional <fact> …`: the policy may be run without these.
    pub(crate) optional: Vec<String>,
    /// `# aip:keep <path> …`: sensitive facts, or parts of them, that the audit keeps.
    pub(crate) keep: Vec<String>,
    /// `# aip:volatile`: the policy may call builtins whose result changes by itself.
    pub(crate) volatile: bool,
}

/// Which module of a policy it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Module {
    Policy,
    Tests,
}

/// Checks a policy module before anything parses it.
pub(crate) fn check(name: &str, rego: &str) -> Result<(), Diagnostic> {
    check_module(name, rego, Module::Policy)
}

pub(crate) fn check_module(name: &str, rego: &str, module: Module) -> Result<(), Diagnostic> {
    let file = match module {
        Module::Policy => format!("{name}.rego"),
        Module::Tests => format!("{name}_test.rego"),
    };
    if !is_name(name) {
        return Err(Diagnostic::new(
            file,
            "name",
            format!("`{name}` is no name for a policy: 1 to 63 of a-z, 0-9 and `-`, the first a letter"),
        ));
    }
    if rego.len() > MAX_MODULE_BYTES {
        let message = format!("{} bytes; a module has at most {MAX_MODULE_BYTES}", rego.len());
        return Err(Diagnostic::new(file, "size", message));
    }
    let tokens =
        tokens(rego).map_err(|fault| Diagnostic::new(&*file, "lexical", fault.message).at(fault.line, fault.column))?;
    check_depth(&file, &tokens)?;
    check_hints(&file, &tokens)?;
    let tokens: Vec<Token<'_>> = tokens.into_iter().filter(|token| token.kind != Kind::Comment).collect();
    check_chains(&file, &tokens)?;
    check_defaults(&file, &tokens)?;
    check_package(&file, name, module, &tokens)?;
    check_imports(&file, name, module, &tokens)?;
    if module == Module::Policy {
        check_with(&file, &tokens)?;
        check_lines(&file, &tokens)?;
        membership::check(&file, &tokens)?;
    }
    names::check(&file, &name.replace('-', "_"), module, &tokens)
}

fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
        && !name.ends_with('-')
}

fn check_depth(file: &str, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    let (mut depth, mut work) = (0usize, 0u64);
    for token in tokens.iter().filter(|token| token.kind != Kind::Comment) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        // The depth is at most MAX_BRACKET_DEPTH + 1 here, so the shift can't overflow.
        work += 1 << depth;
        let fault = if depth > MAX_BRACKET_DEPTH {
            (
                "bracket_depth",
                format!("brackets nest more than {MAX_BRACKET_DEPTH} levels deep"),
            )
        } else if work > MAX_PARSER_WORK {
            (
                "parser_work",
                "too much text is nested in brackets: move parts of it into rules of their own".to_owned(),
            )
        } else {
            continue;
        };
        return Err(Diagnostic::new(file, fault.0, fault.1).at(token.line, token.column));
    }
    Ok(())
}

/// Whether a token can be the last of an operand.
pub(crate) fn ends_operand(token: &Token<'_>) -> bool {
    match token.kind {
        Kind::Name => !is_keyword(token.text),
        Kind::Text | Kind::Number => true,
        Kind::Symbol => matches!(token.text, ")" | "]" | "}"),
        Kind::Comment => false,
    }
}

/// Words after which, or before which, an expression goes on.
pub(crate) fn is_keyword(word: &str) -> bool {
    matches!(
        word,
        "as" | "contains" | "default" | "else" | "every" | "if" | "import" | "in" | "not" | "package" | "some" | "with"
    )
}

/// Each operator, dot, call and index of an expression is a level of recursion in the parser and in the compiler.
fn check_chains(file: &str, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    // One count per open bracket: what is in brackets doesn't end the expression around them.
    let mut counts = vec![0usize];
    for (index, token) in tokens.iter().enumerate() {
        let after_operand = index.checked_sub(1).is_some_and(|before| ends_operand(&tokens[before]));
        let inside = counts.len() > 1;
        let Some(count) = counts.last_mut() else { return Ok(()) };
        match (token.kind, token.text) {
            (Kind::Symbol, "," | ";") => *count = 0,
            (Kind::Symbol, ")" | "]" | "}") if inside => drop(counts.pop()),
            (Kind::Symbol, "(" | "[" | "{") => {
                *count += 1;
                counts.push(0);
            }
            (Kind::Symbol, _) | (Kind::Name, "in" | "else") => *count += 1,
            // Two operands without an operator between them: another statement.
            _ if after_operand => *count = 0,
            _ => {}
        }
        if counts.iter().any(|count| *count > MAX_EXPRESSION_CHAIN) {
            let message = format!("more than {MAX_EXPRESSION_CHAIN} operators in one expression");
            return Err(Diagnostic::new(file, "expression_chain", message).at(token.line, token.column));
        }
    }
    Ok(())
}

/// Defaults are computed while the policy is compiled, where no limit holds: they must be constants.
fn check_defaults(file: &str, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    for (at, token) in tokens.iter().enumerate() {
        let field = at > 0 && tokens[at - 1].text == ".";
        if token.kind != Kind::Name || token.text != "default" || field {
            continue;
        }
        let assigned = tokens[at..]
            .iter()
            .position(|token| token.text == "=")
            .map(|offset| at + offset + 1);
        let mut depth = 0usize;
        for index in assigned.unwrap_or(tokens.len())..tokens.len() {
            let (before, here) = (&tokens[index - 1], &tokens[index]);
            let constant = match here.kind {
                Kind::Name => matches!(here.text, "true" | "false" | "null") || (depth == 0 && ends_operand(before)),
                Kind::Symbol => matches!(here.text, "[" | "]" | "{" | "}" | "," | ":" | "-"),
                _ => true,
            };
            if depth == 0 && ends_operand(before) && here.kind == Kind::Name {
                break;
            }
            if !constant {
                return Err(
                    Diagnostic::new(file, "default", "the value of a default is a constant").at(here.line, here.column)
                );
            }
            match here.text {
                "[" | "{" => depth += 1,
                "]" | "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The words of each comment of ours.
fn hint_words<'a>(tokens: &'a [Token<'a>]) -> impl Iterator<Item = (&'a Token<'a>, Vec<&'a str>)> {
    tokens
        .iter()
        .filter(|token| token.kind == Kind::Comment)
        .filter_map(|token| {
            let words = token.text.trim_start_matches('#').trim().strip_prefix("aip:")?;
            Some((token, words.split_whitespace().collect()))
        })
}

fn check_hints(file: &str, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    for (token, words) in hint_words(tokens) {
        let fault = match words.split_first() {
            Some((&"volatile", [])) => None,
            Some((&"optional", facts)) if !facts.is_empty() => facts
                .iter()
                .find(|fact| !OPTIONAL_FACTS.contains(*fact))
                .map(|fact| format!("`{fact}` is not a fact that can be optional")),
            Some((&"keep", paths)) if !paths.is_empty() => paths
                .iter()
                .find(|path| !may_be_named(path))
                .map(|path| format!("`{path}` is none of the facts that are kept only where a policy says so")),
            _ => Some("`# aip:` is followed by `optional <fact> …`, `keep <path> …` or `volatile`".to_owned()),
        };
        if let Some(message) = fault {
            return Err(Diagnostic::new(file, "hint", message).at(token.line, token.column));
        }
    }
    Ok(())
}

/// The hints of a module that passed the gates.
pub(crate) fn hints(rego: &str) -> Hints {
    let mut hints = Hints::default();
    let Ok(tokens) = tokens(rego) else { return hints };
    for (_, words) in hint_words(&tokens) {
        match words.split_first() {
            Some((&"optional", facts)) => hints.optional.extend(facts.iter().map(|fact| (*fact).to_owned())),
            Some((&"keep", paths)) => hints.keep.extend(paths.iter().map(|path| (*path).to_owned())),
            Some((&"volatile", _)) => hints.volatile = true,
            _ => {}
        }
    }
    hints
}

fn check_package(file: &str, name: &str, module: Module, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    let package = match module {
        Module::Policy => name.replace('-', "_"),
        Module::Tests => format!("{}_test", name.replace('-', "_")),
    };
    let want = ["package", "aip", ".", "policy", ".", &package];
    let same = tokens.len() >= want.len() && tokens.iter().zip(want).all(|(token, want)| token.text == want);
    // What follows begins a line, so that `package aip.policy.a.b` isn't taken for ours.
    let ends = match (tokens.get(want.len() - 1), tokens.get(want.len())) {
        (Some(last), Some(next)) => next.line > last.line,
        _ => true,
    };
    let again = tokens
        .iter()
        .skip(1)
        .any(|token| token.kind == Kind::Name && token.text == "package");
    if same && ends && !again {
        return Ok(());
    }
    let message = format!("the module begins with `package aip.policy.{package}`, on a line of its own");
    let place = tokens.first().map_or((1, 1), |token| (token.line, token.column));
    Err(Diagnostic::new(file, "package", message).at(place.0, place.1))
}

fn check_imports(file: &str, name: &str, module: Module, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    let own = name.replace('-', "_");
    for (index, token) in tokens.iter().enumerate() {
        let field = index > 0 && tokens[index - 1].text == ".";
        if token.kind != Kind::Name || token.text != "import" || field {
            continue;
        }
        let rest: Vec<&str> = tokens[index + 1..]
            .iter()
            .take_while(|next| next.line == token.line)
            .map(|next| next.text)
            .collect();
        let (path, alias) = match rest.iter().position(|word| *word == "as") {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (&rest[..], None),
        };
        let permitted = match path {
            ["rego", ".", "v1"] => alias.is_none(),
            ["data", ".", "aip", ".", "lib", ".", _] => true,
            ["data", ".", "aip", ".", "policy", ".", package] => module == Module::Tests && *package == own,
            _ => false,
        };
        // An alias must not take the name of a document: what it stands for would look like that document.
        let renames = match alias {
            None => true,
            Some([alias]) => !["input", "data", "_"].contains(alias),
            Some(_) => false,
        };
        if !permitted || !renames {
            let message = "a policy imports `data.aip.lib.<name>` only, on one line";
            return Err(Diagnostic::new(file, "import", message).at(token.line, token.column));
        }
    }
    Ok(())
}

/// A line that begins with a bracket and stands behind a whole operand reads like a statement of its own, and the engine
/// takes it for the call, or the index, of what stands above: `helper` and `(x == 1)` would be `helper(x == 1)`.
fn check_lines(file: &str, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    for pair in tokens.windows(2) {
        let (above, below) = (&pair[0], &pair[1]);
        let opens = below.kind == Kind::Symbol && matches!(below.text, "(" | "[");
        if opens && above.line < below.line && ends_operand(above) {
            let message = format!(
                "`{}` continues the line before: begin the line otherwise, or end that one with `;`",
                below.text
            );
            return Err(Diagnostic::new(file, "line_continued", message).at(below.line, below.column));
        }
    }
    Ok(())
}

fn check_with(file: &str, tokens: &[Token<'_>]) -> Result<(), Diagnostic> {
    let found = tokens.iter().enumerate().find(|(index, token)| {
        token.kind == Kind::Name && token.text == "with" && (*index == 0 || tokens[index - 1].text != ".")
    });
    match found {
        Some((_, token)) => {
            let message = "`with` is for tests: a policy decides on the facts as they are";
            Err(Diagnostic::new(file, "with", message).at(token.line, token.column))
        }
        None => Ok(()),
    }
}
