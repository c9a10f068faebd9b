//! How a refusal is said: a problem document, a JSON-RPC error, or a gRPC status.

use aip_api::problem::{self, Problem};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, PROXY_AUTHENTICATE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::{Nature, Refusal, Refused};

/// The form in which a caller reads a refusal as one of its own calls.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum Form {
    /// RFC 9457.
    #[default]
    Problem,
    /// A JSON-RPC error with the request's id, in the refusal's own HTTP status. MCP asks intermediaries for an HTTP
    /// error; Python's client (2.3.0) reads the JSON-RPC error in it, the TypeScript client (2.4.0) fails the call with
    /// status and text. Neither takes a 403 for a reason to try an older version.
    JsonRpc(Value),
    /// The same in HTTP 200: A2A says so, and its clients read no body of another status.
    JsonRpcOk(Value),
    /// Trailers only: 200 with the status in the headers.
    Grpc,
}

/// gRPC status codes (grpc/doc/statuscodes.md).
const fn grpc_code(nature: Nature) -> u8 {
    match nature.status {
        400 => 3,
        401 | 407 => 16,
        403 => 7,
        404 => 5,
        408 | 504 => 4,
        409 => 10,
        429 => 8,
        _ => 14,
    }
}

/// Percent-encodes as gRPC wants its message (PROTOCOL-HTTP2.md, "Percent-Encoded").
fn grpc_message(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn document(refused: &Refused, decision: &str) -> Problem {
    let nature = refused.refusal.nature();
    let mut problem = Problem::new(nature.status, nature.reason, refused.to_string());
    // Where no request was heard, there is no decision to look for.
    problem.decision_id = Some(decision.to_owned()).filter(|decision| !decision.is_empty());
    problem.rule.clone_from(&refused.rule);
    problem
}

fn json_rpc(problem: &Problem, id: &Value) -> Value {
    // Codes from -32768 to -32000 are the specification's, and A2A's and MCP's below that; the rest is free (JSON-RPC
    // 2.0, section 5.1). An HTTP status can't be taken for one of theirs.
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": problem.status, "message": problem.detail, "data": problem}})
}

/// The whole answer.
pub(crate) fn answer(refused: &Refused, form: &Form, decision: &str) -> Response<Bytes> {
    let nature = refused.refusal.nature();
    let problem = document(refused, decision);
    let (status, content, body) = match form {
        Form::Problem => (nature.status, problem::CONTENT_TYPE, serde_json::to_vec(&problem)),
        Form::JsonRpc(id) => (
            nature.status,
            "application/json",
            serde_json::to_vec(&json_rpc(&problem, id)),
        ),
        Form::JsonRpcOk(id) => (200, "application/json", serde_json::to_vec(&json_rpc(&problem, id))),
        Form::Grpc => (200, "application/grpc", Ok(Vec::new())),
    };
    let mut response = Response::new(Bytes::from(body.unwrap_or_default()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
    if let Form::Grpc = form {
        headers.insert("grpc-status", HeaderValue::from(u16::from(grpc_code(nature))));
        if let Ok(message) = HeaderValue::from_str(&grpc_message(&problem.detail)) {
            headers.insert("grpc-message", message);
        }
    }
    if matches!(nature.status, 429 | 503) && nature.retryable {
        headers.insert(RETRY_AFTER, HeaderValue::from(refused.retry_after.unwrap_or(1)));
    }
    if refused.refusal == Refusal::ProxyAuth {
        headers.insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"aip\""));
    }
    response
}

/// The answer on a connection that is not HTTP/1.1 in our hands: written as it is, and then the end.
pub(crate) fn raw(refused: &Refused, decision: &str) -> Vec<u8> {
    let mut answer = answer(refused, &Form::Problem, decision);
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    let mut out = format!(
        "HTTP/1.1 {}\r\ncontent-length: {}\r\n",
        answer.status(),
        answer.body().len()
    )
    .into_bytes();
    for (name, value) in answer.headers() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(answer.body());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Refused {
        Refused {
            refusal: Refusal::PolicyDenied,
            detail: Some("not on Sundays – ever".into()),
            rule: Some("weekend".into()),
            retry_after: None,
        }
    }

    #[test]
    fn a_problem_names_decision_reason_and_rule() {
        let answer = answer(&denied(), &Form::Problem, "d-1");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/problem+json");
        let problem: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(
            (&problem["decision_id"], &problem["rule"]),
            (&json!("d-1"), &json!("weekend"))
        );
        assert_eq!(problem["reason"], "policy_denied");
        assert!(problem["detail"].as_str().unwrap().contains("not on Sundays"));
    }

    #[test]
    fn a_json_rpc_error_has_the_id_as_it_came() {
        for id in [json!(7), json!("seven")] {
            let answer = answer(&denied(), &Form::JsonRpc(id.clone()), "d-1");
            assert_eq!(answer.status(), 403);
            let body: Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!(
                (&body["id"], &body["error"]["data"]["decision_id"]),
                (&id, &json!("d-1"))
            );
        }
        assert_eq!(
            super::answer(&denied(), &Form::JsonRpcOk(json!(1)), "d-1").status(),
            200
        );
    }

    #[test]
    fn a_grpc_refusal_is_trailers_only() {
        let answer = answer(&denied(), &Form::Grpc, "d-1");
        assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, 0));
        assert_eq!(answer.headers()["grpc-status"], "7");
        let message = answer.headers()["grpc-message"].to_str().unwrap();
        assert!(message.contains("not on Sundays %E2%80%93 ever"), "{message}");
    }

    #[test]
    fn what_is_worth_another_try_says_when() {
        let answer = answer(&Refusal::Overloaded.into(), &Form::Problem, "d");
        assert_eq!(answer.headers()[RETRY_AFTER], "1");
        let raw = String::from_utf8(raw(&Refusal::TlsInsideTunnel.into(), "d")).unwrap();
        assert!(raw.starts_with("HTTP/1.1 400 Bad Request\r\n") && raw.contains("tls_inside_tunnel"));
        assert!(raw.contains("decision_id"), "{raw}");
        let unheard = String::from_utf8(super::raw(&Refusal::TlsInsideTunnel.into(), "")).unwrap();
        assert!(!unheard.contains("decision_id"), "{unheard}");
    }
}
