//! What a policy reads, against what there is to read.

use std::collections::BTreeSet;

use super::lexical;
use crate::facts::Facts;
use crate::node::{Fields, Node};
use crate::set::Compiled;
use crate::set::program::{Origin, Place};
use crate::source::Diagnostic;

/// Facts that the input has and that this version never establishes between agents: a sidecar denies each request of a
/// policy that reads one of them and doesn't call it optional.
pub const NEVER_ESTABLISHED: &[&str] = &["content.findings", "delegation", "budget"];

/// Letters of a name that are compared: the longest of ours has half of it.
const MAX_COMPARED: usize = 32;

type Read<'a> = (&'a [String], Place);

/// The constant paths that the policy's own rules read.
fn reads(compiled: &Compiled) -> impl Iterator<Item = Read<'_>> {
    let own = compiled
        .analysis
        .rules
        .iter()
        .filter(|rule| matches!(rule.origin, Origin::Policy(_)));
    own.flat_map(|rule| rule.read_at.iter().map(|(path, place)| (path.as_slice(), *place)))
}

fn diagnostic(file: &str, place: Place, reason: &str, message: String) -> Diagnostic {
    let diagnostic = Diagnostic::new(file, reason, message);
    match place {
        Some((line, column)) => diagnostic.at(line, column),
        None => diagnostic,
    }
}

/// Reads of what no input has: conditions that can never hold, or whose negation always does.
pub(super) fn unknown(compiled: &Compiled, file: &str) -> Vec<Diagnostic> {
    let facts = Facts::default();
    reads(compiled)
        .filter_map(|(path, place)| {
            let message = fault(&facts, path)?;
            Some(diagnostic(file, place, "unknown_fact", message))
        })
        .collect()
}

/// Reads of facts that are never established: those that the policy can't do without, and those that it calls optional.
pub(super) fn never_established(compiled: &Compiled, file: &str) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
    let optional: BTreeSet<&str> = (compiled.set.members.iter())
        .flat_map(|member| member.optional.iter().map(String::as_str))
        .collect();
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    for fact in NEVER_ESTABLISHED.iter().filter(|fact| compiled.set.reads().needs(fact)) {
        let parts: Vec<&str> = fact.split('.').collect();
        let touching = reads(compiled).find(|(path, _)| parts.iter().zip(*path).all(|(part, name)| part == name));
        let (path, place) = touching.unwrap_or((&[], None));
        if optional.contains(fact) {
            let message =
                format!("this version never establishes `input.{fact}`: it is always as if nothing were known");
            warnings.push(diagnostic(file, place, "never_established", message));
            continue;
        }
        let consequence = "and a policy that reads it denies every request that it takes part in";
        let message = if path.len() < parts.len() {
            format!(
                "all of `{}` is read here, and with it `input.{fact}`, which this version never establishes, {consequence}: \
                 read only the parts that are needed, or say `# aip:optional {fact}`",
                written(path)
            )
        } else {
            format!(
                "this version never establishes `input.{fact}`, {consequence}: leave it out, or say \
                 `# aip:optional {fact}`"
            )
        };
        faults.push(diagnostic(file, place, "never_established", message));
    }
    (faults, warnings)
}

/// The facts without which the policy denies: those that can fail to be established, that it reads and doesn't call
/// optional.
pub(super) fn denies_without(compiled: &Compiled) -> Vec<String> {
    let needed = |fact: &&&str| {
        (compiled.set.members.iter())
            .any(|member| member.reads.touches(fact) && !member.optional.iter().any(|optional| optional == **fact))
    };
    lexical::OPTIONAL_FACTS
        .iter()
        .filter(needed)
        .map(|fact| format!("input.{fact}"))
        .collect()
}

fn written<S: AsRef<str>>(path: &[S]) -> String {
    path.iter().fold("input".to_owned(), |mut text, name| {
        let name = name.as_ref();
        if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            text.push('.');
            text.push_str(name);
        } else {
            text.push_str(&format!("[{name:?}]"));
        }
        text
    })
}

/// What is wrong with a path, if no input has it.
fn fault(facts: &Facts, path: &[String]) -> Option<String> {
    if let [first, second, name, ..] = path
        && (first.as_str(), second.as_str()) == ("request", "headers")
        && name.bytes().any(|byte| byte.is_ascii_uppercase())
    {
        let lower = written(&["request", "headers", &name.to_ascii_lowercase()]);
        return Some(format!(
            "`{}` is never there: names of headers are in lower case; did you mean `{lower}`?",
            written(path)
        ));
    }
    let at = first_unknown(facts, path)?;
    let what = format!(
        "`{}` is no part of the input: a rule that needs it never fires, and `not` of it always holds",
        written(path)
    );
    let all = known();
    Some(match nearest(&all, path, at) {
        Some(near) => {
            // The rest is kept where it makes sense there.
            let mut whole = near.clone();
            whole.extend(path[at + 1..].iter().cloned());
            let meant = if first_unknown(facts, &whole).is_none() {
                whole
            } else {
                near
            };
            format!("{what}; did you mean `{}`?", written(&meant))
        }
        None => {
            let parts: Vec<&str> = (all.iter())
                .filter(|known| known.len() == at + 1 && known[..at] == path[..at])
                .filter_map(|known| known.last().map(String::as_str))
                .collect();
            match parts.as_slice() {
                [] => format!("{what}; `{}` has no parts", written(&path[..at])),
                parts => format!("{what}; `{}` has {}", written(&path[..at]), parts.join(", ")),
            }
        }
    })
}

