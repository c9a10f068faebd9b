//! Names and ids, as they stand in headers, certificates and messages.

use aip_api::id::{DecisionId, HopId};
use aip_api::resource::Kind;
use aip_api::{AgentName, Digest, SpiffeId, TrustDomain};
use aip_audit::record::End;
use aip_sidecar::reading;
use std::fmt::Display;
use std::str::FromStr;

use crate::mesh::domain;
use crate::{Seeds, text_of};

/// Text as each kind of name that there is.
pub(crate) fn names(bytes: &[u8]) -> bool {
    let text = text_of(bytes);
    let known = [
        is_name::<AgentName>(&text),
        is_name::<TrustDomain>(&text),
        is_name::<SpiffeId>(&text),
        is_name::<Digest>(&text),
        is_name::<HopId>(&text),
        is_name::<DecisionId>(&text),
    ];
    if let Ok(name) = text.parse::<AgentName>() {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        assert!((1..=63).contains(&text.len()) && text.bytes().all(plain));
        let host = format!("{}.{}.", name.as_str().to_uppercase(), domain());
        assert_eq!(domain().agent_of_host(&host), Some(name), "{host}");
    }
    if let Some(agent) = domain().agent_of_host(&text) {
        assert!(domain().owns_host(&text));
        assert!(text.eq_ignore_ascii_case(&format!("{agent}.{}", domain())) || text.ends_with('.'));
    }
    if reading::is_salt(&text) {
        assert!(text.len() == 32 && text == text.to_ascii_lowercase());
    }
    if let Ok(kind) = text.parse::<Kind>() {
        assert_eq!(Kind::from_wire(kind.to_wire() as i32), Some(kind));
    }
    let heard = End::heard(&text);
    assert!(text.starts_with(&heard) && heard.matches(';').count() <= 1, "{heard}");
    let instance = aip_control_plane::reading::instance(&text).is_ok();
    assert!(!instance || text.len() == 36);
    instance || known.contains(&true)
}

/// Whether it is a name, which then has one spelling.
fn is_name<T: FromStr + Display>(text: &str) -> bool {
    let Ok(name) = text.parse::<T>() else { return false };
    assert_eq!(name.to_string(), text, "it has two spellings");
    true
}

pub(crate) fn names_seeds() -> Seeds {
    let of = |text: &str| text.as_bytes().to_vec();
    vec![
        ("agent", of("researcher-2")),
        ("domain", of("aip.internal")),
        ("host", of("Researcher.AIP.internal.")),
        ("spiffe", of("spiffe://aip.internal/agent/researcher")),
        ("path", of("spiffe://aip.internal/agent/researcher/x")),
        ("hop", of("018f7c3e-0000-7000-8000-000000000001")),
        ("braces", of("{018f7c3e-0000-7000-8000-000000000001}")),
        ("digest", of(&Digest::sha256(b"x").to_string())),
        ("upper_case", of(&Digest::sha256(b"x").to_string().to_uppercase())),
        ("salt", of("00112233445566778899aabbccddeeff")),
        ("decision", of("018f7c3e-0000-7000-8000-000000000001;deny;callee")),
        ("kind", of("meshconfig")),
    ]
}
