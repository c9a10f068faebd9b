//! What comes on the streams between sidecars and the control plane: messages, signed resources, and the cache of them.

use std::cell::RefCell;

use aip_api::resource::{
    Agent, Endpoint, KeyPurpose, Kind, MAX_NAME_BYTES, MAX_PAYLOAD_BYTES, Manifest, Measurement, MeshConfig, MeshMode,
    Policy, Reputation, Resource, Revocation, SigningKey, Traffic, TrustBundle, read, signing_bytes,
};
use aip_api::wire::{self, audit_request, config_request, kill_request, kill_response};
use aip_control_plane::audit::statement;
use aip_runtime::kill::{open_heartbeat, open_set};
use aip_runtime::sealing::SealingKey;
use aip_runtime::signed;
use aip_sidecar::mesh::cache::Cache;
use aip_sidecar::mesh::world::World;
use prost::Message;
use serde_json::json;
use std::fmt::Debug;
use std::sync::Arc;
use tempfile::TempDir;

use crate::mesh::{MESH, NOW, domain, researcher};
use crate::split::{first, line, lines, with};
use crate::{Seeds, in_memory};

/// A message of a stream; the first byte says which.
pub(crate) fn mesh_messages(bytes: &[u8]) -> bool {
    let (which, rest) = first(bytes);
    match which % 12 {
        0 => message::<wire::ChallengeRequest>(rest).is_some(),
        1 => message::<wire::ChallengeResponse>(rest).is_some(),
        2 => message::<wire::IssueRequest>(rest).is_some(),
        3 => message::<wire::IssueResponse>(rest).is_some(),
        4 => message::<wire::DriftReport>(rest).is_some(),
        5 => message::<wire::DriftAnswer>(rest).is_some(),
        6 => message(rest).is_some_and(asked_for_config),
        7 => message(rest).is_some_and(pushed),
        8 => message(rest).is_some_and(said_of_kills),
        9 => message(rest).is_some_and(told_of_kills),
        10 => message(rest).is_some_and(sent_audit),
        _ => message::<wire::AuditResponse>(rest).is_some(),
    }
}

/// The message, which is the same written and read again.
fn message<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) -> Option<M> {
    let read = M::decode(bytes).ok()?;
    let again = read.encode_to_vec();
    assert_eq!(again.len(), read.encoded_len());
    let read_again = M::decode(again.as_slice()).unwrap();
    assert!(read_again == read, "{read:?} is read again as {read_again:?}");
    assert_eq!(read_again.encode_to_vec(), again);
    Some(read)
}

fn asked_for_config(request: wire::ConfigRequest) -> bool {
    use config_request::Message;
    match request.message {
        Some(Message::Hello(hello)) => {
            let Ok(held) = aip_control_plane::reading::config_hello(&hello) else {
                return false;
            };
            assert!(held.len() <= hello.held.len() && held.len() <= 100_000);
            assert!(held.keys().all(|id| id.name.len() <= MAX_NAME_BYTES));
            true
        }
        Some(Message::Subscribe(asked) | Message::Unsubscribe(asked)) => {
            let names = asked.names.clone();
            let Ok((kind, read)) = aip_control_plane::reading::subscription(asked) else {
                return false;
            };
            assert!(!Kind::MESH_WIDE.contains(&kind) && kind != Kind::Measurement && read.len() <= 1_000);
            assert!(
                read.iter()
                    .map(|name| name.as_str())
                    .eq(names.iter().map(String::as_str))
            );
            true
        }
        other => other.is_some(),
    }
}

/// A push that the config key did not sign changes nothing.
fn pushed(push: wire::ConfigResponse) -> bool {
    let mut world = World::new(MESH.origin(), MESH.trust().clone().shared());
    let rejected = world.apply(&push, NOW);
    assert!(rejected.len() <= push.resources.len());
    world.resources().map(AsRef::as_ref).for_each(is_signed);
    let _ = world.snapshot();
    world.resources().next().is_some()
}

/// Asks the key itself.
fn is_signed(resource: &wire::Resource) {
    let kind = Kind::from_wire(resource.kind).unwrap();
    let message = signing_bytes(
        kind,
        &resource.name,
        resource.revision,
        resource.deleted,
        &resource.payload,
    );
    let key = MESH.signer(KeyPurpose::Config).public_key();
    assert!(
        key.verify(&message, &resource.signature),
        "{kind} {} is held, unsigned",
        resource.name
    );
}

fn said_of_kills(request: wire::KillRequest) -> bool {
    let sets = match request.message {
        Some(kill_request::Message::Hello(hello)) => vec![hello.held, hello.unwritten],
        Some(kill_request::Message::Ack(ack)) => vec![ack.held],
        other => return other.is_some(),
    };
    sets.into_iter().flatten().any(|set| crate::kill::is_set(&set))
}

