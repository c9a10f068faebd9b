//! What the control plane refuses, and how: each reason with its HTTP status, its gRPC code, whose fault it is and
//! whether the same request can succeed later. This table is the only place where errors become statuses.

use aip_api::problem::{FieldError, Problem};
use tonic::Code;

use crate::store::StoreError;

/// Longest detail, in bytes: what a peer sent may be quoted in it, and it is kept, logged and sent back.
const MAX_DETAIL: usize = 2_048;

/// Whose fault a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request's.
    Caller,
    /// Ours.
    Server,
}

impl Fault {
    /// The word in docs and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Server => "server",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Stable, snake_case.
    pub reason: &'static str,
    /// HTTP status.
    pub status: u16,
    /// gRPC code.
    pub code: Code,
    /// Whose fault.
    pub fault: Fault,
    /// Whether the same request can succeed later.
    pub retryable: bool,
    /// For people.
    pub about: &'static str,
}

macro_rules! reasons {
    ($($name:ident $reason:literal $status:literal $code:ident $fault:ident $retry:ident $about:literal)*) => {
        /// A stable reason.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $(#[doc = $about] $name,)* }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its row of the table.
            pub const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        reason: $reason, status: $status, code: Code::$code, fault: Fault::$fault,
                        retryable: retry::$retry, about: $about,
                    },)*
                }
            }
        }
    };
}

mod retry {
    pub(super) const YES: bool = true;
    pub(super) const NO: bool = false;
}

