//! Why a request was not answered by its agent, and how that is said. `docs/errors.md` is this file as a table; a test
//! compares the two.

mod form;

use std::fmt;

pub(crate) use form::{Form, answer, raw};

/// Whose fault a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Whoever sent the request.
    Caller,
    /// The callee's sidecar, or the way to it.
    Callee,
    /// The agent behind the sidecar that says so.
    Agent,
    /// The control plane, or the way to it.
    ControlPlane,
    /// Policy, or what the mesh requires.
    Policy,
}

impl Blame {
    /// The word in logs and docs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Callee => "callee",
            Self::Agent => "agent",
            Self::ControlPlane => "control_plane",
            Self::Policy => "policy",
        }
    }
}

/// What follows from a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nature {
    /// The stable reason.
    pub reason: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// Whose fault it is.
    pub blame: Blame,
    /// Whether the same request may succeed later.
    pub retryable: bool,
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = ($reason:literal, $status:literal, $blame:ident, $retryable:literal, $says:literal);)+) => {
        /// Why a request was refused or failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Refusal { $($(#[$doc])* $name),+ }

        impl Refusal {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// What follows from it.
            pub const fn nature(self) -> Nature {
                match self {
                    $(Self::$name => Nature {
                        reason: $reason, status: $status, blame: Blame::$blame, retryable: $retryable,
                    }),+
                }
            }

            /// What failed and what to do, for a person.
            pub const fn says(self) -> &'static str {
                match self { $(Self::$name => $says),+ }
            }
        }
    };
}

