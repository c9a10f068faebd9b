//! The facts of a decision that are kept for a replay: what the policies could read, and of what may hold secrets only
//! what a policy says to keep (`# aip:keep <path> …`).

use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::Facts;
use crate::input::{self, View};
use crate::node::{Node, multi};
use crate::reads::Reads;
use crate::set::PolicySet;

/// Facts that are what a caller wrote, and may be secrets: not kept unless a policy says so, or sealed.
pub const SENSITIVE_FACTS: &[&str] = &[
    "protocol.arguments",
    "protocol.resource",
    "protocol.session",
    "protocol.task",
    "protocol.context",
    "request.headers",
    "request.query",
    "content",
];

/// What all of them begin with.
const HOLDING: &[&str] = &["protocol", "request", "content"];

/// What of a request's facts is kept, and what isn't.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// A part of the input document, from which [`Facts::from_json`] makes facts that decide alike as far as nothing was
    /// dropped.
    pub kept: Arc<Json>,
    /// Sensitive facts, as the input document has them; null where there are none.
    pub sensitive: Json,
    /// Where `sensitive` begins: dotted paths, sorted. A name that the caller chose, and no policy, is `*`.
    pub dropped: Vec<String>,
}

/// Whether a path of `# aip:keep` is one of a sensitive fact, or of a part of one.
pub(crate) fn may_be_named(path: &str) -> bool {
    let segments: Vec<&str> = path.split('.').collect();
    SENSITIVE_FACTS.iter().any(|fact| is_at_or_below(fact, &segments)) && !segments.contains(&"")
}

impl PolicySet {
    /// The facts that its policies can read, divided into what may be kept and what may not.
    pub fn kept(&self, facts: &Facts) -> Kept {
        self.kept_of(facts, &input::unestablished(facts, &self.reads.reads))
    }

    /// The same, where it is known what is not established.
    pub(crate) fn kept_of(&self, facts: &Facts, unestablished: &[(String, &'static str)]) -> Kept {
        let view = View::new(facts, unestablished);
        let mut walk = Walk {
            keep: &self.keep,
            path: Vec::new(),
            theirs: 0,
            dropped: Vec::new(),
        };
        let (kept, sensitive) = walk.divide(view.root(), &self.reads.reads);
        let mut kept = kept.unwrap_or_else(|| Json::Object(Map::new()));
        if !unestablished.is_empty()
            && let Json::Object(document) = &mut kept
        {
            let paths = unestablished.iter().map(|(path, _)| path.clone()).collect();
            document.insert("unestablished".to_owned(), paths);
        }
        walk.dropped.sort();
        walk.dropped.dedup();
        Kept {
            kept: Arc::new(kept),
            sensitive: sensitive.unwrap_or_default(),
            dropped: walk.dropped,
        }
    }
}

struct Walk<'a> {
    keep: &'a [String],
    path: Vec<&'a str>,
    /// Segments at the end of the path that the caller named.
    theirs: usize,
    dropped: Vec<String>,
}

type Divided = (Option<Json>, Option<Json>);

impl<'a> Walk<'a> {
    /// What is at a node, as far as it is read: what may be kept of it, and what may not.
    fn divide(&mut self, node: Node<'a>, reads: &'a Reads) -> Divided {
        // Most of the document is above all that is sensitive, or beside it.
        if self.path.len() >= 2 || self.path.first() == Some(&"content") || self.holds_nothing() {
            match self.standing() {
                Standing::Plain => return (Some(partial(node, reads)), None),
                Standing::Sensitive if reads.is_whole() || !node.settled().is_object() => {
                    return self.left_out(node, reads);
                }
                // Which parts of it were read is said of each.
                Standing::Sensitive | Standing::Both => {}
            }
        }
        match node.settled() {
            Node::Multi(pairs) => self.divide_pairs(pairs, reads),
            node if node.is_object() => self.divide_members(node, reads),
            // A value where a policy reads a part of one.
            node => match self.standing() {
                Standing::Plain => (Some(partial(node, reads)), None),
                Standing::Sensitive | Standing::Both => self.left_out(node, reads),
            },
        }
    }

