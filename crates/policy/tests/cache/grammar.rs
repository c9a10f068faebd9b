//! Policies put together at random from Rego's grammar: what an author could write, not what one would think of.

use aip_policy::PolicySource;
use serde_json::json;

/// Levels of expressions inside expressions.
const DEPTH: usize = 3;

/// Constants, and what the input and the data hold. Few different values, so that comparisons hold now and then.
const LEAVES: &[&str] = &[
    "0",
    "1",
    "2",
    "true",
    "false",
    "null",
    "\"a\"",
    "\"x\"",
    "\"gold\"",
    "[]",
    "{}",
    "set()",
    "input.source.name",
    "input.source.labels",
    "input.source.labels.tier",
    "input.source.capabilities",
    "input.source.reputation.factors",
    "input.destination.name",
    "input.protocol.tool",
    "input.protocol.arguments",
    "input.protocol.arguments.path",
    "input.protocol.arguments.a",
    "input.request.path",
    "input.request.query.q",
    "input.request.headers[\"x-team\"]",
    "input.request.headers",
    "input.direction",
    "input.time",
    "input.none",
    "data.user.p.none",
    "data.user.p.one",
    "data.user.p.map",
];

/// The rules beside: what a helper may not name, or rules would call each other in circles.
const RULES: &[&str] = &["whole", "some_set", "chained", "defaulted", "f(whole)"];

/// Two operands.
const OPERATORS: &[&str] = &["==", "!=", "==", "in", "<", "+", "-", "|"];

/// Calls with one argument.
const CALLS: &[&str] = &[
    "count",
    "lower",
    "is_string",
    "is_array",
    "type_name",
    "object.keys",
    "sort",
    "max",
    "f",
];

/// Calls with two arguments.
const PAIRS: &[&str] = &["startswith", "array.concat", "split", "object.union", "g", "pair"];

/// A generator of choices: SplitMix64, which is enough to spread them.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % sides as u64).unwrap_or_default()
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.roll(choices.len())]
    }
}

struct Author {
    dice: Dice,
    /// Variables in scope.
    bound: Vec<String>,
    named: usize,
    /// Whether it writes a helper.
    helping: bool,
}

impl Author {
    fn variable(&mut self) -> String {
        self.named += 1;
        format!("v{}", self.named)
    }

    fn expression(&mut self, depth: usize) -> String {
        if depth == 0 || self.dice.roll(3) == 0 {
            return self.leaf();
        }
        let depth = depth - 1;
        match self.dice.roll(10) {
            0 => {
                let ours = usize::from(self.helping);
                let call = self.dice.of(&CALLS[..CALLS.len() - ours]);
                format!("{call}({})", self.expression(depth))
            }
            1 => {
                let ours = if self.helping { 2 } else { 0 };
                let call = self.dice.of(&PAIRS[..PAIRS.len() - ours]);
                format!("{call}({}, {})", self.expression(depth), self.expression(depth))
            }
            2 | 3 => {
                let operator = self.dice.of(OPERATORS);
                format!("({} {operator} {})", self.expression(depth), self.expression(depth))
            }
            4 => self.indexed(depth),
            5 => format!("[{}, {}]", self.expression(depth), self.expression(depth)),
            6 => format!("{{{}, {}}}", self.expression(depth), self.expression(depth)),
            7 => format!("{{\"a\": {}, {}: 1}}", self.expression(depth), self.expression(depth)),
            _ => self.comprehension(depth),
        }
    }

    fn leaf(&mut self) -> String {
        match self.bound.len() {
            n if n > 0 && self.dice.roll(2) == 0 => self.bound[self.dice.roll(n)].clone(),
            _ if !self.helping && self.dice.roll(6) == 0 => self.dice.of(RULES).to_owned(),
            _ => self.dice.of(LEAVES).to_owned(),
        }
    }

