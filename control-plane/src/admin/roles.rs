//! Roles and what they may: one matrix, in code, served at `/v1/roles` and printed into `docs/admin-api.md`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a person or program is to the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything.
    Admin,
    /// Runs the mesh: agents, tokens, policies, limits, revocations.
    Operator,
    /// Approves: measurements, and what others proposed.
    Approver,
    /// Reads everything, the audit included.
    Auditor,
    /// A program or person that checks: it may try policies, report on agents, and read.
    Verifier,
    /// Looks.
    Viewer,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 6] = [
        Self::Admin,
        Self::Operator,
        Self::Approver,
        Self::Auditor,
        Self::Verifier,
        Self::Viewer,
    ];

    /// The word in tokens and docs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::Auditor => "auditor",
            Self::Verifier => "verifier",
            Self::Viewer => "viewer",
        }
    }
}

/// What can be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// See registry, policies, status.
    Read,
    /// Register, change and remove agents.
    WriteAgents,
    /// Make and revoke join tokens.
    IssueTokens,
    /// Approve, refuse and take back measurements.
    ApproveMeasurements,
    /// Try a policy without writing it.
    CheckPolicies,
    /// Write, roll back and remove policies.
    WritePolicies,
    /// Write limits.
    WriteTraffic,
    /// Change the mesh's settings.
    WriteMesh,
    /// Revoke agents and SVIDs.
    Revoke,
    /// Report on agents' reputation.
    ReportReputation,
    /// Reset agents' reputation.
    ResetReputation,
    /// Stop agents, tools, or the mesh.
    Stop,
    /// Take orders to stop back.
    Resume,
    /// Decide what others proposed.
    Decide,
    /// Read the audit of changes, and what sidecars recorded.
    ReadAudit,
    /// Issue and revoke admin tokens.
    ManageAdmins,
    /// Rotate the CA, lift a restored store.
    Recover,
}

use Permission::{
    ApproveMeasurements, CheckPolicies, Decide, IssueTokens, ManageAdmins, Read, ReadAudit, Recover, ReportReputation,
    ResetReputation, Resume, Revoke, Stop, WriteAgents, WriteMesh, WritePolicies, WriteTraffic,
};
use Role::{Admin, Approver, Auditor, Operator, Verifier, Viewer};

/// Who may do what. What does not stand here is not allowed.
pub const MATRIX: &[(Permission, &[Role])] = &[
    (Read, &[Admin, Operator, Approver, Auditor, Verifier, Viewer]),
    (WriteAgents, &[Admin, Operator]),
    (IssueTokens, &[Admin, Operator]),
    (ApproveMeasurements, &[Admin, Operator, Approver]),
    (CheckPolicies, &[Admin, Operator, Approver, Verifier]),
    (WritePolicies, &[Admin, Operator]),
    (WriteTraffic, &[Admin, Operator]),
    (WriteMesh, &[Admin]),
    (Revoke, &[Admin, Operator]),
    (ReportReputation, &[Admin, Verifier]),
    (ResetReputation, &[Admin, Operator]),
    (Stop, &[Admin, Operator]),
    (Resume, &[Admin, Operator]),
    (Decide, &[Admin, Approver]),
    (ReadAudit, &[Admin, Auditor]),
    (ManageAdmins, &[Admin]),
    (Recover, &[Admin]),
];

impl Permission {
    /// The word in docs and refusals.
    pub fn as_str(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default()
    }
}

/// Whether `role` may.
pub fn may(role: Role, permission: Permission) -> bool {
    MATRIX
        .iter()
        .any(|(p, roles)| *p == permission && roles.contains(&role))
}