reasons! {
    AgentUnknown "agent_unknown" 404 NotFound Caller NO "No agent of this name is registered."
    AgentExists "agent_exists" 409 AlreadyExists Caller NO "An agent of this name is registered already."
    NameInvalid "name_invalid" 400 InvalidArgument Caller NO "Not a name of the expected form."
    CredentialMissing "credential_missing" 401 Unauthenticated Caller NO "No join token, SVID or admin token was shown."
    CredentialUnsupported "credential_unsupported" 501 Unimplemented Caller NO "This kind of credential is not served here."
    TokenMalformed "token_malformed" 400 InvalidArgument Caller NO "Not a join token: have a fresh one made with `aip token create NAME`, and hand over all of it, as it was printed."
    TokenUnknown "token_unknown" 401 Unauthenticated Caller NO "The join token is not known here, or was revoked."
    TokenExpired "token_expired" 401 Unauthenticated Caller NO "The join token has expired."
    TokenWrongAgent "token_wrong_agent" 403 PermissionDenied Caller NO "The join token is bound to another agent."
    TokenOtherKey "token_other_key" 403 PermissionDenied Caller NO "The join token was spent with another key."
    TokenReused "token_reused" 403 PermissionDenied Caller NO "The join token was spent and answered as often as a lost reply explains."
    NonceUnknown "nonce_unknown" 401 Unauthenticated Caller YES "The nonce was not made by this control plane for this agent."
    NonceExpired "nonce_expired" 401 Unauthenticated Caller YES "The nonce is older than 60 s."
    NonceReused "nonce_reused" 401 Unauthenticated Caller YES "The nonce was answered before."
    EvidenceMalformed "evidence_malformed" 400 InvalidArgument Caller NO "The evidence is not a JWS of the expected type, or lists impossible files."
    EvidenceTooLarge "evidence_too_large" 413 InvalidArgument Caller NO "The evidence is larger than 3 MiB."
    EvidenceStale "evidence_stale" 401 Unauthenticated Caller YES "The evidence was made more than 5 minutes from now; compare the clocks."
    EvidenceOtherKey "evidence_other_key" 403 PermissionDenied Caller NO "The evidence was not signed by the CSR's key, or speaks of another."
    EvidenceOtherAgent "evidence_other_agent" 403 PermissionDenied Caller NO "The evidence speaks of another agent."
    EvidenceDigestMismatch "evidence_digest_mismatch" 403 PermissionDenied Caller NO "The code digest is not that of the listed files."
    CsrInvalid "csr_invalid" 400 InvalidArgument Caller NO "Not a CSR of an ECDSA P-256 key, signed by it."
    MeasurementPending "measurement_pending" 403 FailedPrecondition Caller YES "The measurement waits for a person's approval."
    MeasurementUnknown "measurement_unknown" 403 PermissionDenied Caller NO "The measurement is not approved, and no more can wait for this agent."
    MeasurementRevoked "measurement_revoked" 403 PermissionDenied Caller NO "The approval of this measurement was taken back; a person must approve it again."
    MeasurementLimit "measurement_limit" 409 ResourceExhausted Caller NO "The agent has as many approved measurements as it may have."
    AgentDrifted "agent_drifted" 403 FailedPrecondition Caller YES "The agent ran something else than was approved: it gets an SVID again once a person approved what it is to run and it was restarted."
    DriftMalformed "drift_malformed" 400 InvalidArgument Caller NO "The drift report is not a statement of the expected type, or says impossible things."
    DriftOtherKey "drift_other_key" 403 PermissionDenied Caller NO "The drift report was not signed by the key of the SVID that shows it."
    DriftOtherAgent "drift_other_agent" 403 PermissionDenied Caller NO "The drift report speaks of another agent."
    DriftStale "drift_stale" 401 Unauthenticated Caller YES "The drift report was stated more than 5 minutes from now; compare the clocks."
    SvidExpired "svid_expired" 401 Unauthenticated Caller NO "The SVID has expired; join again."
    SvidRevoked "svid_revoked" 403 PermissionDenied Caller NO "The SVID was revoked; join again with a new token."
    SvidOtherAgent "svid_other_agent" 403 PermissionDenied Caller NO "The SVID is another agent's."
    GenerationMismatch "generation_mismatch" 403 PermissionDenied Caller NO "The SVID is of an earlier generation; join again with a new token."
    RestoredStore "restored_store" 409 FailedPrecondition Server YES "The sidecar has seen a later revision: this store was restored from a copy, and an operator must lift it."
    InstanceInvalid "instance_invalid" 400 InvalidArgument Caller NO "The instance is not a UUID."
    ProtocolViolation "protocol_violation" 400 InvalidArgument Caller NO "A message that the protocol does not allow here."
    EndpointRefused "endpoint_refused" 400 InvalidArgument Caller NO "The address can't be an endpoint of this mesh."
    SubscriptionLimit "subscription_limit" 429 ResourceExhausted Caller NO "More subscriptions than one sidecar may have."
    SessionLimit "session_limit" 429 ResourceExhausted Server YES "As many streams as this control plane, or this agent, may have."
    RateExceeded "rate_exceeded" 429 ResourceExhausted Caller YES "Too many messages or requests."
    AckTimeout "ack_timeout" 408 DeadlineExceeded Caller YES "A push was not acknowledged in time."
    Superseded "superseded" 409 Aborted Caller YES "The same instance opened a newer stream."
    StreamRenewed "stream_renewed" 503 Unavailable Server YES "The stream reached its age; open another."
    Draining "draining" 503 Unavailable Server YES "The control plane is stopping; try again."
    Overloaded "overloaded" 503 Unavailable Server YES "Too much at once; try again."
    LogOfAnother "log_of_another" 403 PermissionDenied Caller NO "The audit log is another agent's: who opened it first."
    LogInUse "log_in_use" 409 Aborted Caller YES "Another live stream of the agent sends this audit log."
    LogBroken "log_broken" 409 FailedPrecondition Caller NO "Something that can't be was found in the audit log before: nothing more of it is taken."
    LogTruncated "log_truncated" 409 DataLoss Caller NO "The audit log has fewer records than were sent, or signed, before."
    ChainBroken "chain_broken" 422 DataLoss Caller NO "A line does not continue the audit log: no record, not in its place, or not naming the line before it."
    RootMismatch "root_mismatch" 422 DataLoss Caller NO "The records are not those that a checkpoint of this audit log covers."
    CheckpointInvalid "checkpoint_invalid" 422 PermissionDenied Caller NO "The checkpoint was not signed by an SVID of this agent."
    CheckpointTime "checkpoint_time" 422 PermissionDenied Caller NO "The checkpoint says a time that has not come, or at which its SVID was not in force; compare the clocks."
    CheckpointFork "checkpoint_fork" 409 DataLoss Caller NO "Another root was signed before for as many records of this audit log."
    CheckpointBehind "checkpoint_behind" 409 OutOfRange Caller NO "The checkpoint covers fewer records than the one before it, and was never taken."
    CheckpointMissing "checkpoint_missing" 409 FailedPrecondition Caller YES "No checkpoint that was taken covers these records: it comes first."
    AuditQuota "audit_quota" 507 ResourceExhausted Server YES "The agent's audit logs take as much room as they may, and nothing of them may go yet."
    AuditLogLimit "audit_log_limit" 429 ResourceExhausted Caller NO "As many audit logs as one agent, or one stream, may have."
    AuditCopyFailed "audit_copy_failed" 500 Internal Server YES "The control plane's copy of the audit log can't be written or read."
    SearchTooLarge "search_too_large" 422 InvalidArgument Caller NO "The search would look through more records than one may: ask for one agent, or for a shorter time up to now."
    NotFound "not_found" 404 NotFound Caller NO "No such thing."
    MethodNotAllowed "method_not_allowed" 405 Unimplemented Caller NO "The path does not take this method; `Allow` names those that it takes."
    Conflict "conflict" 409 Aborted Caller YES "It was changed meanwhile, or is not at the expected revision."
    Invalid "invalid" 422 InvalidArgument Caller NO "The document has mistakes; all are listed."
    Malformed "malformed" 400 InvalidArgument Caller NO "The request can't be read."
    TooLarge "too_large" 413 InvalidArgument Caller NO "The body is larger than the 1 MiB (1048576 bytes) that are read."
    Immutable "immutable" 409 FailedPrecondition Caller NO "Fixed when the mesh was created."
    LimitReached "limit_reached" 409 ResourceExhausted Caller NO "As many of these as there may be."
    PolicyRefused "policy_refused" 422 InvalidArgument Caller NO "The policy was not admitted; the diagnostics say where and why."
    AdmissionFailed "admission_failed" 422 InvalidArgument Caller NO "The policy made the check hang or die."
    AdmissionUnavailable "admission_unavailable" 503 Unavailable Server YES "The policy check can't be run."
    BaselineRequired "baseline_required" 409 FailedPrecondition Caller NO "The baseline policy can be replaced, not removed."
    BaselineReplacement "baseline_replacement" 409 FailedPrecondition Caller NO "Replacing the baseline takes ?replace_baseline=true: it takes part in every hop."
    AdminTokenInvalid "admin_token_invalid" 401 Unauthenticated Caller NO "Not an admin token of this mesh."
    AdminTokenExpired "admin_token_expired" 401 Unauthenticated Caller NO "The admin token has expired."
    AdminTokenRevoked "admin_token_revoked" 401 Unauthenticated Caller NO "The admin token was revoked, or is not known here."
    RoleForbidden "role_forbidden" 403 PermissionDenied Caller NO "The role may not do this."
    SecondPersonRequired "second_person_required" 403 PermissionDenied Caller NO "Who proposed a change can't approve it."
    SelfReport "self_report" 403 PermissionDenied Caller NO "Nobody judges itself, an agent that it answers for, or one of the same owner."
    HopUnknown "hop_unknown" 409 FailedPrecondition Caller YES "The audit has no record of the hop or decision that a report is about: not yet, or no longer."
    HopOfOthers "hop_of_others" 422 InvalidArgument Caller NO "The reported agent was no end of the hop, or never heard of it."
    StatementInvalid "statement_invalid" 422 InvalidArgument Caller NO "Not a statement that this mesh signed of this agent, or one that is over."
    OriginRefused "origin_refused" 403 PermissionDenied Caller NO "Browsers' pages may not use this API."
    HostRefused "host_refused" 421 PermissionDenied Caller NO "The Host is not an address of this API."
    SocketRequired "socket_required" 403 PermissionDenied Caller NO "A prod mesh takes changes over its Unix socket only."
    ProposalLapsed "proposal_lapsed" 409 FailedPrecondition Caller NO "What the proposal would change was changed after it was made: propose it anew."
    BodyTimeout "body_timeout" 408 DeadlineExceeded Caller YES "The body did not arrive in time."
    IdempotencyMismatch "idempotency_mismatch" 422 InvalidArgument Caller NO "The idempotency key was used for another request."
    IdempotencyInProgress "idempotency_in_progress" 409 Aborted Caller YES "The request with this idempotency key is still being answered."
    WatchCompacted "watch_compacted" 410 OutOfRange Caller NO "Changes that old are no longer kept; list, and watch from there."
    StoreFull "store_full" 507 ResourceExhausted Server YES "There is no room to write on the control plane's disk."
    StoreFailed "store_failed" 500 Internal Server YES "The database failed."
    Internal "internal" 500 Internal Server YES "A mistake of ours."
}

