//! One view of the facts for everything that walks them: building the engine's input, encoding the key of the decision
//! cache, finding what is not established. A field that is added to a fact is declared once, in its `fields!` line.

use std::collections::BTreeMap;

use serde_json::Value as Json;

/// A fact, or a part of one, as it appears in the input document.
#[derive(Clone, Copy)]
pub(crate) enum Node<'a> {
    Int(u64),
    Bool(bool),
    Float(f64),
    Text(&'a str),
    Json(&'a Json),
    JsonObject(&'a serde_json::Map<String, Json>),
    Texts(&'a [String]),
    Map(&'a BTreeMap<String, String>),
    Scores(&'a BTreeMap<String, f64>),
    /// Name and value pairs in order, names possibly repeated: an object of lists.
    Multi(&'a [(String, String)]),
    Object(&'a dyn Fields),
    List(&'a dyn Items),
    Table(&'a dyn Table),
    /// Applies to this request but isn't known; the neutral value that stands for it.
    Unestablished(&'static str, Neutral),
}

/// What stands for a fact that is not established where a policy calls it optional.
#[derive(Clone, Copy)]
pub(crate) enum Neutral {
    Zero,
    Text,
    List,
    Map,
    Object(fn() -> &'static dyn Fields),
}

impl Neutral {
    pub(crate) fn node(self) -> Node<'static> {
        match self {
            Self::Zero => Node::Int(0),
            Self::Text => Node::Text(""),
            Self::List => Node::Texts(&[]),
            Self::Map => Node::Multi(&[]),
            Self::Object(instance) => Node::Object(instance()),
        }
    }
}

/// An object whose keys are the same for every request.
pub(crate) trait Fields: Sync {
    fn names(&self) -> &'static [&'static str];
    /// The field with that index in `names`.
    fn field(&self, index: usize) -> Node<'_>;
}

/// A list of objects.
pub(crate) trait Items: Sync {
    fn len(&self) -> usize;
    fn item(&self, index: usize) -> Node<'_>;
}

/// An object with keys of its own and objects as values.
pub(crate) trait Table: Sync {
    fn rows(&self) -> Vec<(&str, Node<'_>)>;
    fn row(&self, key: &str) -> Option<Node<'_>>;
}

impl<T: Fields> Items for Vec<T> {
    fn len(&self) -> usize {
        self.as_slice().len()
    }
    fn item(&self, index: usize) -> Node<'_> {
        Node::Object(&self[index])
    }
}

impl<T: Fields> Table for BTreeMap<String, T> {
    fn rows(&self) -> Vec<(&str, Node<'_>)> {
        self.iter()
            .map(|(key, row)| (key.as_str(), Node::Object(row as &dyn Fields)))
            .collect()
    }
    fn row(&self, key: &str) -> Option<Node<'_>> {
        self.get(key).map(|row| Node::Object(row as &dyn Fields))
    }
}

/// A value that knows its place in the input document.
pub(crate) trait AsNode {
    /// What stands for it where it isn't established.
    const NEUTRAL: Neutral;
    fn node(&self) -> Node<'_>;
}

impl AsNode for u64 {
    const NEUTRAL: Neutral = Neutral::Zero;
    fn node(&self) -> Node<'_> {
        Node::Int(*self)
    }
}

impl AsNode for String {
    const NEUTRAL: Neutral = Neutral::Text;
    fn node(&self) -> Node<'_> {
        Node::Text(self)
    }
}

impl AsNode for Vec<String> {
    const NEUTRAL: Neutral = Neutral::List;
    fn node(&self) -> Node<'_> {
        Node::Texts(self)
    }
}

impl<T: Fields> AsNode for Vec<T> {
    const NEUTRAL: Neutral = Neutral::List;
    fn node(&self) -> Node<'_> {
        Node::List(self)
    }
}

impl<T: Fields> AsNode for BTreeMap<String, T> {
    const NEUTRAL: Neutral = Neutral::Map;
    fn node(&self) -> Node<'_> {
        Node::Table(self)
    }
}

impl AsNode for serde_json::Map<String, Json> {
    const NEUTRAL: Neutral = Neutral::Map;
    fn node(&self) -> Node<'_> {
        Node::JsonObject(self)
    }
}

/// Declares the fields of an object of the input document, in the order of its keys.
macro_rules! fields {
    ($type:ty { $($name:literal => |$this:ident| $node:expr),+ $(,)? }) => {
        impl $crate::node::Fields for $type {
            fn names(&self) -> &'static [&'static str] {
                &[$($name),+]
            }
            fn field(&self, index: usize) -> $crate::node::Node<'_> {
                // A function per field, so that the index picks one and builds nothing else.
                let getters: &[for<'x> fn(&'x $type) -> $crate::node::Node<'x>] =
                    &[$({ fn get($this: &$type) -> $crate::node::Node<'_> { $node } get }),+];
                getters[index](self)
            }
        }
        impl $crate::node::AsNode for $type {
            const NEUTRAL: $crate::node::Neutral = $crate::node::Neutral::Object(|| {
                static NEUTRAL: std::sync::LazyLock<$type> = std::sync::LazyLock::new(<$type>::default);
                &*NEUTRAL
            });
            fn node(&self) -> $crate::node::Node<'_> {
                $crate::node::Node::Object(self)
            }
        }
    };
}
pub(crate) use fields;

impl<'a> Node<'a> {
    /// The node itself, or its neutral value where it is not established.
    pub(crate) fn settled(self) -> Self {
        match self {
            Self::Unestablished(_, neutral) => neutral.node(),
            node => node,
        }
    }

    /// Whether a key leads further down, so that a part of it can be taken.
    pub(crate) fn is_object(&self) -> bool {
        match self {
            Self::Json(json) => json.is_object(),
            Self::JsonObject(_)
            | Self::Map(_)
            | Self::Scores(_)
            | Self::Multi(_)
            | Self::Object(_)
            | Self::Table(_) => true,
            _ => false,
        }
    }

    /// The value under `key` of an object; `None` where there is none. Not for [`Node::Multi`], whose values are lists
    /// that don't exist as such: see [`multi`].
    pub(crate) fn child(&self, key: &str) -> Option<Node<'a>> {
        match *self {
            Self::Json(json) => json.get(key).map(Node::Json),
            Self::JsonObject(map) => map.get(key).map(Node::Json),
            Self::Map(map) => map.get(key).map(|value| Node::Text(value)),
            Self::Scores(map) => map.get(key).map(|value| Node::Float(*value)),
            Self::Object(object) => {
                let index = object.names().iter().position(|name| *name == key)?;
                Some(object.field(index))
            }
            Self::Table(table) => table.row(key),
            _ => None,
        }
    }
}

/// The values of one name, in order.
pub(crate) fn multi<'a>(pairs: &'a [(String, String)], name: &'a str) -> impl Iterator<Item = &'a str> {
    pairs
        .iter()
        .filter(move |(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

/// A number as the input document carries it: the engine has no NaN and no infinities, and what isn't a number counts
/// as none, so that a comparison with a floor fails.
pub(crate) fn finite(number: f64) -> f64 {
    if number.is_finite() { number } else { 0.0 }
}
