//! What both ends of a hop decided, as the headers of an answer say it.

use hyper::HeaderMap;

/// One end's decision, from `x-aip-decision: <id>;<verdict>;<caller|callee>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) id: String,
    pub(crate) verdict: String,
    pub(crate) end: String,
}

/// All decisions in the headers of an answer.
pub(crate) fn decisions(headers: &HeaderMap) -> Vec<Decision> {
    let values = headers.get_all("x-aip-decision").iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).filter_map(decision).collect()
}

/// One decision as it stands in the header.
pub(crate) fn decision(text: &str) -> Option<Decision> {
    let mut parts = text.trim().split(';').map(|p| p.trim().to_owned());
    Some(Decision {
        id: parts.next()?,
        verdict: parts.next()?,
        end: parts.next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_decisions_are_read() {
        let mut headers = HeaderMap::new();
        headers.append("x-aip-decision", "0190-a;allow;caller".parse().unwrap());
        headers.append("x-aip-decision", "0190-b;deny;callee".parse().unwrap());
        let read = decisions(&headers);
        assert_eq!(read.len(), 2);
        assert_eq!(
            read[1],
            Decision {
                id: "0190-b".into(),
                verdict: "deny".into(),
                end: "callee".into()
            }
        );
    }
}