fn told_of_kills(response: wire::KillResponse) -> bool {
    match response.message {
        Some(kill_response::Message::KillSet(set)) => {
            open_set(MESH.trust(), &set).is_ok_and(|_| crate::kill::is_set(&set))
        }
        Some(kill_response::Message::Heartbeat(beat)) => {
            open_heartbeat(MESH.trust(), &beat).is_ok_and(|_| crate::kill::is_heartbeat(&beat))
        }
        None => false,
    }
}

fn sent_audit(request: wire::AuditRequest) -> bool {
    match request.message {
        Some(audit_request::Message::Checkpoint(signed)) => {
            statement::verify(signed, &researcher(), MESH.trust(), NOW).is_ok()
        }
        other => other.is_some(),
    }
}

pub(crate) fn mesh_messages_seeds() -> Seeds {
    use wire::{ChallengeRequest, ChallengeResponse, CurrentSvid, DriftReport, IssueRequest, issue_request};
    let challenge = ChallengeRequest {
        agent: "researcher".into(),
    };
    let nonce = ChallengeResponse {
        nonce: vec![7; 32],
        ttl_seconds: 60,
    };
    let issue = IssueRequest {
        agent: "researcher".into(),
        csr: crate::mesh::FRESH.csr(),
        evidence: "a.b.c".into(),
        credential: Some(issue_request::Credential::CurrentSvid(CurrentSvid {})),
    };
    let drift = DriftReport {
        statement: "a.b.c".into(),
    };
    let mut seeds = vec![
        ("challenge", with(0, challenge.encode_to_vec())),
        ("nonce", with(1, nonce.encode_to_vec())),
        ("issue", with(2, issue.encode_to_vec())),
        ("drift", with(4, drift.encode_to_vec())),
        ("unknown_field", with(0, [0xfa, 0x01, 0x02, 1, 2])),
        ("cut", with(2, [0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f, 1])),
    ];
    seeds.extend(config_seeds());
    seeds.extend(kill_and_audit_seeds());
    seeds
}

/// The process that says hello.
const INSTANCE: &str = "018f7c3e-0000-7000-8000-000000000001";

fn config_seeds() -> Seeds {
    use wire::{ConfigRequest, ConfigResponse, Held, Hello, Subscribe};
    let said = |message| {
        let request = ConfigRequest { message: Some(message) };
        with(6, request.encode_to_vec())
    };
    let hello = Hello {
        instance: INSTANCE.into(),
        version: "0.1.0".into(),
        held: vec![Held {
            kind: 2,
            name: "writer".into(),
            revision: 7,
        }],
        newest: Some(agent_resource()),
    };
    let names = Subscribe {
        kind: Kind::Agent.to_wire() as i32,
        names: vec!["writer".into(), "editor".into()],
    };
    let push = ConfigResponse {
        nonce: 1,
        resources: vec![agent_resource()],
        synced: vec![1, 2],
        missing: vec![],
        revision: 9,
    };
    vec![
        ("hello", said(config_request::Message::Hello(hello))),
        ("subscribe", said(config_request::Message::Subscribe(names))),
        ("push", with(7, push.encode_to_vec())),
    ]
}

fn kill_and_audit_seeds() -> Seeds {
    use wire::{AuditRequest, KillHello, KillRequest, KillResponse, SignedCheckpoint};
    let set = crate::kill::signed_set();
    let hello = KillHello {
        instance: INSTANCE.into(),
        held: Some(set.clone()),
        unwritten: None,
    };
    let said = KillRequest {
        message: Some(kill_request::Message::Hello(hello)),
    };
    let told = KillResponse {
        message: Some(kill_response::Message::KillSet(set)),
    };
    let checkpoint = SignedCheckpoint {
        statement: crate::audit::checkpoint_statement(),
        chain: crate::audit::chain(),
    };
    let sent = AuditRequest {
        message: Some(audit_request::Message::Checkpoint(checkpoint)),
    };
    vec![
        ("kills", with(8, said.encode_to_vec())),
        ("kill_set", with(9, told.encode_to_vec())),
        ("checkpoint", with(10, sent.encode_to_vec())),
    ]
}

