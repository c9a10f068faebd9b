//! Facts from their rendering, as test cases have them.

use std::sync::Arc;

use serde_json::Value as Json;

use super::{Fact, Facts, PeerFacts};

/// A document that isn't facts.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// It doesn't have the shape of the input document.
    #[error("not a policy input: {0}")]
    Shape(#[from] serde_json::Error),
    /// It is of a version that this program doesn't know.
    #[error("policy input of version {0}; this program knows version {known}", known = super::INPUT_VERSION)]
    Version(u64),
    /// It lists something as not established that always is.
    #[error("`{0}` is not a fact that can fail to be established")]
    Unestablished(String),
}

/// Why a rendered fact is not established: the rendering says that, not why.
const RECORDED: &str = "recorded";

impl Facts {
    /// The facts of a rendered input document. What is missing has its neutral value, and what the document lists in
    /// `unestablished` is not established again.
    ///
    /// # Errors
    ///
    /// A key that isn't one of the schema, a value of another type, or another version of the schema.
    pub fn from_json(document: Json) -> Result<Self, FactsError> {
        let mut facts: Self = serde_json::from_value(document)?;
        if facts.v != super::INPUT_VERSION {
            return Err(FactsError::Version(facts.v));
        }
        for path in std::mem::take(&mut facts.unestablished) {
            facts.forget(&path).ok_or(FactsError::Unestablished(path))?;
        }
        Ok(facts)
    }

    /// Makes the fact not established, if it is one that can be.
    fn forget(&mut self, path: &str) -> Option<()> {
        fn set<T>(fact: &mut Fact<T>) -> Option<()> {
            *fact = Fact::Unestablished(RECORDED);
            Some(())
        }
        fn peer(peer: &mut Arc<PeerFacts>, name: &str) -> Option<()> {
            let peer = Arc::make_mut(peer);
            match name {
                "attestation" => set(&mut peer.attestation),
                "reputation" => set(&mut peer.reputation),
                "manifest" => set(&mut peer.manifest),
                _ => None,
            }
        }
        let protocol = &mut self.protocol;
        match path.split_once('.') {
            None if path == "delegation" => set(&mut self.delegation),
            None if path == "budget" => set(&mut self.budget),
            Some(("source", name)) => peer(&mut self.source, name),
            Some(("destination", name)) => peer(&mut self.destination, name),
            Some(("request", "size")) => set(&mut self.request.size),
            Some(("content", "findings")) => set(&mut self.content.findings),
            Some(("protocol", name)) => match name {
                "method" => set(&mut protocol.method),
                "tool" => set(&mut protocol.tool),
                "arguments" => set(&mut protocol.arguments),
                "resource" => set(&mut protocol.resource),
                "prompt" => set(&mut protocol.prompt),
                "skill" => set(&mut protocol.skill),
                "task" => set(&mut protocol.task),
                "context" => set(&mut protocol.context),
                "session" => set(&mut protocol.session),
                _ => None,
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::OPTIONAL_FACTS;
    use crate::input::unestablished;
    use crate::reads::Reads;

    #[test]
    fn every_optional_fact_can_be_forgotten_and_is_found_again() {
        let document = json!({"unestablished": OPTIONAL_FACTS});
        let facts = Facts::from_json(document).unwrap();
        let found = unestablished(&facts, &Reads::everything());
        let mut found: Vec<String> = found.into_iter().map(|(path, _)| path).collect();
        let mut want: Vec<String> = OPTIONAL_FACTS.iter().map(|path| (*path).to_owned()).collect();
        found.sort();
        want.sort();
        assert_eq!(found, want, "the list of optional facts is the list of facts");
        assert_eq!(facts.to_json()["unestablished"], json!(want));
    }

    #[test]
    fn a_rendering_read_back_renders_the_same() {
        let mut facts = Facts::default();
        facts.request.headers = vec![
            ("a".into(), "1".into()),
            ("b".into(), "2".into()),
            ("a".into(), "3".into()),
        ];
        facts.protocol.arguments = Fact::Unestablished("body_truncated");
        Arc::make_mut(&mut facts.source)
            .labels
            .insert("tier".into(), "gold".into());
        facts.budget = Fact::Known([("calls".to_owned(), super::super::BudgetFacts::default())].into());
        let rendered = facts.to_json();
        assert_eq!(Facts::from_json(rendered.clone()).unwrap().to_json(), rendered);
    }

    #[test]
    fn the_rendering_is_what_serde_makes_of_the_types() {
        // Two descriptions of one document, by the derive and by `fields!`: a field can't be in one of them only.
        let facts = Facts::default();
        assert_eq!(serde_json::to_value(&facts).unwrap(), facts.to_json());
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        assert!(Facts::from_json(json!({"source": {"nam": "x"}})).is_err());
        assert!(Facts::from_json(json!({"v": 2})).is_err());
        assert!(Facts::from_json(json!({"unestablished": ["request.method"]})).is_err());
    }
}
