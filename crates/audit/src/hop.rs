//! The two ends of a hop: what the caller's sidecar sent is what the callee's received, and back; and both speak of the
//! same call with the same outcome.

mod told;

use serde::{Deserialize, Serialize};

pub use told::{Ending, Mark, Said, Told, Verdict};

/// Where the two ends of a hop say different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The HTTP method.
    Method,
    /// The path.
    Path,
    /// The protocol's own method, where both name one.
    Call,
    /// The tool, where both name one.
    Tool,
    /// The status that the callee's sidecar gave is not the one that the caller's passed on.
    Status,
    /// The digests can't be compared: each end used another salt.
    Salt,
    /// Byte counts of the request, between the sidecars.
    RequestBytes,
    /// Equal counts, other bytes; or a body that one end saw whole and the other does not vouch for.
    RequestDigest,
    /// Byte counts of the response, between the sidecars.
    ResponseBytes,
    /// As [`Self::RequestDigest`], of the response.
    ResponseDigest,
}

impl Difference {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Path => "path",
            Self::Call => "call",
            Self::Tool => "tool",
            Self::Status => "status",
            Self::Salt => "salt",
            Self::RequestBytes => "request_bytes",
            Self::RequestDigest => "request_digest",
            Self::ResponseBytes => "response_bytes",
            Self::ResponseDigest => "response_digest",
        }
    }

    /// What it means.
    pub const fn means(self) -> &'static str {
        match self {
            Self::Method => "each end recorded another HTTP method",
            Self::Path => "each end recorded another path",
            Self::Call => "each end recorded another call of the protocol",
            Self::Tool => "each end recorded another tool",
            Self::Status => "the callee's sidecar recorded another status than the one that reached the caller's",
            Self::Salt => "the two ends digested with different salts, so one of them made its own",
            Self::RequestBytes => "what the caller's sidecar sent is not as long as what the callee's received",
            Self::RequestDigest => "the request that the callee's sidecar received is not the one that was sent",
            Self::ResponseBytes => "what the callee's sidecar sent back is not as long as what the caller's received",
            Self::ResponseDigest => "the response that the caller's sidecar received is not the one that was sent",
        }
    }
}

/// Compares what both ends of one hop recorded. Where an end was cut off, the receiver may have less than was sent, and
/// never more; whoever says that it saw a body whole is held to that, however the other end says that the hop ended.
pub fn compare(caller: &Told, callee: &Told) -> Vec<Difference> {
    let mut found = same_call(&caller.said, &callee.said);
    if !same_status(caller, callee) {
        found.push(Difference::Status);
    }
    let salted = same_salt(caller, callee);
    if !salted {
        found.push(Difference::Salt);
    }
    // An answer may come before the request is read, and then a part of the request is lost on the way; a response that
    // both ends saw complete is whole.
    let answered = caller.is_whole() && callee.is_whole();
    let upgraded = caller.said.is_switch() && callee.said.is_switch();
    let ways = [
        (
            (caller.request, callee.request, false),
            (Difference::RequestBytes, Difference::RequestDigest),
        ),
        (
            (callee.response, caller.response, answered),
            (Difference::ResponseBytes, Difference::ResponseDigest),
        ),
    ];
    for ((sent, received, whole), (bytes, digest)) in ways {
        // Who has a digest has seen the body's end.
        let ended = whole || received.digest.is_some();
        if received.bytes > sent.bytes || (ended && received.bytes != sent.bytes) {
            found.push(bytes);
        } else if salted && ended {
            let same = match (sent.digest, received.digest) {
                (Some(sent), Some(received)) => sent == received,
                (None, None) => received.bytes == 0 || upgraded,
                // The two ways of a switched connection end by themselves: one may be cut where the other was done.
                (None, Some(_)) => upgraded && !whole,
                (Some(_), None) => false,
            };
            if !same {
                found.push(digest);
            }
        }
    }
    found
}

/// Whether a body passed that was held against nothing, since an end did not see it to its end.
pub fn unproven(caller: &Told, callee: &Told) -> bool {
    let ways = [(caller.request, callee.request), (callee.response, caller.response)];
    ways.iter()
        .any(|(sent, received)| sent.bytes > 0 && (sent.digest.is_none() || received.digest.is_none()))
}

/// What both ends can know of the call: one that did not look into the body names no call and no tool.
pub(crate) fn same_call(caller: &Said, callee: &Said) -> Vec<Difference> {
    let both = |a: Mark, b: Mark| a.is_there() && b.is_there() && a != b;
    let protocol = caller.protocol == callee.protocol;
    let differs = [
        (caller.method != callee.method, Difference::Method),
        (caller.path != callee.path, Difference::Path),
        (protocol && both(caller.call, callee.call), Difference::Call),
        (protocol && both(caller.tool, callee.tool), Difference::Tool),
    ];
    differs
        .into_iter()
        .filter_map(|(is, what)| is.then_some(what))
        .collect()
}

/// Compares what a caller recorded with a refusal that the callee's sidecar recorded without the hop, and with the status and
/// the bytes of its answer where that is there.
pub(crate) fn compare_refused(caller: &Told, refusal: &Said, answer: Option<(u16, u64)>) -> Vec<Difference> {
    let passed_on = caller.ending != Ending::Cut && caller.status != 0;
    let response = caller.response;
    // A switch comes as CONNECT, which is read as the GET that it stands for after the first refusals.
    let method = caller.said.method != refusal.method && !caller.said.is_switch();
    let status = answer.is_some_and(|(status, _)| passed_on && status != caller.status);
    let bytes =
        answer.is_some_and(|(_, sent)| response.bytes > sent || (response.digest.is_some() && response.bytes != sent));
    let differs = [
        (method, Difference::Method),
        (caller.said.path != refusal.path, Difference::Path),
        (status, Difference::Status),
        (bytes, Difference::ResponseBytes),
    ];
    differs
        .into_iter()
        .filter_map(|(is, what)| is.then_some(what))
        .collect()
}

/// What a caller's sidecar passed on is what the callee's gave; where it answered itself, it says whose doing that was.
fn same_status(caller: &Told, callee: &Told) -> bool {
    /// A switch of protocols is 101 in HTTP/1.1 and 200 in HTTP/2 (RFC 8441 section 4).
    const SWITCHED: [u16; 2] = [101, 200];
    /// What stands for a success that is no switch, on the way between sidecars.
    const NOT_SWITCHED: u16 = 421;
    let passed_on = matches!(caller.ending, Ending::Complete | Ending::Aborted) && !caller.said.refused;
    if !passed_on || caller.status == 0 || caller.status == callee.status {
        return true;
    }
    let switched = SWITCHED.contains(&caller.status) && SWITCHED.contains(&callee.status);
    let success = callee.status == NOT_SWITCHED && (200..300).contains(&caller.status);
    caller.said.is_switch() && callee.said.is_switch() && (switched || success)
}

/// Who has digested something has the salt.
fn same_salt(caller: &Told, callee: &Told) -> bool {
    let digested = |end: &Told| end.request.digest.is_some() || end.response.digest.is_some();
    let lacks = |end: &Told| !end.salt.is_there() && !digested(end);
    caller.salt == callee.salt || lacks(caller) || lacks(callee)
}

#[cfg(test)]
mod tests;