refusals! {
    // accept
    /// No or another secret at the outbound port.
    ProxyAuth = ("proxy_auth_required", 407, Caller, false,
        "this port serves its own agent only: send the secret of the proxy URL (HTTP_PROXY) as Proxy-Authorization");
    /// Not from this machine.
    NotLoopback = ("not_loopback", 403, Caller, false, "the outbound port serves this machine only");
    /// Not from the user that the agent runs as.
    NotTheAgent = ("not_the_agent", 403, Caller, false, "the outbound port serves the user of its own agent only");
    /// The peer sends more than its rate.
    RateLimited = ("rate_limited", 429, Caller, true, "this peer sends more requests than its rate allows");
    /// The peer's certificate expired while the connection was open.
    CertificateExpired = ("certificate_expired", 403, Caller, true, "the peer's certificate has expired");
    /// The peer's certificate is revoked.
    RevokedSerial = ("revoked_serial", 403, Caller, false, "the certificate is revoked");
    /// The peer's generation is revoked.
    RevokedGeneration = ("revoked_generation", 403, Caller, false,
        "the agent's generation is revoked: what it runs must be approved, and it must be restarted");
    /// What the agent runs is not what was approved.
    Drifted = ("drifted", 503, Agent, false,
        "what this agent runs is no longer what was approved: it must be approved again, and restarted");
    /// This sidecar has no SVID, or has suspended itself.
    NoIdentity = ("no_identity", 503, ControlPlane, true,
        "this sidecar has no valid identity now; its log and `aip status` say why");
    /// No kill set was received yet: what is stopped is not known.
    KillStateUnknown = ("kill_state_unknown", 503, ControlPlane, true,
        "no kill set was received yet, so what is stopped is not known; the control plane sends it");
    /// The lease has ended, and this agent's says that it denies.
    LeaseLost = ("lease_lost", 503, ControlPlane, true,
        "the control plane was not heard of for as long as this agent's lease allows");
    /// An order stops it.
    Killed = ("killed", 503, Policy, false, "an operator stopped this");
    /// An order stops it for a while.
    Paused = ("paused", 503, Policy, true, "an operator paused this");
    // classify
    /// Missing, repeated or malformed.
    InvalidHost = ("invalid_host", 400, Caller, false, "a request names its host exactly once");
    /// Two different hosts in one request.
    HostMismatch = ("host_mismatch", 400, Caller, false, "the Host header names another host than the request target");
    /// Addressed to another agent than the one that lives here.
    WrongAgent = ("wrong_agent", 421, Caller, false, "another agent lives behind this sidecar");
    /// A target that is neither in the mesh nor plain HTTP.
    UnsupportedTarget = ("unsupported_target", 400, Caller, false,
        "use http://<agent>.<trust-domain>/…, or CONNECT host:port");
    /// What policy reads and what the agent resolves might differ.
    AmbiguousPath = ("ambiguous_path", 400, Caller, false,
        "the path has dot segments, empty segments, ';', '\\', NUL, or encoded slashes, dots or percent signs");
    /// A transfer coding that we would have to undo.
    TransferCoding = ("transfer_coding", 400, Caller, false, "the only transfer coding that is understood is chunked");
    /// A body that two readers take for two things.
    InvalidContent = ("invalid_content", 400, Caller, false,
        "Content-Type or Content-Length is contradicted: by another line, by the body, or by what the agent speaks");
    /// A header that makes servers see another method or URL than policy did.
    OverrideHeader = ("override_header", 400, Caller, false, "headers that override the method or the URL are refused");
    /// The mesh's own headers are missing or malformed.
    InvalidHop = ("invalid_hop", 400, Caller, false, "a peer's sidecar sends a UUIDv7 as x-aip-hop");
    /// This hop id was seen before, or is too old to know.
    HopReplayed = ("hop_replayed", 409, Caller, false, "this hop was made before: each id is good once");
    /// A body that policy reads is not strict JSON.
    InvalidJson = ("invalid_json", 400, Caller, false, "the body is not JSON that everybody reads alike");
    /// A body that policy reads did not come in time.
    BodyTimeout = ("body_timeout", 408, Caller, true, "the body did not arrive in time");
    /// A body that policy reads ended early.
    BodyBroken = ("body_broken", 400, Caller, true, "the body ended before its end");
    /// No agent of this name.
    UnknownAgent = ("unknown_agent", 404, Caller, false, "no agent of this name is registered in the mesh");
    /// The caller is not registered any more.
    UnknownSource = ("unknown_source", 403, Caller, false, "the calling agent is not registered in the mesh");
    /// Nothing is held about the peer and nobody can be asked.
    RegistryUnreachable = ("registry_unreachable", 503, ControlPlane, true,
        "the control plane can't be reached, and nothing is held about this agent");
    /// More peers than a sidecar holds.
    TooManyPeers = ("too_many_peers", 503, Callee, false, "this sidecar holds as many peers as it may");
    /// TLS where HTTP was expected.
    TlsInsideTunnel = ("tls_inside_tunnel", 400, Caller, false,
        "the mesh encrypts by itself and decides on what it reads: use http:// and not https:// for agents");
    // admit
    /// The mesh asks for more.
    AssuranceTooLow = ("assurance_too_low", 403, Policy, false,
        "the mesh requires a stronger attestation than this agent has");
    /// The mesh asks for more.
    EnforcementTooLow = ("enforcement_too_low", 403, Policy, false,
        "the mesh requires agents that can't go around their sidecar");
    /// An end's reputation is below the mesh's floor.
    ReputationTooLow = ("reputation_too_low", 403, Policy, false,
        "the reputation of an agent at one end is below what the mesh requires; `aip reputation show` says why");
    /// Nothing is held about an end's reputation.
    ReputationUnknown = ("reputation_unknown", 503, ControlPlane, true,
        "the control plane has not told of this agent's reputation yet, and the mesh requires one");
    // decide
    /// A rule denied, or none allowed.
    PolicyDenied = ("policy_denied", 403, Policy, false, "policy refuses this request");
    /// A verdict that this version does not carry out.
    UnsupportedVerdict = ("unsupported_verdict", 403, Policy, false,
        "policy gave a verdict that this sidecar can't carry out yet, so the request is refused");
    /// An obligation that this version does not honour.
    UnsupportedObligation = ("unsupported_obligation", 403, Policy, false,
        "policy obliges to something that this sidecar can't do yet, so the request is refused");
    /// The attached policies don't compile together.
    PolicyUnusable = ("policy_unusable", 503, Policy, true, "the attached policies can't be used together");
    // record
    /// The request must be recorded, and can't be.
    AuditUnavailable = ("audit_unavailable", 503, Agent, true,
        "this request must be recorded before it goes on, and the audit log can't be written");
    // limit
    /// One peer would take more than its share of what all peers have.
    ShareUsedUp = ("share_used_up", 429, Caller, true,
        "this peer has as many requests in flight, or bodies held for policy, as one peer may");
    /// As many requests as may be in flight, or as much held as may be.
    Overloaded = ("overloaded", 503, Agent, true, "as many requests are in flight as this agent takes");
    // route
    /// No sidecar of that agent serves now.
    NoEndpoint = ("no_endpoint", 503, Callee, true, "no sidecar of this agent serves now");
    // call
    /// Nobody answers at the endpoint.
    PeerUnreachable = ("peer_unreachable", 502, Callee, true, "the sidecar of this agent can't be reached");
    /// Whoever answered is not that agent.
    PeerNotVerified = ("peer_not_verified", 502, Callee, true,
        "whoever answered could not prove to be this agent, running what was approved");
    /// The agent does not take connections.
    AgentUnreachable = ("agent_unreachable", 502, Agent, true, "the agent does not answer on its port");
    /// The agent only calls: its sidecar was started so.
    ServesNothing = ("serves_nothing", 503, Agent, false,
        "this agent serves nothing, it only calls: its sidecar was started with --no-serve");
    /// The connection broke before the response began.
    ConnectionBroken = ("connection_broken", 502, Agent, true,
        "the connection broke before the response began; whether the request was carried out is not known");
    /// The response did not begin in time.
    ResponseTimeout = ("response_timeout", 504, Agent, true, "the response did not begin within the deadline");
    /// The request was cut while it waited.
    Interrupted = ("interrupted", 503, Policy, true, "the request was cut while it waited for its response");
    /// Switching protocols failed half-way.
    UpgradeFailed = ("upgrade_failed", 502, Agent, true, "the connection could not be switched to the other protocol");
    // egress
    /// Not on the mesh's list.
    EgressNotListed = ("egress_not_listed", 403, Policy, false,
        "this outside host and port is not on the mesh's egress list: an operator lists it in `egress` of the mesh's \
         settings (PUT /v1/mesh-config)");
    /// The name leads to an address that is never reached.
    EgressAddress = ("egress_address_forbidden", 403, Policy, false,
        "this name resolves to an address that is not public: loopback, private, link-local, metadata or the mesh's own");
    /// The name does not resolve.
    EgressUnresolved = ("egress_unresolved", 502, Caller, true, "this name can't be resolved");
    /// Nobody answers there.
    EgressUnreachable = ("egress_unreachable", 502, Callee, true, "the outside host can't be reached");
    /// TLS to another name than the one that was decided on.
    SniMismatch = ("sni_mismatch", 403, Caller, false,
        "the TLS inside the tunnel names another host than CONNECT did, or none, or can't be read");
}