/// The index of the first name in the path that leads nowhere. Below maps with keys of their own, every name may lead
/// somewhere.
fn first_unknown(facts: &Facts, path: &[String]) -> Option<usize> {
    let mut node = Node::Object(facts);
    for (at, name) in path.iter().enumerate() {
        node = match node.settled() {
            Node::Object(object) => match object.names().iter().position(|known| known == name) {
                Some(index) => object.field(index),
                None => return Some(at),
            },
            Node::Json(_) | Node::JsonObject(_) | Node::Map(_) | Node::Scores(_) | Node::Multi(_) | Node::Table(_) => {
                return None;
            }
            _ => return Some(at),
        };
    }
    None
}

/// All paths with fixed names.
fn known() -> Vec<Vec<String>> {
    fn visit(object: &dyn Fields, prefix: &[String], found: &mut Vec<Vec<String>>) {
        for (index, name) in object.names().iter().enumerate() {
            let mut path = prefix.to_vec();
            path.push((*name).to_owned());
            found.push(path.clone());
            if let Node::Object(below) = object.field(index).settled() {
                visit(below, &path, found);
            }
        }
    }
    let mut found = Vec::new();
    visit(&Facts::default(), &[], &mut found);
    found
}

/// The path that is most like the one up to `at`: a name like it in the same place, else in another.
fn nearest(known: &[Vec<String>], path: &[String], at: usize) -> Option<Vec<String>> {
    let name = &path[at];
    let most = 1 + name.chars().count().min(MAX_COMPARED) / 4;
    let like = |candidate: &&Vec<String>| {
        let last = candidate.last()?;
        let distance = edits(last, name);
        let elsewhere = candidate.len() != at + 1 || candidate[..at] != path[..at];
        // In another place only the very name counts: nobody means `trace.id` by `input.is`.
        let fits = if elsewhere {
            distance == 0
        } else {
            distance <= most && distance < name.chars().count()
        };
        fits.then(|| (elsewhere, distance, edits(&candidate.join("."), &path[..=at].join("."))))
    };
    let ranked = known
        .iter()
        .filter_map(|candidate| Some((like(&candidate)?, candidate)));
    ranked
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, candidate)| candidate.clone())
}

/// Letters to insert, remove or replace to get from one word to the other.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(MAX_COMPARED).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, x) in a.chars().take(MAX_COMPARED).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &str) -> Option<String> {
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        fault(&Facts::default(), &path)
    }

    #[test]
    fn what_is_meant_is_guessed() {
        for (wrong, meant) in [
            ("protocol.tol", "`input.protocol.tool`?"),
            ("requst.method", "`input.request.method`?"),
            ("requst.nothing", "`input.request`?"),
            ("method", "`input.request.method`?"),
            ("tool", "`input.protocol.tool`?"),
            ("source.attestation.staus", "`input.source.attestation.status`?"),
            ("request.headers.X-Team", "`input.request.headers[\"x-team\"]`?"),
            ("trace.xyzzy", "`input.trace` has id, hops"),
            ("source.name.first", "`input.source.name` has no parts"),
            ("request.path.first", "`input.request.path` has no parts"),
        ] {
            let message = said(wrong).unwrap_or_default();
            assert!(message.ends_with(meant), "{wrong}: {message}");
        }
    }

    #[test]
    fn maps_with_keys_of_their_own_are_open() {
        for open in [
            "request.headers.x-team",
            "request.query.page",
            "source.labels.team",
            "destination.manifest.protocols",
            "protocol.arguments.path.deep.er",
            "budget.tokens.remaining",
            "source.reputation.factors.honesty",
        ] {
            assert_eq!(said(open), None, "{open}");
        }
    }

    #[test]
    fn all_that_is_known_is_known() {
        assert!(
            known()
                .iter()
                .all(|path| first_unknown(&Facts::default(), path).is_none())
        );
        for fact in NEVER_ESTABLISHED {
            assert!(known().iter().any(|path| path.join(".") == *fact), "{fact}");
            assert!(lexical::OPTIONAL_FACTS.contains(fact), "{fact}");
        }
    }
}