    /// A sensitive value, which is named where it says something.
    fn left_out(&mut self, node: Node<'a>, reads: &'a Reads) -> Divided {
        let found = Some(partial(node, reads)).filter(says_something);
        if found.is_some() {
            self.drop_here();
        }
        (None, found)
    }

    /// The members of an object, each by itself.
    fn divide_members(&mut self, node: Node<'a>, reads: &'a Reads) -> Divided {
        let (mut kept, mut sensitive) = (Map::new(), Map::new());
        let mut add = |name: &'a str, child: Node<'a>, below: &'a Reads, theirs: bool| {
            self.enter(name, theirs);
            let (plain, secret) = self.divide(child, below);
            self.leave();
            kept.extend(plain.map(|value| (name.to_owned(), value)));
            sensitive.extend(secret.map(|value| (name.to_owned(), value)));
        };
        match node {
            Node::Object(object) if reads.is_whole() => {
                for (index, name) in object.names().iter().enumerate() {
                    add(name, object.field(index), reads, false);
                }
            }
            Node::JsonObject(map) | Node::Json(Json::Object(map)) if reads.is_whole() => {
                map.iter()
                    .for_each(|(name, value)| add(name, Node::Json(value), reads, true));
            }
            node => {
                for (_, name, below) in reads.children() {
                    if let Some(child) = node.child(name) {
                        add(name, child, below, false);
                    }
                }
            }
        }
        (some(kept), some(sensitive))
    }

    /// Names that may stand several times, with all their values.
    fn divide_pairs(&mut self, pairs: &'a [(String, String)], reads: &'a Reads) -> Divided {
        let (mut kept, mut sensitive) = (Map::new(), Map::new());
        let mut names: Vec<&str> = pairs.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names.into_iter().filter(|name| reads.child(name).is_some()) {
            let values: Json = multi(pairs, name).collect();
            self.enter(name, reads.is_whole());
            match self.standing() {
                Standing::Plain => kept.insert(name.to_owned(), values),
                Standing::Sensitive | Standing::Both => {
                    self.drop_here();
                    sensitive.insert(name.to_owned(), values)
                }
            };
            self.leave();
        }
        (some(kept), some(sensitive))
    }

    fn enter(&mut self, name: &'a str, theirs: bool) {
        self.path.push(name);
        // What lies below a name of theirs is theirs, too.
        self.theirs += usize::from(theirs || self.theirs > 0);
    }

    fn leave(&mut self) {
        self.path.pop();
        self.theirs = self.theirs.saturating_sub(1);
    }

    /// Notes that what is here is not kept. A name that a caller chose may say as much as a value.
    fn drop_here(&mut self) {
        let named = &self.path[..self.path.len() - self.theirs];
        let mut path = named.join(".");
        if self.theirs > 0 {
            path.push_str(".*");
        }
        self.dropped.push(path);
    }

    /// Whether nothing sensitive is at this path, above or below it.
    fn holds_nothing(&self) -> bool {
        self.path.first().is_some_and(|first| !HOLDING.contains(first))
    }

    fn standing(&self) -> Standing {
        let path = self.path.as_slice();
        // Most of what is read: nothing is compared name by name.
        if self.holds_nothing() {
            return Standing::Plain;
        }
        if self.keep.iter().any(|kept| is_at_or_below(kept, path)) {
            return Standing::Plain;
        }
        let some_kept_below = self.keep.iter().any(|kept| is_above(path, kept));
        if SENSITIVE_FACTS.iter().any(|fact| is_at_or_below(fact, path)) {
            if some_kept_below {
                Standing::Both
            } else {
                Standing::Sensitive
            }
        } else if SENSITIVE_FACTS.iter().any(|fact| is_above(path, fact)) {
            Standing::Both
        } else {
            Standing::Plain
        }
    }
}

fn some(map: Map<String, Json>) -> Option<Json> {
    Some(map).filter(|map| !map.is_empty()).map(Json::Object)
}