    fn indexed(&mut self, depth: usize) -> String {
        let of = [
            "input.protocol.arguments",
            "input.request.headers",
            "input.source.labels",
            "whole",
            "data.user.p.map",
        ];
        let from = if self.bound.is_empty() || self.dice.roll(2) == 0 {
            self.dice.of(&of).to_owned()
        } else {
            self.bound[self.dice.roll(self.bound.len())].clone()
        };
        match self.dice.roll(4) {
            0 => format!("{from}[_]"),
            1 => format!("{from}.a"),
            2 if !self.helping => format!("some_set[{}]", self.expression(depth)),
            _ => format!("{from}[{}]", self.expression(depth)),
        }
    }

    /// Something of the input or of the data.
    fn document(&mut self) -> String {
        let of = [
            "input.protocol.arguments",
            "input.request.headers",
            "input.request.path",
            "input.source.labels",
            "data.user.p.map",
        ];
        self.dice.of(&of).to_owned()
    }

    fn indexable(&mut self) -> String {
        match self.bound.len() {
            n if n > 0 && self.dice.roll(3) == 0 => self.bound[self.dice.roll(n)].clone(),
            _ => self.document(),
        }
    }

    fn comprehension(&mut self, depth: usize) -> String {
        let (outside, over) = (self.bound.len(), self.expression(depth));
        // Most begin with their loop, or they would not be admitted.
        let (key, element) = (self.variable(), self.variable());
        let first = match self.dice.roll(8) {
            0 => self.statement(depth),
            1 => format!("{element} := {over}"),
            2 => format!("{element} := {over}; some {key} in {element}"),
            _ => format!("some {key}, {element} in {over}"),
        };
        self.bound.extend(
            [key.clone(), element]
                .into_iter()
                .filter(|v| first.contains(v.as_str())),
        );
        let body = format!("{first}; {}", self.body(depth, 2));
        let made = match self.dice.roll(5) {
            0 | 1 => format!("[{} | {body}]", self.expression(depth)),
            2 | 3 => format!("{{{} | {body}}}", self.expression(depth)),
            _ => format!("{{{key}: {} | {body}}}", self.expression(depth)),
        };
        self.bound.truncate(outside);
        made
    }

    fn body(&mut self, depth: usize, longest: usize) -> String {
        let statements = 1 + self.dice.roll(longest);
        let written: Vec<String> = (0..statements).map(|_| self.statement(depth)).collect();
        written.join("; ")
    }

    fn statement(&mut self, depth: usize) -> String {
        match self.dice.roll(16) {
            0 | 12 => format!("not {}", self.expression(depth)),
            13..16 => self.looked_up(),
            1 | 2 => {
                let over = self.expression(depth);
                let element = self.variable();
                self.bound.push(element.clone());
                format!("some {element} in {over}")
            }
            3 => {
                let over = self.expression(depth);
                let (key, value) = (self.variable(), self.variable());
                self.bound.extend([key.clone(), value.clone()]);
                format!("some {key}, {value} in {over}")
            }
            4 => {
                let (over, outside) = (self.expression(depth), self.bound.len());
                let element = self.variable();
                self.bound.push(element.clone());
                let body = self.body(depth, 2);
                self.bound.truncate(outside);
                format!("every {element} in {over} {{ {body} }}")
            }
            5 => {
                let value = self.expression(depth);
                let name = self.variable();
                self.bound.push(name.clone());
                format!("{name} := {value}")
            }
            6 | 7 => self.taken_apart(),
            8 => format!("{} = {}", self.expression(depth), self.expression(depth)),
            _ => {
                let operator = self.dice.of(&["==", "!=", "<", "in", "=="]);
                format!("{} {operator} {}", self.expression(depth), self.expression(depth))
            }
        }
    }

