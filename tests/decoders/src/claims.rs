//! What a process says of itself once it is known: that its agent drifted, or that it is the agent.

use std::sync::LazyLock;

use aip_api::Digest;
use aip_api::evidence::{DRIFT_TYP, Drift, MAX_DRIFT_BYTES, MAX_DRIFTED_NAMED, MAX_RUN_BYTES};
use aip_policy::Direction;
use aip_runtime::x509::{self, PeerIdentity};
use aip_sidecar::reading;
use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use http::header::PROXY_AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use crate::Seeds;
use crate::mesh::{FRESH, MESH, NOW, SVID, is_signed, researcher};
use crate::split::{first, lines, with};

/// Whose connection a report comes on.
static PEER: LazyLock<PeerIdentity> =
    LazyLock::new(|| x509::peer_identity(&MESH.leaf, &MESH.intermediate, MESH.trust(), NOW).unwrap());

/// A drift report. First byte 0: a JWS as it is. Else: claims that the SVID's key signs.
pub(crate) fn drift(bytes: &[u8]) -> bool {
    let (mode, rest) = first(bytes);
    let statement = match (mode, std::str::from_utf8(rest)) {
        (0, Ok(text)) => text.to_owned(),
        (0, Err(_)) => return false,
        _ => SVID.sign(DRIFT_TYP, rest),
    };
    let Ok(drift) = aip_control_plane::reading::drift(&statement, &PEER, NOW) else {
        return false;
    };
    let point = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &*PEER.point);
    assert!(is_signed(&statement, |message, signature| point
        .verify(message, signature)
        .is_ok()));
    assert_eq!(
        (&drift.agent, drift.generation),
        (&researcher(), PEER.result.generation)
    );
    assert!(statement.len() <= MAX_DRIFT_BYTES && drift.v == 1);
    assert!(drift.paths.len() <= MAX_DRIFTED_NAMED && drift.paths.len() as u64 <= drift.changed);
    assert!((1..=MAX_RUN_BYTES).contains(&drift.run.len()));
    assert!(drift.iat.abs_diff(NOW) <= 300 && drift.at <= NOW + 600);
    let again = serde_json::to_vec(&drift).unwrap();
    assert_eq!(serde_json::from_slice::<Drift>(&again).unwrap(), drift);
    true
}

fn drifted() -> Drift {
    Drift {
        v: 1,
        agent: researcher(),
        generation: 1,
        was: Digest::sha256(b"code"),
        found: Some(Digest::sha256(b"other code")),
        measurement: None,
        files: 2,
        run: "018f7c3e-0000-7000-8000-000000000001".into(),
        paths: vec!["agent.py".into(), "prompts/ü\n.txt".into()],
        changed: 2,
        at: NOW - 1,
        iat: NOW,
    }
}

pub(crate) fn drift_seeds() -> Seeds {
    let json = |drift: &Drift| serde_json::to_vec(drift).unwrap();
    let changed = |change: fn(&mut Drift)| {
        let mut drift = drifted();
        change(&mut drift);
        with(1, json(&drift))
    };
    let measured = r#""measurement":{"agent":"researcher","kind":"files","code":"sha256:00"},"files""#;
    let measured = String::from_utf8(json(&drifted()))
        .unwrap()
        .replacen("\"files\"", measured, 1);
    vec![
        ("signed", with(0, SVID.sign(DRIFT_TYP, &json(&drifted())))),
        ("claims", changed(|_| {})),
        (
            "unreadable",
            changed(|drift| (drift.found, drift.paths, drift.changed) = (None, vec![], 9)),
        ),
        ("measured", with(1, measured)),
        ("other_agent", changed(|drift| drift.agent = "writer".parse().unwrap())),
        ("other_generation", changed(|drift| drift.generation = u64::MAX)),
        ("no_run", changed(|drift| drift.run.clear())),
        ("more_named_than_changed", changed(|drift| drift.changed = 1)),
        ("late", changed(|drift| drift.iat -= 301)),
        ("to_come", changed(|drift| drift.at = u64::MAX)),
        ("other_key", with(0, FRESH.sign(DRIFT_TYP, &json(&drifted())))),
        ("other_type", with(0, SVID.sign("jwt", &json(&drifted())))),
    ]
}

/// The secret of a proxy's URL, with what separates it from the user.
const SECRET: &str = "s3:cret";

/// A line for each `Proxy-Authorization` of a request that the agent sends.
pub(crate) fn proxy_secret(bytes: &[u8]) -> bool {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(4) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(PROXY_AUTHORIZATION, value);
        }
    }
    let shown = reading::shows_secret(&headers, SECRET);
    let read = headers
        .get(PROXY_AUTHORIZATION)
        .and_then(|value| password(value.as_bytes()));
    assert_eq!(shown, read.as_deref() == Some(SECRET.as_bytes()), "{read:?}");
    assert!(
        !shown || !reading::shows_secret(&headers, "s3"),
        "it is another secret, too"
    );
    let cleaned = reading::clean(&mut headers, Direction::Outbound);
    assert!(
        cleaned.is_ok() && !headers.contains_key(PROXY_AUTHORIZATION),
        "it goes on"
    );
    shown
}

/// The password of basic credentials (RFC 7617) by a reader that takes any Base64, and then asks whether it is the one that
/// everybody writes.
fn password(value: &[u8]) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let blank = value.iter().position(|byte| *byte == b' ')?;
    let encoded = value[blank..].trim_ascii();
    let pair = GeneralPurpose::new(&ALPHABET, config).decode(encoded).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    let usual = value[..blank].eq_ignore_ascii_case(b"basic") && STANDARD.encode(&pair).as_bytes() == encoded;
    usual.then(|| pair[colon + 1..].to_vec())
}

pub(crate) fn proxy_secret_seeds() -> Seeds {
    let basic = |scheme: &str, pair: &str| format!("{scheme} {}", STANDARD.encode(pair)).into_bytes();
    let good = basic("Basic", "agent:s3:cret");
    vec![
        ("good", good.clone()),
        ("no_user", basic("bASIC ", ":s3:cret")),
        ("other_scheme", basic("Bearer", "agent:s3:cret")),
        ("other_secret", basic("Basic", "agent:s3:crew")),
        ("longer", basic("Basic", "agent:s3:cret ")),
        ("no_colon", basic("Basic", "s3")),
        (
            "no_padding",
            good.strip_suffix(b"=").unwrap_or(&good[..good.len() - 1]).to_vec(),
        ),
        ("in_the_clear", b"Basic agent:s3:cret".to_vec()),
        ("second", lines(&basic("Basic", "agent:x"), &good)),
        ("empty", Vec::new()),
    ]
}
