//! JSON bodies: read whole, and every mistake of form in them is named by its field.

use std::collections::BTreeSet;
use std::time::Duration;

use aip_api::problem::FieldError;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::ApiError;
use crate::refusal::{Reason, Refusal};

/// How long a body may take to arrive: 1 MiB on a bad line.
pub(in crate::admin) const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// Mistakes of one body that are named: each is found by reading the body once more.
const MAX_MISTAKES: usize = 32;

/// A JSON body, read whole.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let arrived = tokio::time::timeout(BODY_DEADLINE, Bytes::from_request(request, state)).await;
        let bytes = arrived
            .map_err(|_| Refusal::from(Reason::BodyTimeout))?
            .map_err(|rejection| {
                let large = rejection.status() == StatusCode::PAYLOAD_TOO_LARGE;
                Refusal::from(if large { Reason::TooLarge } else { Reason::Malformed })
            })?;
        // An empty body is an empty object: POSTs whose fields are all optional need none.
        let bytes = if bytes.is_empty() {
            Bytes::from_static(b"{}")
        } else {
            bytes
        };
        Ok(Self(read(&bytes)?))
    }
}

/// The document in these bytes.
///
/// # Errors
/// No JSON, or not of this form: then with every mistake by its field, except that of one list the first is named.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut json);
    let error = match read {
        // What has fields would also be read from a list of their values, by place.
        Ok(_) if bytes.trim_ascii_start().first() != Some(&b'{') => {
            return Err(Refusal::new(Reason::Malformed, "the body: it is not a JSON object"));
        }
        Ok(document) => match json.end() {
            Ok(()) => return Ok(document),
            Err(error) => return Err(Refusal::new(Reason::Malformed, format!("the body: {error}"))),
        },
        Err(error) => error,
    };
    let mut refusal = Refusal::new(Reason::Malformed, format!("the body: {error}"));
    refusal.errors = mistakes::<T>(bytes);
    Err(refusal)
}

/// Reads again and again, each time without what was wrong the time before. What is no JSON has no fields.
fn mistakes<T: DeserializeOwned>(bytes: &[u8]) -> Vec<FieldError> {
    let Ok(mut document) = serde_json::from_slice::<Value>(bytes) else {
        return Vec::new();
    };
    let (mut found, mut taken) = (Vec::new(), BTreeSet::new());
    while found.len() < MAX_MISTAKES {
        let Err(error) = serde_path_to_error::deserialize::<_, T>(&document) else {
            break;
        };
        let (place, message) = (error.path().to_string(), error.inner().to_string());
        let field = match missing(&message) {
            Some(name) if place == "." => name.to_owned(),
            Some(name) => format!("{place}.{name}"),
            None => place,
        };
        // What was taken away for a mistake is no second one for being missing. And the whole is no field.
        if field != "." && !taken.contains(&field) {
            found.push(FieldError::new(&field, message));
        }
        taken.insert(field);
        match take(&mut document, error.path()) {
            Some(place) => taken.insert(place),
            None => break,
        };
    }
    found
}

/// The field that serde says is missing.
fn missing(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.split('`').next()
}

/// Takes away what lies there, or the list that it is in; answers where that was. The whole can't be taken.
fn take(document: &mut Value, path: &Path) -> Option<String> {
    let keys = path.iter().map_while(|segment| match segment {
        Segment::Map { key } => Some(key.as_str()),
        _ => None,
    });
    let keys: Vec<&str> = keys.collect();
    let (last, above) = keys.split_last()?;
    let object = above.iter().try_fold(document, |value, key| value.get_mut(*key))?;
    object.as_object_mut()?.remove(*last)?;
    Some(keys.join("."))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aip_api::resource::MeshConfig;
    use serde::Deserialize;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_not_waited_for() {
        let begun = tokio::time::Instant::now();
        let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        let request = Request::new(axum::body::Body::from_stream(never));
        let refused = Body::<Value>::from_request(request, &()).await.unwrap_err();
        assert_eq!(refused.0.reason(), "body_timeout");
        assert_eq!(begun.elapsed().as_secs(), BODY_DEADLINE.as_secs());
    }

    fn fields(refusal: &Refusal) -> Vec<&str> {
        refusal.errors.iter().map(|error| error.field.as_str()).collect()
    }

    #[test]
    fn every_mistake_of_form_is_named_by_its_field() {
        let text = r#"{
            "trust_domain": "aip.internal", "mode": 7, "egres": [],
            "egress": [{"host": "a.example", "port": "443"}, {"host": 1, "port": 443}],
            "svid_ttl_seconds": "long", "audit": {"flush_ms": -1, "durability": "some"},
            "kill": {"webhook": {}}
        }"#;
        let refusal = read::<MeshConfig>(text.as_bytes()).unwrap_err();
        assert_eq!(refusal.reason(), "malformed");
        let mut found = fields(&refusal);
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "audit.durability",
                "audit.flush_ms",
                "egres",
                "egress[0].port",
                "kill.webhook.url",
                "mode",
                "svid_ttl_seconds",
            ],
            "{refusal:?}"
        );
        assert!(
            refusal.detail.contains("mode: ") && refusal.detail.contains("line 2"),
            "{refusal:?}"
        );
    }

    #[test]
    fn what_is_missing_is_a_field_too_and_no_json_has_none() {
        let refusal = read::<MeshConfig>(b"{}").unwrap_err();
        assert_eq!(fields(&refusal), ["trust_domain"], "{refusal:?}");
        for text in ["{", "", "[]", "{} {}", "7"] {
            let refusal = read::<MeshConfig>(text.as_bytes()).unwrap_err();
            assert_eq!(
                (refusal.reason(), fields(&refusal).len()),
                ("malformed", 0),
                "{text}: {refusal:?}"
            );
        }
        let twice = r#"{"trust_domain": "a.b", "trust_domain": "c.d", "mode": "dev"}"#;
        assert!(read::<MeshConfig>(twice.as_bytes()).is_err());
    }

    #[test]
    fn a_list_is_no_document_also_where_its_values_would_fit() {
        #[derive(Debug, Deserialize)]
        struct Both {
            serial: Option<String>,
            reason: Option<String>,
        }
        let read = |text: &str| read::<Both>(text.as_bytes());
        let both = read("\n {\"serial\": \"1f\"}").unwrap();
        assert_eq!((both.serial.as_deref(), both.reason), (Some("1f"), None));
        for text in ["[null, null]", " [\"1f\", \"why\"]"] {
            assert_eq!(read(text).unwrap_err().reason(), "malformed", "{text}");
        }
    }

    #[test]
    fn mistakes_without_end_are_not_looked_for_without_end() {
        #[derive(Debug, Deserialize)]
        struct Wide(#[expect(dead_code, reason = "only read")] BTreeMap<String, u64>);
        let wide: BTreeMap<String, &str> = (0..100).map(|n| (format!("f{n}"), "x")).collect();
        let text = serde_json::to_vec(&wide).unwrap();
        assert_eq!(read::<Wide>(&text).unwrap_err().errors.len(), MAX_MISTAKES);
    }
}
