//! The OpenAPI document against what is really sent: each document is written out field by field, so that a field that
//! is added to it fails to compile here until it is described.

use std::collections::BTreeMap;

use aip_api::evidence::{Assurance, Enforcement};
use aip_api::kill::Lease;
use aip_api::kill::webhook::Webhook;
use aip_api::problem::{FieldError, Problem};
use aip_api::resource::reputation::{Finding, ReputationSettings, Score, Severity, Slash};
use aip_api::resource::{
    Agent, AgentProtocol, Attach, AuditConfig, EgressRule, HostHeader, KillSettings, Manifest, Measurement, MeshConfig,
    MeshMode, Mode, Policy, Reputation, Require, Retention, Traffic,
};
use aip_api::{Digest, TrustDomain};
use serde::Serialize;
use serde_json::{Value, json};

use super::*;

fn whole<T: Serialize>(name: &'static str, document: &T) -> (&'static str, Value) {
    (name, serde_json::to_value(document).unwrap())
}

fn agent() -> (&'static str, Value) {
    let agent = Agent {
        name: "planner".parse().unwrap(),
        owner: "ops".into(),
        labels: BTreeMap::from([("tier".into(), "gold".into())]),
        capabilities: vec!["search".into()],
        mode: Mode::Observe { until: 1 },
        protocol: AgentProtocol::H2c,
        host: HostHeader::Original,
        allow_ambiguous_paths: true,
        aliases: vec!["research.example.com".into()],
        lease: Lease::default(),
        manifest: Manifest::default(),
        generation: 1,
    };
    whole("Agent", &agent)
}

fn traffic() -> (&'static str, Value) {
    let traffic = Traffic {
        agent: "planner".into(),
        response_timeout_ms: 1,
        idle_timeout_ms: 1,
        max_concurrency: 1,
        peer_max_concurrency: Some(1),
        peer_rate_per_second: 1,
        peer_burst: 1,
    };
    whole("Traffic", &traffic)
}

fn policy() -> (&'static str, Value) {
    let policy = Policy {
        name: "quiet".to_owned().try_into().unwrap(),
        rego: "package aip.policy.quiet".into(),
        data: json!({}),
        tests: Some("package aip.policy.quiet_test".into()),
        attach: Attach::Agents(vec![]),
    };
    whole("Policy", &policy)
}

fn measurement() -> (&'static str, Value) {
    let digest = Digest::sha256(b"x");
    let measurement = Measurement {
        agent: "planner".parse().unwrap(),
        attestor: "files".into(),
        code: digest,
        config: Some(digest),
        executable: Some(digest),
        argv: Some(digest),
        sidecar: Some(digest),
        approved_by: "admin:bob".into(),
        approved_at: 1,
    };
    whole("Measurement", &measurement)
}

fn reputation() -> [(&'static str, Value); 2] {
    let agent: aip_api::AgentName = "planner".parse().unwrap();
    let slash = Slash {
        id: "x".into(),
        finding: Finding::Hallucination,
        severity: Severity::Low,
        points: Score::default(),
        at: 1,
        evidence: "hop:0198f2f0-7d2b-7c3e-8a11-3b7d5b1f0a42"
            .to_owned()
            .try_into()
            .unwrap(),
    };
    let mut reputation = Reputation::new(agent, Score::default(), 1);
    reputation.slashes.push(slash.clone());
    [whole("Reputation", &reputation), whole("Slash", &slash)]
}

fn mesh_config() -> [(&'static str, Value); 9] {
    let trust_domain: TrustDomain = "aip.internal".parse().unwrap();
    let require = Require {
        assurance: Assurance::Declared,
        enforcement: Enforcement::Cooperative,
    };
    let rule = EgressRule {
        host: "example.com".into(),
        port: 443,
        allow_private: false,
    };
    let config = MeshConfig {
        trust_domain,
        mode: MeshMode::Dev,
        require,
        egress: vec![rule.clone()],
        svid_ttl_seconds: 60,
        audit: AuditConfig {
            auditor_key: Some("CQkJ".into()),
            ..AuditConfig::default()
        },
        kill: KillSettings {
            second_approver: true,
            webhook: Some(Webhook {
                url: "https://hooks.example.com/aip".into(),
                secret: "on-call".into(),
                ca: Some("PEM".into()),
            }),
        },
        reputation: ReputationSettings::default(),
    };
    [
        whole("MeshConfig", &config),
        whole("ReputationSettings", &config.reputation),
        whole("Require", &require),
        whole("EgressRule", &rule),
        whole("AuditConfig", &config.audit),
        whole("Retention", &Retention::default()),
        whole("KillSettings", &config.kill),
        whole("Webhook", config.kill.webhook.as_ref().unwrap()),
        whole("Lease", &Lease::default()),
    ]
}

fn problem() -> (&'static str, Value) {
    let mut problem = Problem::new(422, "invalid", "why");
    problem.errors = vec![FieldError::new("field", "message")];
    whole("Problem", &problem)
}

#[test]
fn every_document_is_described_with_every_field_that_it_has() {
    let document: Value = serde_json::from_str(&openapi()).unwrap();
    let mut documents = vec![agent(), traffic(), policy(), measurement(), problem()];
    documents.extend(mesh_config());
    documents.extend(reputation());
    for (name, sent) in documents {
        let described = document["components"]["schemas"][name]["properties"].as_object();
        let described = described.unwrap_or_else(|| panic!("{name} is not described"));
        let mut described: Vec<_> = described.keys().collect();
        let mut sent: Vec<_> = sent.as_object().unwrap().keys().collect();
        described.sort();
        sent.sort();
        assert_eq!(described, sent, "{name}");
    }
}

#[test]
fn every_operation_says_what_it_takes_what_it_answers_and_how_it_refuses() {
    let document: Value = serde_json::from_str(&openapi()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let at = format!("{method} {path}");
            assert!(
                operation["summary"].as_str().is_some_and(|s| !s.is_empty()),
                "{at} has no summary"
            );
            let answers = operation["responses"].as_object().unwrap();
            assert!(answers.contains_key("default"), "{at} does not say how it refuses");
            assert!(
                answers.keys().any(|status| status.starts_with('2')),
                "{at} does not say what it answers"
            );
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            assert!(
                body.is_null() || body["$ref"].is_string(),
                "{at} takes something: {body}"
            );
            let named = path.matches('{').count();
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            assert_eq!(parameters.filter(|p| p["in"] == "path").count(), named, "{at}");
        }
    }
}