/// A resource that the control plane signed. First byte: kind, and whether it is deleted; a line: its name; then its document.
pub(crate) fn resource(bytes: &[u8]) -> bool {
    let (which, rest) = first(bytes);
    let (name, payload) = line(rest);
    let (Some(kind), Ok(name)) = (Kind::ALL.get(usize::from(which & 0x0f)), std::str::from_utf8(name)) else {
        return false;
    };
    let deleted = which & 0x80 != 0;
    let signer = MESH.signer(KeyPurpose::Config);
    let sent = signed::sign(signer, *kind, name, 5, deleted, payload);
    let mut world = World::new(MESH.origin(), MESH.trust().clone().shared());
    if let Err(rejected) = world.take(&sent, NOW) {
        assert!(!rejected.reason.is_empty() && rejected.id.name.len() <= 4 * MAX_NAME_BYTES);
        return false;
    }
    assert!(payload.len() <= MAX_PAYLOAD_BYTES && name.len() <= MAX_NAME_BYTES && (!deleted || payload.is_empty()));
    world.resources().map(AsRef::as_ref).for_each(is_signed);
    let _ = world.snapshot();
    let mut altered = sent.clone();
    altered.revision += 1;
    assert!(
        world.take(&altered, NOW).is_err(),
        "another revision under the same signature"
    );
    let older = signed::sign(signer, *kind, name, 4, deleted, payload);
    assert!(
        deleted || *kind == Kind::Revocation || world.take(&older, NOW).is_err(),
        "an older one after a newer"
    );
    deleted || is_document(*kind, name, payload)
}

/// The document, which is the same written and read again.
fn is_document(kind: Kind, name: &str, payload: &[u8]) -> bool {
    match kind {
        Kind::MeshConfig => document::<MeshConfig>(name, payload),
        Kind::Agent => document::<Agent>(name, payload),
        Kind::Endpoint => document::<Endpoint>(name, payload),
        Kind::Policy => document::<Policy>(name, payload),
        Kind::Measurement => document::<Measurement>(name, payload),
        Kind::TrustBundle => document::<TrustBundle>(name, payload),
        Kind::SigningKey => document::<SigningKey>(name, payload),
        Kind::Revocation => document::<Revocation>(name, payload),
        Kind::Traffic => document::<Traffic>(name, payload),
        Kind::Reputation => document::<Reputation>(name, payload),
    }
}

fn document<R: Resource + PartialEq + Debug>(name: &str, payload: &[u8]) -> bool {
    let Ok(document) = read::<R>(name, 1, payload) else {
        return false;
    };
    assert_eq!(document.name(), name);
    let again = serde_json::to_vec(&document).unwrap();
    match read::<R>(name, 1, &again) {
        Ok(read) => assert_eq!(read, document),
        Err(rejected) => panic!("written again it is refused: {rejected}"),
    }
    true
}

fn agent_resource() -> wire::Resource {
    let agent = Agent {
        owner: "ann".into(),
        labels: [("team".to_owned(), "blue".to_owned())].into(),
        aliases: vec!["researcher.example.com".into()],
        ..Agent::new("writer".parse().unwrap())
    };
    let payload = serde_json::to_vec(&agent).unwrap();
    signed::sign(
        MESH.signer(KeyPurpose::Config),
        Kind::Agent,
        "writer",
        3,
        false,
        payload,
    )
}

pub(crate) fn resource_seeds() -> Seeds {
    let of = |kind: Kind, name: &str, payload: &[u8]| {
        let which = Kind::ALL.iter().position(|other| *other == kind).unwrap();
        with(which as u8, lines(name.as_bytes(), payload))
    };
    let config = serde_json::to_vec(&MeshConfig::new(domain(), MeshMode::Prod)).unwrap();
    let agent = agent_resource();
    let generation = json!({"kind": "generation", "agent": "writer", "below": 3, "expires": NOW + 60}).to_string();
    let endpoint =
        json!({"agent": "writer", "instance": "018f7c3e-0000-7000-8000-000000000001", "address": "10.0.0.1:15006"});
    let policy = json!({"name": "p", "attach": {"kind": "mesh"},
        "rego": "package aip.policy.p\n\nrules contains {\"rule\": \"r\", \"verdict\": \"allow\", \"reason\": \"\"} if true\n"});
    let traffic = serde_json::to_vec(&Traffic::defaults()).unwrap();
    let roots = json!({"trust_domain": "aip.internal", "roots": [MESH.root.clone()]}).to_string();
    vec![
        ("mesh_config", of(Kind::MeshConfig, "mesh", &config)),
        ("agent", of(Kind::Agent, "writer", &agent.payload)),
        ("agent_of_another_name", of(Kind::Agent, "editor", &agent.payload)),
        (
            "revocation",
            of(Kind::Revocation, "generation/writer", generation.as_bytes()),
        ),
        (
            "endpoint",
            of(
                Kind::Endpoint,
                "writer/018f7c3e-0000-7000-8000-000000000001",
                endpoint.to_string().as_bytes(),
            ),
        ),
        ("policy", of(Kind::Policy, "p", policy.to_string().as_bytes())),
        ("traffic", of(Kind::Traffic, "default", &traffic)),
        ("roots", of(Kind::TrustBundle, "aip.internal", roots.as_bytes())),
        ("deleted", with(0x80 | 6, lines(b"writer", b""))),
        ("unreadable", of(Kind::Agent, "writer", b"{\"name\":1}")),
    ]
}

