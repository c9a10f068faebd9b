//! W3C trace context: a valid one is carried on with a span of this hop, another is replaced. And how many hops a trace
//! has by now, as the sidecars counted them. Where spans are sent, whether this trace's are.

use std::fmt;

use aip_api::id::DecisionId;
use aip_runtime::spans::Sampler;
use dashmap::DashMap;
use http::{HeaderMap, HeaderName};

use super::call::once;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The flag of a trace whose spans are sent.
const SAMPLED: u8 = 1;
/// Flags that there are: sampled, and that the id is random (Trace Context level 2, section 3.2.2.3). Others are nobody's
/// to hand on.
const FLAGS: u8 = 3;

/// The id of a span: 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpanId([u8; 16]);

impl SpanId {
    /// The span of a decision: the last 16 of its 32 digits. Random bits, and never all zero (the variant is set).
    pub(crate) fn of(decision: &DecisionId) -> Self {
        let mut digits = [b'0'; 16];
        // Lengths that fit: it can't fail.
        let _ = hex::encode_to_slice(&decision.as_bytes()[8..], &mut digits);
        Self(digits)
    }

    pub(crate) fn as_str(&self) -> &str {
        // Hex digits, always.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    pub(crate) fn bytes(&self) -> [u8; 8] {
        u64::from_str_radix(self.as_str(), 16).unwrap_or_default().to_be_bytes()
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The trace that a request belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    /// 32 hex digits.
    pub(crate) id: String,
    /// The span that it comes from; none where the trace begins here, and another's state is dropped with its trace.
    pub(crate) parent: Option<SpanId>,
    flags: u8,
    /// Whether a span of this hop is sent.
    pub(crate) sampled: bool,
}

fn is_hex(text: &str, len: usize) -> bool {
    let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    text.len() == len && hex && text.bytes().any(|b| b != b'0')
}

/// Trace id, parent and flags of a `traceparent` (Trace Context level 2, section 3.2).
fn parse(value: &str) -> Option<Trace> {
    let mut parts = value.splitn(5, '-');
    let (version, id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let known = version == "00" && parts.next().is_none();
    let later = version != "00" && version != "ff" && version.len() == 2 && is_hex(version, 2);
    let lower = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
    let flags = Some(flags).filter(|flags| flags.len() == 2 && flags.as_bytes().iter().all(lower))?;
    let valid = (known || later) && is_hex(id, 32) && is_hex(parent, 16);
    let parent = SpanId(parent.as_bytes().try_into().ok()?);
    Some(Trace {
        id: id.to_owned(),
        parent: Some(parent),
        flags: u8::from_str_radix(flags, 16).ok()? & FLAGS,
        sampled: false,
    })
    .filter(|_| valid)
}

/// The id of a new trace, from the thread's generator as salts are: 32 hex digits, not all zero.
fn fresh() -> String {
    hex::encode(rand::random::<u128>().max(1).to_be_bytes())
}

impl Trace {
    fn key(&self) -> u128 {
        // 32 hex digits, always.
        u128::from_str_radix(&self.id, 16).unwrap_or_default()
    }

    /// Its id as bytes.
    pub(crate) fn bytes(id: &str) -> [u8; 16] {
        u128::from_str_radix(id, 16).unwrap_or_default().to_be_bytes()
    }

    /// The trace in `headers`, or a new one, named at random: everybody further down reads its name, and the hop's id, which
    /// the audit holds both ends to, is theirs alone. Where spans are sent, `sampler` says whether this trace's are, and the
    /// next are told; else what came in goes on.
    pub(crate) fn of(headers: &HeaderMap, sampler: Option<&Sampler>) -> Self {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let one = values.next().filter(|_| values.next().is_none());
        let carried = one.and_then(|v| v.to_str().ok()).and_then(parse);
        let mut trace = carried.unwrap_or_else(|| Self {
            id: fresh(),
            parent: None,
            flags: SAMPLED,
            sampled: false,
        });
        if let Some(sampler) = sampler {
            let theirs = trace.parent.map(|_| trace.flags & SAMPLED != 0);
            trace.sampled = sampler.samples(trace.key(), theirs);
            trace.flags = trace.flags & !SAMPLED | u8::from(trace.sampled);
        }
        trace
    }

    /// Writes it into the head of the request onwards, with a span named after the decision.
    pub(crate) fn write(&self, headers: &mut HeaderMap, decision: &DecisionId) {
        let span = SpanId::of(decision);
        let value = format!("00-{}-{}-{:02x}", self.id, span.as_str(), self.flags);
        headers.insert(TRACEPARENT, once(&value));
        if self.parent.is_none() {
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
        if trace.parent.is_none() {
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
        let trace = Trace::of(&headers, None);
        assert_eq!(trace.parent.unwrap().as_str(), "00f067aa0ba902b7");
        let decision = DecisionId::fresh();
        trace.write(&mut headers, &decision);
        let written = headers[TRACEPARENT].to_str().unwrap().to_owned();
        let span = decision.to_string().replace('-', "")[16..].to_owned();
        assert_eq!(written, format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-01"));
        assert_eq!(hex::encode(SpanId::of(&decision).bytes()), span);
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
            let (trace, other) = (Trace::of(&headers, None), Trace::of(&headers, None));
            assert!(is_hex(&trace.id, 32) && trace.id != other.id, "{bad}");
            trace.write(&mut headers, &DecisionId::fresh());
            assert!(parse(headers[TRACEPARENT].to_str().unwrap()).is_some());
            assert!(!headers.contains_key(TRACESTATE));
        }
    }

    #[test]
    fn whether_a_trace_is_sent_is_obeyed_and_told_and_flags_that_are_none_end_here() {
        let written = |came: Option<&str>, sampler: Option<&str>| {
            let sampler = sampler.map(|name| name.parse::<Sampler>().unwrap());
            let mut headers = came.map(headers).unwrap_or_default();
            let trace = Trace::of(&headers, sampler.as_ref());
            trace.write(&mut headers, &DecisionId::fresh());
            let written = headers[TRACEPARENT].to_str().unwrap();
            (trace.sampled, written[written.len() - 2..].to_owned())
        };
        let unsampled = GOOD.replace("-01", "-00");
        let odd = GOOD.replace("-01", "-ff");
        for (came, sampler, expected) in [
            (None, None, (false, "01")),
            (Some(&*unsampled), None, (false, "00")),
            (Some(&*odd), None, (false, "03")),
            (None, Some("parentbased_always_on"), (true, "01")),
            (Some(GOOD), Some("parentbased_always_off"), (true, "01")),
            (Some(&*unsampled), Some("parentbased_always_on"), (false, "00")),
            (Some(&*unsampled), Some("always_on"), (true, "01")),
            (Some(GOOD), Some("always_off"), (false, "00")),
            (None, Some("always_off"), (false, "00")),
        ] {
            assert_eq!(
                written(came, sampler),
                (expected.0, expected.1.to_owned()),
                "{came:?} {sampler:?}"
            );
        }
    }

    #[test]
    fn hops_are_counted_while_their_calls_are_open() {
        let traces = Traces::default();
        let carried = Trace::of(&headers(GOOD), None);
        assert_eq!(traces.next(&carried), 1);
        let (first, second) = (traces.enter(&carried, 1), traces.enter(&carried, 3));
        assert_eq!(traces.next(&carried), 4);
        assert_eq!(traces.next(&Trace::of(&HeaderMap::new(), None)), 1, "another trace");
        traces.leave(first);
        assert_eq!(traces.next(&carried), 4);
        traces.leave(second);
        assert_eq!(traces.next(&carried), 1);
        assert!(traces.0.is_empty());
    }
}
