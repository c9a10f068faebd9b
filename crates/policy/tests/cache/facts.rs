//! Random facts, few enough different ones that conditions hold about as often as not.

use std::sync::Arc;

use aip_policy::{
    Assurance, AttestationFacts, AttestationStatus, Direction, Fact, Facts, PeerFacts, ReputationFacts,
    ReputationStatus, RequestFacts,
};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value as Json, json};

fn word() -> impl Strategy<Value = String> {
    select(vec!["", "a", "b", "x", "gold", "tier"]).prop_map(str::to_owned)
}

fn argument() -> impl Strategy<Value = Json> {
    select(vec![
        json!(null),
        json!(false),
        json!(0),
        json!("a"),
        json!("path"),
        json!({"deep": 1}),
        json!([1]),
        json!({}),
    ])
}

fn arguments() -> impl Strategy<Value = Map<String, Json>> {
    let key = select(vec!["path", "a", "x", "other"]).prop_map(str::to_owned);
    proptest::collection::vec((key, argument()), 0..4).prop_map(|pairs| pairs.into_iter().collect())
}

fn pairs(names: Vec<&'static str>, values: Vec<&'static str>) -> impl Strategy<Value = Vec<(String, String)>> {
    let pair = (select(names), select(values)).prop_map(|(name, value)| (name.to_owned(), value.to_owned()));
    proptest::collection::vec(pair, 0..4)
}

prop_compose! {
    fn peer()(
        name in word(),
        owner in select(vec!["", "team"]),
        tier in proptest::option::of(select(vec!["gold", "", "tin"])),
        named in proptest::option::of(word()),
        capabilities in proptest::collection::vec(word(), 0..3),
        age in 0u64..40,
        agent in any::<bool>(),
        score in select(vec![0.0, 2.5, 4.0, f64::NAN]),
        known in any::<bool>(),
    ) -> PeerFacts {
        let mut labels = std::collections::BTreeMap::new();
        labels.extend(named.map(|value| (name.clone(), value)));
        labels.extend(tier.map(|value| ("tier".to_owned(), value.to_owned())));
        PeerFacts {
            kind: if agent { aip_policy::PeerKind::Agent } else { aip_policy::PeerKind::Unknown },
            id: format!("spiffe://aip.internal/agent/{name}"),
            name,
            owner: owner.to_owned(),
            labels,
            capabilities,
            attestation: AttestationFacts {
                status: AttestationStatus::Valid,
                assurance: Assurance::Observed,
                age,
                ..AttestationFacts::default()
            }.into(),
            reputation: ReputationFacts {
                status: if known { ReputationStatus::Known } else { ReputationStatus::Unknown },
                score,
                factors: [("honesty".to_owned(), score)].into(),
                ..ReputationFacts::default()
            }.into(),
            ..PeerFacts::default()
        }
    }
}

prop_compose! {
    pub(super) fn facts()(
        source in peer(),
        destination in peer(),
        outbound in any::<bool>(),
        path in proptest::collection::vec(word(), 0..3),
        query in pairs(vec!["q", "r"], vec!["x", "y"]),
        headers in pairs(vec!["x-team", "accept"], vec!["blue", "a", "b"]),
        tool in word(),
        arguments in arguments(),
        time in 0u64..4,
    ) -> Facts {
        let mut facts = Facts {
            direction: if outbound { Direction::Outbound } else { Direction::Inbound },
            source: Arc::new(source),
            destination: Arc::new(destination),
            request: RequestFacts { path, query, headers, ..RequestFacts::default() },
            time,
            ..Facts::default()
        };
        facts.protocol.tool = Fact::Known(tool);
        facts.protocol.arguments = Fact::Known(arguments);
        facts
    }
}