/// What an agent claims of itself, as it is registered and served.
pub(crate) fn manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else {
        return false;
    };
    let agent = Agent {
        manifest: manifest.clone(),
        ..Agent::new(researcher())
    };
    let payload = serde_json::to_vec(&agent).unwrap();
    let said = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(serde_json::from_slice::<Manifest>(&said).unwrap(), manifest);
    let read = read::<Agent>("researcher", 1, &payload);
    assert_eq!(
        read.is_ok(),
        agent.validate().is_empty() && payload.len() <= MAX_PAYLOAD_BYTES
    );
    read.is_ok_and(|read| read == agent)
}

pub(crate) fn manifest_seeds() -> Seeds {
    let full = json!({"agent_version": "1.2", "trust_level": "trusted", "scopes": ["repo:read"],
        "capabilities": {"idempotency": true, "reversibility": "full", "undo_window": "24h", "sla_latency": "2000ms", "rate_limit": 60},
        "privacy_contract": {"retention": "ephemeral", "storage_location": "EU"}});
    vec![
        ("full", full.to_string().into_bytes()),
        ("empty", b"{}".to_vec()),
        ("other_word", br#"{"trust_level":"excellent"}"#.to_vec()),
        ("unknown_key", br#"{"attestation":{}}"#.to_vec()),
        (
            "null",
            br#"{"agent_version":null,"capabilities":{"rate_limit":null}}"#.to_vec(),
        ),
    ]
}

struct Files {
    data: TempDir,
    runtime: TempDir,
    cache: Cache,
}

thread_local! {
    static FILES: RefCell<Option<Files>> = const { RefCell::new(None) };
}

/// The cache of what was pushed: first byte 0, what whoever writes the data directory puts in its place; 1, in the place of its
/// note; else resources, each behind its length.
pub(crate) fn config_cache(bytes: &[u8]) -> bool {
    let (mode, rest) = first(bytes);
    FILES.with_borrow_mut(|files| {
        let files = files.get_or_insert_with(|| {
            let (data, runtime) = (in_memory(), in_memory());
            let cache = Cache::new(data.path(), runtime.path(), Arc::new(SealingKey::generate().unwrap()));
            Files { data, runtime, cache }
        });
        match mode {
            0 | 1 => !is_replaced(files, mode == 0, rest),
            _ => is_kept(files, rest),
        }
    })
}

/// Whether other bytes in the place of the cache, or of its note, are loaded.
fn is_replaced(files: &Files, cache: bool, bytes: &[u8]) -> bool {
    let kept = [agent_resource()];
    files.cache.store(3, kept.iter()).unwrap();
    let load = || files.cache.load();
    assert_eq!(load().unwrap(), (3, kept.to_vec()));
    let paths = match cache {
        true => ["config.cache", "config.cache.1"]
            .map(|name| files.data.path().join(name))
            .to_vec(),
        false => vec![files.runtime.path().join("config.floor")],
    };
    let before: Vec<_> = paths
        .iter()
        .map(|path| std::fs::read(path).unwrap_or_default())
        .collect();
    paths.iter().for_each(|path| std::fs::write(path, bytes).unwrap());
    let same = before.iter().any(|before| before == bytes);
    assert!(same || load().is_err(), "a cache that was replaced is loaded");
    paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
    true
}

/// What is stored is what is loaded, also where it is not what it should be: signatures are looked at afterwards.
fn is_kept(files: &Files, mut bytes: &[u8]) -> bool {
    let mut resources = Vec::new();
    while let (false, Ok(resource)) = (bytes.is_empty(), wire::Resource::decode_length_delimited(&mut bytes)) {
        resources.push(resource);
    }
    files.cache.store(4, resources.iter()).unwrap();
    assert_eq!(files.cache.load().unwrap(), (4, resources.clone()));
    let mut world = World::new(MESH.origin(), MESH.trust().clone().shared());
    let push = wire::ConfigResponse {
        resources,
        ..Default::default()
    };
    world.apply(&push, NOW);
    world.resources().map(AsRef::as_ref).for_each(is_signed);
    world.resources().next().is_some()
}

pub(crate) fn config_cache_seeds() -> Seeds {
    let resource = agent_resource().encode_length_delimited_to_vec();
    vec![
        ("cache", with(0, &resource)),
        ("note", with(1, b"{\"revision\":9}")),
        ("resources", with(2, [resource.clone(), resource.clone()].concat())),
        ("cut", with(2, &resource[..resource.len() - 3])),
        ("empty", with(2, [])),
    ]
}
