//! The two ends of a hop: what the caller's sidecar sent is what the callee's received, and back.

use serde::{Deserialize, Serialize};

use crate::record::{End, Passed};

/// Where the two ends of a hop say different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The digests can't be compared: each end used another salt.
    Salt,
    /// Byte counts of the request, between the sidecars.
    RequestBytes,
    /// Equal counts, other bytes.
    RequestDigest,
    /// Byte counts of the response, between the sidecars.
    ResponseBytes,
    /// Equal counts, other bytes.
    ResponseDigest,
}

impl Difference {
    /// What it means.
    pub const fn means(self) -> &'static str {
        match self {
            Self::Salt => "the two ends digested with different salts, so one of them made its own",
            Self::RequestBytes => "what the caller's sidecar sent is not as long as what the callee's received",
            Self::RequestDigest => "the request that the callee's sidecar received is not the one that was sent",
            Self::ResponseBytes => "what the callee's sidecar sent back is not as long as what the caller's received",
            Self::ResponseDigest => "the response that the caller's sidecar received is not the one that was sent",
        }
    }
}

/// Compares what both ends of one hop recorded. Where an end was cut off, the receiver may have less than was sent, and
/// never more.
pub fn compare(caller: &End, callee: &End) -> Vec<Difference> {
    let salted = caller.salt == callee.salt || caller.salt.is_empty() || callee.salt.is_empty();
    let mut found = Vec::new();
    if !salted {
        found.push(Difference::Salt);
    }
    // An answer may come before the request is read, and then a part of the request is lost on the way; a response that
    // both ends saw complete is whole.
    let answered = [caller, callee]
        .iter()
        .all(|end| end.end == "complete" && end.blame.is_empty());
    let ways = [
        (
            caller.request_out,
            callee.request_in,
            false,
            Difference::RequestBytes,
            Difference::RequestDigest,
        ),
        (
            callee.response_out,
            caller.response_in,
            answered,
            Difference::ResponseBytes,
            Difference::ResponseDigest,
        ),
    ];
    for (sent, received, whole, bytes, digest) in ways {
        // Who has a digest has seen the body's end.
        let ended = whole || received.digest.is_some();
        if received.bytes > sent.bytes || (ended && received.bytes != sent.bytes) {
            found.push(bytes);
        } else if salted && received.bytes == sent.bytes && other(sent, received, whole) {
            found.push(digest);
        }
    }
    found
}

/// Both have a digest, and not the same; or, of a body that came whole, only one has: it vouches for nothing.
fn other(sent: Passed, received: Passed, whole: bool) -> bool {
    match (sent.digest, received.digest) {
        (Some(a), Some(b)) => a != b,
        (None, None) => false,
        _ => whole && sent.bytes > 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Direction;
    use aip_api::Digest;
    use aip_api::id::DecisionId;

    fn end(request: &[u8], response: &[u8]) -> End {
        let passed = |bytes: &[u8]| Passed {
            bytes: bytes.len() as u64,
            digest: (!bytes.is_empty()).then(|| Digest::of_parts(&[b"salt", bytes])),
        };
        End {
            id: DecisionId::fresh(),
            hop: None,
            direction: Direction::Outbound,
            status: 200,
            end: "complete".into(),
            blame: String::new(),
            other: String::new(),
            ms: 1,
            salt: "00".repeat(16),
            request_in: passed(request),
            request_out: passed(request),
            response_in: passed(response),
            response_out: passed(response),
        }
    }

    #[test]
    fn ends_that_saw_the_same_agree_and_every_difference_is_named() {
        let ours = end(b"question", b"answer");
        assert_eq!(compare(&ours, &end(b"question", b"answer")), []);
        assert_eq!(
            compare(&ours, &end(b"questiom", b"answer")),
            [Difference::RequestDigest]
        );
        assert_eq!(compare(&ours, &end(b"quest", b"answer")), [Difference::RequestBytes]);
        assert_eq!(
            compare(&ours, &end(b"question", b"answes")),
            [Difference::ResponseDigest]
        );
        assert_eq!(compare(&ours, &end(b"question", b"")), [Difference::ResponseBytes]);
        let mut early = end(b"que", b"answer");
        early.request_in.digest = None;
        assert_eq!(compare(&ours, &early), [], "it answered before it had read everything");
        let mut silent = end(b"question", b"answer");
        silent.response_out.digest = None;
        assert_eq!(
            compare(&ours, &silent),
            [Difference::ResponseDigest],
            "what nobody vouches for"
        );
        let salted = End {
            salt: "01".repeat(16),
            ..end(b"question", b"answer")
        };
        assert_eq!(compare(&ours, &salted), [Difference::Salt]);
    }

    #[test]
    fn a_hop_that_was_cut_may_have_lost_bytes_and_never_won_any() {
        let cut = |request: &[u8], response: &[u8]| {
            let mut cut = end(request, response);
            cut.end = "killed".into();
            cut.request_in.digest = None;
            cut.response_in.digest = None;
            cut
        };
        let caller = cut(b"question", b"ans");
        assert_eq!(compare(&caller, &cut(b"question", b"answer")), []);
        assert_eq!(compare(&caller, &cut(b"que", b"answer")), []);
        assert_eq!(
            compare(&caller, &cut(b"question!", b"answer")),
            [Difference::RequestBytes]
        );
        assert_eq!(compare(&caller, &cut(b"question", b"")), [Difference::ResponseBytes]);
    }
}
