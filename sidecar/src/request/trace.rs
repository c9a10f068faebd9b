//! W3C trace context: a valid one is carried on with a span of this hop, another is replaced. And how many hops a trace
//! has by now, as the sidecars counted them.

use aip_api::id::{DecisionId, HopId};
use dashmap::DashMap;
use http::{HeaderMap, HeaderName};

use super::call::once;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace that a request belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    /// 32 hex digits.
    pub(crate) id: String,
    flags: [u8; 2],
    /// Whether it came with the request; another's state is dropped with it.
    carried: bool,
}

fn is_hex(text: &str, len: usize) -> bool {
    let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    text.len() == len && hex && text.bytes().any(|b| b != b'0')
}

/// Trace id and flags of a `traceparent` (Trace Context level 2, section 3.2).
fn parse(value: &str) -> Option<Trace> {
    let mut parts = value.splitn(5, '-');
    let (version, id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let known = version == "00" && parts.next().is_none();
    let later = version != "00" && version != "ff" && version.len() == 2 && is_hex(version, 2);
    let flags: [u8; 2] = flags.as_bytes().try_into().ok()?;
    let lower = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
    let valid = (known || later) && is_hex(id, 32) && is_hex(parent, 16) && flags.iter().all(lower);
    valid.then(|| Trace {
        id: id.to_owned(),
        flags,
        carried: true,
    })
}

impl Trace {
    fn key(&self) -> u128 {
        // 32 hex digits, always.
        u128::from_str_radix(&self.id, 16).unwrap_or_default()
    }

    /// The trace in `headers`, or a new one named after the hop: a UUIDv7 is as unique as a trace id must be.
    pub(crate) fn of(headers: &HeaderMap, hop: &HopId) -> Self {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let one = values.next().filter(|_| values.next().is_none());
        let carried = one.and_then(|v| v.to_str().ok()).and_then(parse);
        carried.unwrap_or_else(|| Self {
            id: hop.to_string().replace('-', ""),
            flags: *b"01",
            carried: false,
        })
    }

    /// Writes it into the head of the request onwards, with a span named after the decision.
    pub(crate) fn write(&self, headers: &mut HeaderMap, decision: &DecisionId) {
        let decision = decision.to_string();
        // The last 16 of 32 digits: random bits, and never all zero (the variant is set).
        let span: String = decision.chars().filter(|c| *c != '-').skip(16).collect();
        let flags = String::from_utf8_lossy(&self.flags);
        headers.insert(TRACEPARENT, once(&format!("00-{}-{span}-{flags}", self.id)));
        if !self.carried {
            headers.remove(TRACESTATE);
        }
    }
}

/// The traces of the calls that this sidecar's agent works on, and how many hops each has: a call of the agent in one of
/// them is one more. Bounded by the requests that are in flight, since each is here only for as long as it is.
///
/// An agent that drops the trace begins a new one, and its count with it; nothing that it writes can raise or lower one.
#[derive(Debug, Default)]
pub(crate) struct Traces(DashMap<u128, Way>);

/// Of one trace.
#[derive(Debug, Clone, Copy)]
struct Way {
    hops: u32,
    /// How many calls in flight belong to it.
    calls: u32,
}

impl Traces {
    /// Notes a call that came in; the key takes it away again.
    pub(crate) fn enter(&self, trace: &Trace, hops: u32) -> u128 {
        let key = trace.key();
        let mut way = self.0.entry(key).or_insert(Way { hops, calls: 0 });
        way.hops = way.hops.max(hops);
        way.calls += 1;
        key
    }

    pub(crate) fn leave(&self, key: u128) {
        self.0.remove_if_mut(&key, |_, way| {
            way.calls = way.calls.saturating_sub(1);
            way.calls == 0
        });
    }

    /// The number of a hop that goes out.
    pub(crate) fn next(&self, trace: &Trace) -> u32 {
        if !trace.carried {
            return 1;
        }
        let way = self.0.get(&trace.key());
        way.map_or(1, |way| way.hops.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, value.parse().unwrap());
        headers.insert(TRACESTATE, "a=1".parse().unwrap());
        headers
    }

    #[test]
    fn a_valid_trace_goes_on_with_a_span_of_ours() {
        let mut headers = headers(GOOD);
        let trace = Trace::of(&headers, &HopId::fresh());
        trace.write(&mut headers, &DecisionId::fresh());
        let written = headers[TRACEPARENT].to_str().unwrap().to_owned();
        assert!(written.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && written.ends_with("-01"));
        assert_ne!(written, GOOD);
        assert!(parse(&written).is_some() && headers.contains_key(TRACESTATE));
    }

    #[test]
    fn an_invalid_trace_is_replaced_with_its_state() {
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            let mut headers = headers(bad);
            let hop = HopId::fresh();
            let trace = Trace::of(&headers, &hop);
            assert_eq!(trace.id, hop.to_string().replace('-', ""), "{bad}");
            trace.write(&mut headers, &DecisionId::fresh());
            assert!(parse(headers[TRACEPARENT].to_str().unwrap()).is_some());
            assert!(!headers.contains_key(TRACESTATE));
        }
    }

    #[test]
    fn hops_are_counted_while_their_calls_are_open() {
        let (traces, hop) = (Traces::default(), HopId::fresh());
        let carried = Trace::of(&headers(GOOD), &hop);
        assert_eq!(traces.next(&carried), 1);
        let (first, second) = (traces.enter(&carried, 1), traces.enter(&carried, 3));
        assert_eq!(traces.next(&carried), 4);
        assert_eq!(traces.next(&Trace::of(&HeaderMap::new(), &hop)), 1, "another trace");
        traces.leave(first);
        assert_eq!(traces.next(&carried), 4);
        traces.leave(second);
        assert_eq!(traces.next(&carried), 1);
        assert!(traces.0.is_empty());
    }
}