/// Whether `path` is `top`, or below it. A name with a dot in it is one name: what a caller calls `a.b` is not below `a`.
fn is_at_or_below(top: &str, path: &[&str]) -> bool {
    let mut names = path.iter();
    top.split('.')
        .all(|name| names.next().is_some_and(|here| *here == name))
}

/// Whether `path` is `below`, or above it.
fn is_above(path: &[&str], below: &str) -> bool {
    let mut names = below.split('.');
    path.iter().all(|here| names.next() == Some(*here))
}

/// How a path stands to what is sensitive.
enum Standing {
    Plain,
    Sensitive,
    /// Parts of it are, and parts are not.
    Both,
}

/// Whether a value is another one than what stands for nothing: then a replay without it may decide otherwise.
fn says_something(value: &Json) -> bool {
    match value {
        Json::Null => false,
        Json::String(text) => !text.is_empty(),
        Json::Array(items) => !items.is_empty(),
        Json::Object(map) => map.values().any(says_something),
        Json::Bool(_) | Json::Number(_) => true,
    }
}

/// What of a node is read.
fn partial(node: Node<'_>, reads: &Reads) -> Json {
    let node = node.settled();
    if reads.is_whole() || !node.is_object() {
        return input::node_json(node);
    }
    let mut object = Map::new();
    for (_, name, below) in reads.children() {
        if let Node::Multi(pairs) = node {
            let values: Vec<Json> = multi(pairs, name).map(Json::from).collect();
            if !values.is_empty() {
                object.insert(name.to_owned(), values.into());
            }
        } else if let Some(child) = node.child(name) {
            object.insert(name.to_owned(), partial(child, below));
        }
    }
    Json::Object(object)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{Evaluator, Fact, PolicySource};

    fn set(hint: &str, condition: &str) -> Arc<PolicySet> {
        let rego = format!(
            "package aip.policy.p\n{hint}\nrules contains {{\"rule\": \"r\", \"verdict\": \"allow\", \"reason\": \"r\"}} if {{\n{condition}\n}}\n"
        );
        let source = PolicySource {
            name: "p".into(),
            rego,
            data: Json::Null,
            tests: None,
        };
        Arc::new(PolicySet::compile(&[source], &Json::Null).unwrap())
    }

    fn facts() -> Facts {
        let mut facts = Facts::default();
        facts.request.method = "POST".into();
        facts.request.headers = vec![
            ("x-team".into(), "red".into()),
            ("authorization".into(), "secret".into()),
        ];
        facts.protocol.name = "mcp".into();
        facts.protocol.tool = Fact::Known("transfer".into());
        let arguments = json!({"path": "/a", "password": "secret"});
        facts.protocol.arguments = Fact::Known(arguments.as_object().unwrap().clone());
        facts.delegation = Fact::Unestablished("not_in_this_version");
        facts
    }

    #[test]
    fn whatever_holds_a_sensitive_fact_is_known_to() {
        for fact in SENSITIVE_FACTS {
            let first = fact.split('.').next().unwrap();
            assert!(HOLDING.contains(&first), "{fact}");
        }
    }

    #[test]
    fn what_is_read_is_kept_and_what_a_caller_wrote_is_not() {
        let set = set(
            "",
            "input.protocol.tool == \"transfer\"\ninput.protocol.arguments.path == \"/a\"\ninput.request.headers[\"x-team\"][_] == \"red\"",
        );
        let kept = set.kept(&facts());
        assert_eq!(*kept.kept, json!({"protocol": {"tool": "transfer"}}));
        assert_eq!(kept.dropped, ["protocol.arguments.path", "request.headers.x-team"]);
        let sensitive = json!({"protocol": {"arguments": {"path": "/a"}}, "request": {"headers": {"x-team": ["red"]}}});
        assert_eq!(kept.sensitive, sensitive);
        // With both, a replay decides alike; without, it can't.
        let mut both = (*kept.kept).clone();
        both["protocol"]["arguments"] = sensitive["protocol"]["arguments"].clone();
        both["request"] = sensitive["request"].clone();
        let mut evaluator = Evaluator::new();
        let mut verdict = |document: &Json| {
            let facts = Facts::from_json(document.clone()).unwrap();
            evaluator.decide_uncached(&set, &facts).verdict
        };
        assert_eq!(verdict(&both), crate::Verdict::Allow);
        assert_eq!(verdict(&kept.kept), crate::Verdict::Deny);
    }

    #[test]
    fn a_policy_says_what_to_keep_of_it() {
        let hint = "# aip:keep protocol.arguments.path request.headers.x-team";
        let set = set(
            hint,
            "some k\ninput.protocol.arguments[k] == \"/a\"\ninput.request.headers[k][_]",
        );
        let kept = set.kept(&facts());
        assert_eq!(kept.kept["protocol"]["arguments"], json!({"path": "/a"}));
        assert_eq!(kept.kept["request"]["headers"], json!({"x-team": ["red"]}));
        assert_eq!(
            kept.dropped,
            ["protocol.arguments.*", "request.headers.*"],
            "no name that the caller chose"
        );
        assert!(!kept.kept.to_string().contains("secret"));
    }

    #[test]
    fn a_name_with_a_dot_is_not_below_what_is_kept() {
        let set = set(
            "# aip:keep protocol.arguments.path",
            "some k\ninput.protocol.arguments[k] == \"/a\"",
        );
        let mut facts = facts();
        let arguments = json!({"path": "/a", "path.token": "secret", "pathology": "secret"});
        facts.protocol.arguments = Fact::Known(arguments.as_object().unwrap().clone());
        let kept = set.kept(&facts);
        assert_eq!(kept.kept["protocol"]["arguments"], json!({"path": "/a"}));
        assert_eq!(kept.dropped, ["protocol.arguments.*"]);
    }

    #[test]
    fn what_a_caller_asks_for_is_not_kept_unless_a_policy_says_so() {
        let condition =
            "input.protocol.resource == \"file:///r\"\ninput.protocol.task == \"t\"\ninput.protocol.context == \"c\"";
        let mut facts = facts();
        for (fact, value) in [
            (&mut facts.protocol.resource, "file:///r"),
            (&mut facts.protocol.task, "t"),
            (&mut facts.protocol.context, "c"),
        ] {
            *fact = Fact::Known(value.to_owned());
        }
        let kept = set("", condition).kept(&facts);
        assert_eq!(*kept.kept, json!({}));
        assert_eq!(kept.dropped, ["protocol.context", "protocol.resource", "protocol.task"]);
        let kept = set("# aip:keep protocol.resource", condition).kept(&facts);
        assert_eq!(*kept.kept, json!({"protocol": {"resource": "file:///r"}}));
    }

    #[test]
    fn what_was_not_there_is_not_missed() {
        let set = set(
            "",
            "input.protocol.arguments.path == \"/a\"\ninput.request.query.q[_] == \"x\"",
        );
        let kept = set.kept(&Facts::default());
        assert_eq!((&*kept.kept, kept.dropped.len()), (&json!({}), 0));
    }

    #[test]
    fn what_could_not_be_found_out_is_said_where_it_is_read() {
        let set = set("# aip:optional request.size", "input.request.size < 5");
        let mut facts = facts();
        facts.request.size = Fact::Unestablished("body_streams");
        let kept = set.kept(&facts);
        assert_eq!(kept.kept["unestablished"], json!(["request.size"]), "{}", kept.kept);
        let again = Facts::from_json((*kept.kept).clone()).unwrap();
        assert!(again.request.size.known().is_none());
    }

    #[test]
    fn everything_that_is_read_as_a_whole_is_divided_too() {
        let set = set("", "count(input) > 0\ninput.protocol.name == \"mcp\"");
        if set.reads().paths() != ["input"] {
            return;
        }
        let kept = set.kept(&facts());
        assert!(!kept.kept.to_string().contains("secret"), "{}", kept.kept);
        assert_eq!(kept.dropped, ["protocol.arguments", "request.headers"]);
    }
}