impl Refusal {
    /// The stable reason, as in logs, metrics, problem documents and docs.
    pub const fn reason(self) -> &'static str {
        self.nature().reason
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.says())
    }
}

/// A refusal, and what is known beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// More for the person who reads it.
    pub detail: Option<String>,
    /// The rule, where a policy refused.
    pub rule: Option<String>,
    /// Seconds after which the same request may succeed, where that is known.
    pub retry_after: Option<u64>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            detail: None,
            rule: None,
            retry_after: None,
        }
    }
}

impl Refusal {
    /// With what is known beside it.
    pub fn because(self, detail: impl fmt::Display) -> Refused {
        Refused {
            refusal: self,
            detail: Some(detail.to_string()),
            rule: None,
            retry_after: None,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{}: {detail}", self.refusal),
            None => self.refusal.fmt(f),
        }
    }
}

macro_rules! cuts {
    ($($(#[$doc:meta])* $name:ident = ($code:literal, $reason:literal);)+) => {
        /// Why a connection or a request was cut after it had begun.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Cut { $($(#[$doc])* $name = $code),+ }

        impl Cut {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The stable reason.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason),+ }
            }

            pub(crate) const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

cuts! {
    /// A serial was revoked.
    RevokedSerial = (1, "revoked_serial");
    /// A generation was revoked.
    RevokedGeneration = (2, "revoked_generation");
    /// Policy would refuse the request now.
    PolicyDenied = (3, "policy_denied");
    /// An end of it is not registered any more.
    Deregistered = (4, "deregistered");
    /// A certificate expired.
    Expired = (5, "certificate_expired");
    /// This sidecar gave up its identity.
    Suspended = (6, "suspended");
    /// Nothing moved for the idle limit.
    Idle = (7, "idle_timeout");
    /// An order stops it.
    Killed = (10, "killed");
    /// The control plane was not heard of for too long.
    LeaseLost = (11, "lease_lost");
    /// This sidecar ends, and it did not end in time.
    Drained = (20, "drained");
    /// The reputation of an end is below the mesh's floor.
    ReputationTooLow = (40, "reputation_too_low");
    /// What the agent runs is not what was approved.
    Drifted = (8, "drifted");
}

impl Cut {
    /// The cut of a request that is open and would not be admitted now.
    pub(crate) fn of_admission(refusal: Refusal) -> Self {
        match refusal {
            Refusal::ReputationTooLow | Refusal::ReputationUnknown => Self::ReputationTooLow,
            _ => Self::PolicyDenied,
        }
    }

    pub(crate) fn of_revocation(reason: &str) -> Self {
        if reason == Self::RevokedSerial.reason() {
            Self::RevokedSerial
        } else {
            Self::RevokedGeneration
        }
    }
}

impl Refusal {
    pub(crate) fn of_cut(cut: Cut) -> Self {
        match cut {
            Cut::RevokedSerial => Self::RevokedSerial,
            Cut::RevokedGeneration => Self::RevokedGeneration,
            Cut::PolicyDenied => Self::PolicyDenied,
            Cut::Deregistered | Cut::Idle | Cut::Drained => Self::Interrupted,
            Cut::Expired => Self::CertificateExpired,
            Cut::Suspended => Self::NoIdentity,
            Cut::ReputationTooLow => Self::ReputationTooLow,
            Cut::Drifted => Self::Drifted,
            Cut::Killed => Self::Killed,
            Cut::LeaseLost => Self::LeaseLost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn reasons_are_unique_snake_case_words() {
        let reasons: HashSet<_> = Refusal::ALL.iter().map(|r| r.reason()).collect();
        assert_eq!(reasons.len(), Refusal::ALL.len());
        let plain = |r: &&str| r.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        assert!(reasons.iter().all(plain));
        assert!(
            Cut::ALL
                .iter()
                .all(|c| Cut::from_code(*c as u8) == Some(*c) && plain(&c.reason()))
        );
    }

    /// MCP clients read a 400 as "speak an older version" and try again.
    #[test]
    fn policy_never_refuses_with_400() {
        for refusal in Refusal::ALL {
            let nature = refusal.nature();
            assert!(
                nature.blame != Blame::Policy || nature.status != 400,
                "{}",
                nature.reason
            );
            assert!((400..600).contains(&nature.status));
        }
    }
}