/// A refusal: the reason, what to do about it, and every mistake by field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", .reason.row().reason)]
pub struct Refusal {
    /// The stable reason.
    pub reason: Reason,
    /// What failed, and what to do.
    pub detail: String,
    /// Mistakes by field path, or by file and line.
    pub errors: Vec<FieldError>,
}

impl Refusal {
    /// A refusal with its detail, which is cut where it is long.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if detail.len() > MAX_DETAIL {
            detail.truncate(detail.floor_char_boundary(MAX_DETAIL));
            detail.push('…');
            // What was cut is not held on to.
            detail.shrink_to_fit();
        }
        Self {
            reason,
            detail,
            errors: Vec::new(),
        }
    }

    /// A document with mistakes.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = format!("{} mistake(s); see errors", errors.len());
        Self {
            reason: Reason::Invalid,
            detail,
            errors,
        }
    }

    /// The stable reason as text.
    pub fn reason(&self) -> &'static str {
        self.reason.row().reason
    }

    /// As a problem document.
    pub fn problem(&self) -> Problem {
        let row = self.reason.row();
        let mut problem = Problem::new(row.status, row.reason, self.detail.clone());
        problem.errors.clone_from(&self.errors);
        problem
    }

    /// As a gRPC status with the reason in its metadata.
    pub fn status(&self) -> tonic::Status {
        let row = self.reason.row();
        aip_runtime::grpc::status(row.code, row.reason, self.detail.clone())
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self::new(reason, reason.row().about)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let reason = match error {
            StoreError::Conflict { .. } => Reason::Conflict,
            StoreError::Compacted { .. } => Reason::WatchCompacted,
            StoreError::Invalid(_) => Reason::TooLarge,
            StoreError::Full(_) => {
                tracing::error!(%error, reason = error.reason(), "the disk is full");
                Reason::StoreFull
            }
            StoreError::NewerFormat { .. } | StoreError::InUse | StoreError::Damaged(_) | StoreError::Failed(_) => {
                tracing::error!(%error, reason = error.reason(), "the store failed");
                Reason::StoreFailed
            }
        };
        Self::new(reason, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_sent_is_not_quoted_at_any_length() {
        let long = Refusal::new(Reason::ChainBroken, "é".repeat(300_000));
        assert!(long.detail.len() <= MAX_DETAIL + 3 && long.detail.ends_with('…'));
        assert!(long.detail.capacity() < 2 * MAX_DETAIL);
        assert_eq!(Refusal::new(Reason::ChainBroken, "short").detail, "short");
    }

    #[test]
    fn reasons_are_stable_words_and_each_stands_once() {
        let mut seen = std::collections::BTreeSet::new();
        for reason in Reason::ALL {
            let row = reason.row();
            assert!(seen.insert(row.reason), "{} stands twice", row.reason);
            assert!(row.reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            assert!((400..600).contains(&row.status));
            assert!(
                row.status < 500 || row.fault == Fault::Server || row.status == 501,
                "{}",
                row.reason
            );
        }
    }
}
