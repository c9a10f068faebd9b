//! Sidecars and acknowledgements, as status shows them.

use aip_runtime::x509::PeerIdentity;
use serde::Serialize;
use utoipa::ToSchema;

/// Longest version that is shown, in characters.
const MAX_VERSION: usize = 64;

/// A resource that a sidecar did not take.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Nack {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// At which revision.
    pub revision: u64,
    /// Stable, snake_case; the sidecar's.
    pub reason: String,
    /// For people.
    pub detail: String,
    /// Unix seconds.
    pub at: u64,
}

/// One sidecar, as status shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Sidecar {
    /// Its agent.
    pub agent: String,
    /// Its process.
    pub instance: String,
    /// Its version.
    pub version: String,
    /// From where it connected.
    pub address: String,
    /// Where it serves, while it leases an endpoint.
    pub endpoint: Option<String>,
    /// Whether its stream is open.
    pub connected: bool,
    /// Whether it drained and closed its stream itself: nothing of it runs any more. One that is neither connected nor ended
    /// is out of reach, and may serve until its SVID ends.
    pub ended: bool,
    /// Unix seconds.
    pub connected_since: u64,
    /// Unix seconds, once it left.
    pub disconnected_at: Option<u64>,
    /// The revision that it is at; 0: none yet.
    pub revision: u64,
    /// Unix seconds of its last acknowledgement.
    pub last_ack_at: Option<u64>,
    /// Whether a push waits for its acknowledgement.
    pub outstanding: bool,
    /// What it did not take and has not taken since.
    pub nacks: Vec<Nack>,
    /// Its SVID's serial.
    pub serial: String,
    /// Unix seconds at which its SVID ends: by then it has certainly stopped.
    pub not_after: u64,
    /// `declared`, `observed` or `hardware`.
    pub assurance: String,
    /// `cooperative` or `captured`.
    pub enforcement: String,
    /// Its SVID's generation.
    pub generation: u64,
}

impl Sidecar {
    /// One that has just connected.
    pub(super) fn connected(peer: &PeerIdentity, address: String, (instance, version): (&str, &str), now: u64) -> Self {
        Self {
            agent: peer.id.agent.to_string(),
            instance: instance.to_owned(),
            version: version.chars().take(MAX_VERSION).collect(),
            address,
            endpoint: None,
            connected: true,
            ended: false,
            connected_since: now,
            disconnected_at: None,
            revision: 0,
            last_ack_at: None,
            outstanding: false,
            nacks: Vec::new(),
            serial: peer.serial.clone(),
            not_after: peer.not_after,
            assurance: peer.result.assurance.as_str().to_owned(),
            enforcement: peer.result.enforcement.as_str().to_owned(),
            generation: peer.result.generation,
        }
    }
}

/// A sidecar whose stream broke off.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Vanished {
    /// `agent/instance`.
    pub sidecar: String,
    /// Unix seconds at which its SVID ends: until then it may serve.
    pub not_after: u64,
}

/// Where one revision stands.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Acks {
    /// The revision.
    pub revision: u64,
    /// Sidecars (`agent/instance`) that are at it or past it.
    pub acked: Vec<String>,
    /// Sidecars that are at it but rejected something at or before it.
    pub nacked: Vec<String>,
    /// Sidecars that are not at it yet and may say so soon: connected ones, and ones whose stream broke off a moment ago.
    pub missing: Vec<String>,
    /// Sidecars whose stream broke off, without the end that a drain has: they may serve until their SVID ends. Who has been gone
    /// for more than half a minute is not missing: nobody waits for it.
    pub vanished: Vec<Vanished>,
    /// Sidecars of agents that drifted: they have suspended themselves, and their SVIDs are revoked. Nobody waits for them.
    pub drifted: Vec<String>,
    /// Milliseconds from the commit to the last acknowledgement; absent while somebody is missing, or for a commit
    /// that this process does not remember.
    pub ms: Option<f64>,
}

impl Acks {
    /// Of a revision of which nobody has said anything.
    pub(super) const fn of(revision: u64) -> Self {
        Self {
            revision,
            acked: Vec::new(),
            nacked: Vec::new(),
            missing: Vec::new(),
            vanished: Vec::new(),
            drifted: Vec::new(),
            ms: None,
        }
    }
}

/// A sidecar that was refused, since it has seen a later revision than this store has.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Ahead {
    /// Its agent.
    pub agent: String,
    /// The revision of the newest resource that it showed, which this mesh signed.
    pub seen: u64,
}
