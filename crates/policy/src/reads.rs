//! Which parts of the input a program can read.

use std::collections::BTreeMap;

use regorus::Value;

/// A tree of input paths. Whatever is below a whole node can be read; of other nodes only the listed children.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reads {
    whole: bool,
    children: BTreeMap<Box<str>, (Value, Reads)>,
}

impl Reads {
    pub(crate) fn everything() -> Self {
        Self {
            whole: true,
            children: BTreeMap::new(),
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// What can be read of this child.
    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        match self.whole {
            true => Some(self),
            false => self.children.get(name).map(|(_, below)| below),
        }
    }

    /// The engine's key, the name and the rest of each child.
    pub(crate) fn children(&self) -> impl Iterator<Item = (&Value, &str, &Self)> {
        self.children.iter().map(|(name, (key, below))| (key, &**name, below))
    }

    /// Adds the path and all that is below it.
    pub(crate) fn add<S: AsRef<str>>(&mut self, path: &[S]) {
        if self.whole {
            return;
        }
        let Some((name, rest)) = path.split_first() else {
            *self = Self::everything();
            return;
        };
        let name = name.as_ref();
        self.children
            .entry(name.into())
            .or_insert_with(|| (Value::from(name), Self::default()))
            .1
            .add(rest);
    }

    /// Adds all paths of another tree.
    pub(crate) fn join(&mut self, other: &Self) {
        if self.whole {
            return;
        }
        if other.whole {
            *self = Self::everything();
            return;
        }
        for (name, (key, below)) in &other.children {
            self.children
                .entry(name.clone())
                .or_insert_with(|| (key.clone(), Self::default()))
                .1
                .join(below);
        }
    }

    /// Whether something at, above or below the dotted path can be read.
    pub(crate) fn touches(&self, path: &str) -> bool {
        let mut node = self;
        for name in path.split('.') {
            if node.whole {
                return true;
            }
            match node.children.get(name) {
                Some((_, below)) => node = below,
                None => return false,
            }
        }
        true
    }

    /// The paths, sorted, as people write them; `input` alone for everything.
    pub(crate) fn paths(&self) -> Vec<String> {
        fn visit(reads: &Reads, path: &str, paths: &mut Vec<String>) {
            if reads.whole || reads.children.is_empty() {
                paths.push(path.to_owned());
            }
            for (name, (_, below)) in &reads.children {
                let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                let next = if plain {
                    format!("{path}.{name}")
                } else {
                    format!("{path}[{name:?}]")
                };
                visit(below, &next, paths);
            }
        }
        let mut paths = Vec::new();
        if self.whole || !self.children.is_empty() {
            visit(self, "input", &mut paths);
        }
        paths
    }

    /// The same tree with keys of its own.
    pub(crate) fn private_copy(&self) -> Self {
        let children = self
            .children
            .iter()
            .map(|(name, (_, below))| (name.clone(), (Value::from(&**name), below.private_copy())))
            .collect();
        Self {
            whole: self.whole,
            children,
        }
    }
}

/// Which parts of the input a compiled set can read: what the sidecar need not find out, it doesn't.
#[derive(Debug, Clone, Default)]
pub struct ReadSet {
    pub(crate) reads: Reads,
}

impl ReadSet {
    /// Whether a policy can read something at, above or below the dotted path, such as `protocol.arguments`.
    pub fn needs(&self, path: &str) -> bool {
        self.reads.touches(path)
    }

    /// The paths that can be read, sorted, as `input.…`; `input` alone for everything.
    pub fn paths(&self) -> Vec<String> {
        self.reads.paths()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(paths: &[&str]) -> Reads {
        let mut reads = Reads::default();
        for path in paths {
            reads.add(&path.split('.').filter(|name| !name.is_empty()).collect::<Vec<_>>());
        }
        reads
    }

    #[test]
    fn a_path_is_touched_from_above_and_from_below() {
        let reads = reads(&["protocol.arguments.path", "source.labels"]);
        for path in [
            "protocol",
            "protocol.arguments",
            "protocol.arguments.path",
            "source.labels.tier",
        ] {
            assert!(reads.touches(path), "{path}");
        }
        for path in ["protocol.tool", "protocol.arguments.other", "destination", "source.id"] {
            assert!(!reads.touches(path), "{path}");
        }
    }

    #[test]
    fn a_whole_node_swallows_its_parts() {
        assert_eq!(reads(&["a.b", "a", "a.c"]).paths(), ["input.a"]);
        assert_eq!(reads(&["a.b", ""]).paths(), ["input"]);
        assert!(reads(&[]).paths().is_empty());
    }

    #[test]
    fn joined_trees_read_what_either_reads() {
        let mut joined = reads(&["a.b"]);
        joined.join(&reads(&["a.c", "d"]));
        assert_eq!(joined.paths(), ["input.a.b", "input.a.c", "input.d"]);
    }

    #[test]
    fn odd_keys_are_quoted() {
        let mut reads = Reads::default();
        reads.add(&["request", "headers", "x-team"]);
        assert_eq!(reads.paths(), ["input.request.headers[\"x-team\"]"]);
    }
}
