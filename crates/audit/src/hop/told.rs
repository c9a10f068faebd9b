//! What one end says of a hop, as far as the other end can know it: of fixed size, since a verifier holds one for each hop
//! whose other end it has not read yet.

use aip_api::Digest;

use crate::record::{Decision, Direction, End, Passed};

/// Stands for a text: the first 16 bytes of its SHA-256, against which nobody finds a second text. Zero for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Mark([u8; 16]);

impl Mark {
    /// Of a text.
    pub fn of(text: &str) -> Self {
        let mut mark = [0; 16];
        if !text.is_empty() {
            mark.copy_from_slice(&Digest::sha256(text.as_bytes()).as_bytes()[..16]);
        }
        Self(mark)
    }

    /// Whether there is a text.
    pub fn is_there(self) -> bool {
        self != Self::default()
    }
}

/// A verdict, in one byte: a verifier holds one of each hop's ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// `allow`.
    Allow,
    /// `deny`.
    Deny,
    /// Any other: sidecars of this version refuse them.
    Other,
}

impl Verdict {
    /// By its name.
    pub fn of(name: &str) -> Self {
        match name {
            "allow" => Self::Allow,
            "deny" => Self::Deny,
            _ => Self::Other,
        }
    }

    /// For people.
    pub const fn means(self) -> &'static str {
        match self {
            Self::Allow => "that it was allowed",
            Self::Deny => "a denial",
            Self::Other => "another verdict",
        }
    }
}

/// Protocols in which a refusal is said by an HTTP status of its own.
const SAYS_STATUS: [&str; 3] = ["mcp", "websocket", "tunnel"];

/// What an end said of the call when it was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Which end.
    pub direction: Direction,
    /// The HTTP method.
    pub method: Mark,
    /// The path.
    pub path: Mark,
    /// The protocol.
    pub protocol: Mark,
    /// The protocol's own method.
    pub call: Mark,
    /// The tool.
    pub tool: Mark,
    /// It was refused here, and not only in observation.
    pub refused: bool,
    /// The verdict.
    pub verdict: Verdict,
    /// A refusal may be an answer with status 200, by the protocol that this end saw: gRPC has its status in the trailers, A2A
    /// its errors in the body, and who looked into no body can't tell A2A from any other call.
    pub refuses_with_ok: bool,
}

impl Said {
    /// Of a decision.
    pub fn of(decision: &Decision) -> Self {
        Self {
            direction: decision.direction,
            method: Mark::of(&decision.method),
            path: Mark::of(&decision.path),
            protocol: Mark::of(&decision.protocol),
            call: Mark::of(&decision.call),
            tool: Mark::of(&decision.tool),
            refused: !decision.reason.is_empty() && !decision.observed,
            verdict: Verdict::of(&decision.verdict),
            refuses_with_ok: !SAYS_STATUS.contains(&decision.protocol.as_str()),
        }
    }

    /// Whether the end speaks against a refusal of the callee's sidecar: nothing of what is refused goes on to the agent, or
    /// comes from it, and it is answered with an error.
    pub fn contradicts(&self, end: &End) -> bool {
        let passed = end.request_out.bytes > 0 || end.response_in.bytes > 0;
        let good = (1..400).contains(&end.status) && !(end.status == 200 && self.refuses_with_ok);
        self.refused && self.direction == Direction::Inbound && (passed || good)
    }

    /// With how the request ended.
    pub fn ended(self, end: &End) -> Told {
        let (request, response) = match self.direction {
            Direction::Outbound => (end.request_out, end.response_in),
            Direction::Inbound => (end.request_in, end.response_out),
        };
        Told {
            said: self,
            status: end.status,
            ending: match end.end.as_str() {
                "complete" => Ending::Complete,
                "aborted" => Ending::Aborted,
                _ => Ending::Cut,
            },
            blamed: !end.blame.is_empty(),
            salt: Mark::of(&end.salt),
            request,
            response,
        }
    }

    /// It was gRPC.
    pub(crate) fn is_grpc(&self) -> bool {
        self.protocol == Mark::of("grpc")
    }

    /// The connection was to switch to another protocol: sidecars switch to WebSocket and to nothing else.
    pub(super) fn is_switch(&self) -> bool {
        self.protocol == Mark::of("websocket")
    }
}

/// How a request ended, roughly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// To its end.
    Complete,
    /// One of those who talked went away.
    Aborted,
    /// It was cut, or failed for a reason of its own.
    Cut,
}

/// What one end says of a hop: of each body what passed between the two sidecars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// What was decided on.
    pub said: Said,
    /// The status that this end's caller was given; 0 where none was.
    pub status: u16,
    /// How it ended.
    pub ending: Ending,
    /// Something failed, and somebody is to blame.
    pub blamed: bool,
    /// Stands for the salt of the digests.
    pub salt: Mark,
    /// The request's body: at the caller's sidecar as it was sent, at the callee's as it came.
    pub request: Passed,
    /// The response's body: at the callee's sidecar as it was sent, at the caller's as it came.
    pub response: Passed,
}

impl Told {
    /// It came to its end, and nothing failed.
    pub fn is_whole(&self) -> bool {
        self.ending == Ending::Complete && !self.blamed
    }
}