    /// Looks for keys, some or all.
    fn looked_up(&mut self) -> String {
        match self.dice.roll(3) {
            0 => {
                let key = self.variable();
                let from = self.indexable();
                self.bound.push(key.clone());
                format!("some {key}; {from}[{key}] == {}", self.leaf())
            }
            1 => {
                let (key, value) = (self.variable(), self.variable());
                let from = self.indexable();
                self.bound.extend([key.clone(), value.clone()]);
                format!("{value} := {from}[{key}]")
            }
            _ => {
                let (inner, outer) = (self.variable(), self.variable());
                let from = self.indexable();
                self.bound.extend([inner.clone(), outer.clone()]);
                format!("{from}[{outer}][{inner}]")
            }
        }
    }

    /// Takes a value apart by its shape. The machine takes a set for a list, and only policies make sets: documents, then.
    fn taken_apart(&mut self) -> String {
        let (value, name) = (self.document(), self.variable());
        self.bound.push(name.clone());
        if self.dice.roll(2) == 0 {
            let pattern = self.dice.of(&["[V, _]", "{\"a\": V}", "[\"a\", V]"]);
            return format!("some {} in {value}", pattern.replace('V', &name));
        }
        let pattern = self.dice.of(&["[V, _]", "[V, \"a\"]", "{\"a\": V}", "[_, V]", "[[V]]"]);
        let assign = self.dice.of(&[":=", "="]);
        format!("{} {assign} {value}", pattern.replace('V', &name))
    }

    /// A body for a rule of its own: nothing is bound in it yet but its arguments.
    fn apart(&mut self, arguments: &[&str], depth: usize) -> String {
        let outside = std::mem::replace(&mut self.bound, arguments.iter().map(|a| (*a).to_owned()).collect());
        let body = self.body(depth, 2);
        self.bound = outside;
        body
    }

    fn value(&mut self, arguments: &[&str]) -> String {
        let outside = std::mem::replace(&mut self.bound, arguments.iter().map(|a| (*a).to_owned()).collect());
        let value = self.expression(1);
        self.bound = outside;
        value
    }
}

/// The policy of this seed.
pub(super) fn policy(seed: u64) -> PolicySource {
    let mut author = Author {
        dice: Dice(seed),
        bound: Vec::new(),
        named: 0,
        helping: false,
    };
    let body = author.body(DEPTH, 4);
    author.helping = true;
    let element = author.value(&["x"]);
    let helpers = [
        format!("f(x) if {{ {} }}", author.apart(&["x"], 1)),
        format!("f(\"a\") if {{ {} }}", author.apart(&[], 1)),
        format!(
            "g(x, y) := {} if {{ {} }} else := {} if {{ {} }}",
            author.value(&["x", "y"]),
            author.apart(&["x", "y"], 1),
            author.value(&["y"]),
            author.apart(&["y"], 1)
        ),
        "pair(x, y) := h([x, y])".to_owned(),
        format!("h([x, y]) := {}", author.value(&["x", "y"])),
        format!("whole := {}", author.value(&[])),
        format!(
            "some_set contains {element} if {{ some x in {}; {} }}",
            author.value(&[]),
            author.apart(&["x"], 1)
        ),
        format!(
            "chained := 1 if {{ {} }} else := \"a\" if {{ {} }}",
            author.apart(&[], 1),
            author.apart(&[], 1)
        ),
        format!(
            "default defaulted := false\n\ndefaulted if {{ {} }}",
            author.apart(&[], 1)
        ),
    ];
    let reason = "sprintf(\"%v\", [input.source.name])";
    let rego = format!(
        "package aip.policy.p\n\nrules contains {{\"rule\": \"all\", \"verdict\": \"allow\", \"reason\": \"all\"}} if true\n\n\
         rules contains {{\"rule\": \"no\", \"verdict\": \"deny\", \"reason\": {reason}}} if {{\n{}\n}}\n\n{}\n",
        body.replace("; ", "\n"),
        helpers.join("\n\n")
    );
    PolicySource {
        name: "p".into(),
        rego,
        data: json!({"none": [], "one": [1], "map": {"a": "x", "x": ["a"], "gold": 1}}),
        tests: None,
    }
}
