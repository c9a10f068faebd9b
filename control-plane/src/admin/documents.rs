//! The documents that clients send, as the OpenAPI document describes them. They are the resources of `aip-api`, which
//! knows nothing of OpenAPI; a test holds each field here against the real one.

#![expect(dead_code, reason = "described, never made")]

use std::collections::BTreeMap;

use utoipa::ToSchema;

/// An agent in the registry.
#[derive(ToSchema)]
pub(super) struct Agent {
    /// A DNS label: 1 to 63 of a-z, 0-9, `-`.
    #[schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    name: String,
    /// Who answers for it.
    #[schema(required = false)]
    owner: String,
    /// Free labels, by which policies select; at most 32.
    #[schema(required = false)]
    labels: BTreeMap<String, String>,
    /// What it can do, for discovery; at most 32.
    #[schema(required = false)]
    capabilities: Vec<String>,
    #[schema(required = false)]
    mode: Mode,
    #[schema(required = false)]
    protocol: Protocol,
    #[schema(required = false)]
    host: Host,
    /// Let paths through that are refused by default (dot segments, `//`, encoded slashes, `;`, `\`).
    #[schema(required = false)]
    allow_ambiguous_paths: bool,
    /// DNS names outside the mesh whose calls, over plain HTTP, go to this agent; at most 8.
    #[schema(required = false)]
    aliases: Vec<String>,
    #[schema(required = false)]
    lease: Lease,
    /// What it claims of itself at `/.well-known/agent-manifest`.
    #[schema(required = false, value_type = Object)]
    manifest: (),
    /// The control plane's: what is sent is not taken.
    #[schema(required = false)]
    generation: u64,
}

/// For how long the agent's sidecars may go on without hearing from the control plane, and what they do then.
#[derive(ToSchema)]
pub(super) struct Lease {
    /// 5 to 86,400.
    #[schema(required = false, minimum = 5, maximum = 86_400)]
    seconds: u64,
    /// `continue` (until the SVID ends) or `deny`.
    #[schema(required = false, pattern = "^(continue|deny)$")]
    on_lost: String,
}

/// Whether refusals are enforced.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub(super) enum Mode {
    /// What policy refuses is refused.
    Enforce,
    /// It is recorded and let pass, until a time.
    Observe {
        /// Unix seconds at which enforcement begins again: at most 7 days from now.
        until: u64,
    },
}

/// Which HTTP version the agent's server speaks: as the caller spoke, HTTP/1.1, or HTTP/2 with prior knowledge.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Protocol {
    Auto,
    Http1,
    H2c,
}

/// What the agent sees as `Host`: `127.0.0.1:<port>`, or what the caller sent.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Host {
    Local,
    Original,
}

/// Limits of an agent, or of all that have none of their own.
#[derive(ToSchema)]
pub(super) struct Traffic {
    /// The agent's name, or `default`.
    #[schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    agent: String,
    /// From the end of the request's body to the response's first header: 1 to 3,600,000.
    #[schema(required = false, minimum = 1, maximum = 3_600_000)]
    response_timeout_ms: u64,
    /// Silence in the middle of a body after which the stream is cut: 1 to 86,400,000.
    #[schema(required = false, minimum = 1, maximum = 86_400_000)]
    idle_timeout_ms: u64,
    /// Requests in flight to the agent: 1 to 100,000.
    #[schema(required = false, minimum = 1, maximum = 100_000)]
    max_concurrency: u32,
    /// How many of them may be one peer's; absent: half of them.
    #[schema(minimum = 1, maximum = 100_000)]
    peer_max_concurrency: Option<u32>,
    /// Requests a second from one peer: 1 to 1,000,000.
    #[schema(required = false, minimum = 1, maximum = 1_000_000)]
    peer_rate_per_second: u32,
    /// How many of them may come at once: 1 to 1,000,000.
    #[schema(required = false, minimum = 1, maximum = 1_000_000)]
    peer_burst: u32,
}

/// A Rego module with its data and tests; see docs/policy.md.
#[derive(ToSchema)]
pub(super) struct Policy {
    /// 1 to 63 of a-z, 0-9, `-`, a letter first; the package is `aip.policy.<name>` with `_` for `-`.
    #[schema(pattern = "^[a-z][a-z0-9-]{0,62}$")]
    name: String,
    /// The module's text.
    rego: String,
    /// `data.user.<name>`: an object.
    #[schema(required = false, value_type = Object)]
    data: (),
    /// Rego tests, run at admission.
    tests: Option<String>,
    #[schema(required = false)]
    attach: Attach,
}

/// Whose hops a policy takes part in.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Attach {
    /// Every hop.
    Mesh,
    /// Hops of these agents.
    Agents(Vec<String>),
    /// Hops of agents that carry all these labels.
    Labels(BTreeMap<String, String>),
}

/// A measurement of an agent: each digest that is present must be equal.
#[derive(ToSchema)]
pub(super) struct Measurement {
    /// The agent that may run this.
    #[schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    agent: String,
    /// What measured it: `files`, `process`.
    attestor: String,
    /// Merkle digest of the declared files; 64 hex digits, as all digests.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    code: String,
    /// Digest of the declared configuration; absent: any.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    config: Option<String>,
    /// Digest of the executable; absent: any.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    executable: Option<String>,
    /// Digest of the command line; absent: any.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    argv: Option<String>,
    /// Digest of the sidecar's executable; absent: any.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    sidecar: Option<String>,
    /// The control plane's: what is sent is not taken.
    #[schema(required = false)]
    approved_by: String,
    /// The control plane's: what is sent is not taken.
    #[schema(required = false)]
    approved_at: u64,
}

/// The mesh's settings.
#[derive(ToSchema)]
pub(super) struct MeshConfig {
    /// Never changes.
    trust_domain: String,
    /// `dev` or `prod`; never changes.
    #[schema(pattern = "^(dev|prod)$")]
    mode: String,
    #[schema(required = false)]
    require: Require,
    /// Hosts outside the mesh that agents may reach; at most 1,000.
    #[schema(required = false)]
    egress: Vec<EgressRule>,
    /// Lifetime of an SVID: 60 to 86,400.
    #[schema(required = false, minimum = 60, maximum = 86_400)]
    svid_ttl_seconds: u64,
    #[schema(required = false)]
    audit: AuditConfig,
    #[schema(required = false)]
    kill: KillSettings,
    #[schema(required = false)]
    reputation: ReputationSettings,
}

/// How orders to stop are given.
#[derive(ToSchema)]
pub(super) struct KillSettings {
    /// In a `prod` mesh: orders that stop more than one agent wait for a second person.
    #[schema(required = false)]
    second_approver: bool,
    /// Who is told when an order is given or lifted.
    #[schema(required = false)]
    webhook: Option<Webhook>,
}

/// Who is told when an order to stop is given or lifted.
#[derive(ToSchema)]
pub(super) struct Webhook {
    /// `https://…`, or `http://…` on loopback only.
    url: String,
    /// The name of the secret that signs what is sent: a file of this name in the control plane's `--secrets` directory.
    secret: String,
    /// Root certificates (PEM) that the receiver's must come from, instead of the machine's.
    #[schema(required = false)]
    ca: Option<String>,
}

/// What is recorded of every request, and for how long.
#[derive(ToSchema)]
pub(super) struct AuditConfig {
    /// `buffered`, `grouped` or `required`: what an agent waits for.
    #[schema(required = false, pattern = "^(buffered|grouped|required)$")]
    durability: String,
    /// Milliseconds that a written record may wait for the disk: 10 to 10,000.
    #[schema(required = false, minimum = 10, maximum = 10_000)]
    flush_ms: u64,
    #[schema(required = false)]
    retention: Retention,
    /// X25519 public key, 32 bytes in base64, to which sensitive facts are sealed; absent: they are not kept.
    auditor_key: Option<String>,
}

/// How long records are kept of each agent: whichever bound is met first.
#[derive(ToSchema)]
pub(super) struct Retention {
    /// 1 to 3,650.
    #[schema(required = false, minimum = 1, maximum = 3_650)]
    days: u32,
    /// Of one agent's segments: 16 MiB to 1 TiB.
    #[schema(required = false)]
    bytes: u64,
}

/// How scores are made, and what is asked of them; see docs/reputation.md.
#[derive(ToSchema)]
pub(super) struct ReputationSettings {
    /// Requests from and to agents below this score are refused; 0 switches that off.
    #[schema(required = false)]
    floor: f64,
    /// The score of an agent without a history.
    #[schema(required = false)]
    prior: f64,
    /// How many observations weigh as much as the prior: 1 to 10,000.
    #[schema(required = false, minimum = 1, maximum = 10_000)]
    evidence: u32,
    /// Days after which evidence counts half: 1 to 730.
    #[schema(required = false, minimum = 1, maximum = 730)]
    half_life_days: u32,
    /// Days after which a slash counts half: 1 to 730.
    #[schema(required = false, minimum = 1, maximum = 730)]
    slash_half_life_days: u32,
    /// Points that a report takes off: `critical`, `high`, `medium`, `low`.
    #[schema(required = false)]
    slash: BTreeMap<String, f64>,
    /// What each factor weighs: `reliability`, `quality`, `responsiveness`, `honesty`, `cooperativeness`.
    #[schema(required = false)]
    factors: BTreeMap<String, u8>,
    /// What a reporter counts, in percent; 100 unless listed.
    #[schema(required = false)]
    reporters: BTreeMap<String, u8>,
    /// Observations of one hour that count for a factor.
    #[schema(required = false)]
    hour_cap: u32,
    /// Observations of one reporter that count for a factor.
    #[schema(required = false)]
    reporter_cap: u32,
    /// Milliseconds within which an answer is in time: 1 to 3,600,000.
    #[schema(required = false, minimum = 1, maximum = 3_600_000)]
    responsive_ms: u64,
}

/// How an agent behaved so far.
#[derive(ToSchema)]
pub(super) struct Reputation {
    /// Whose.
    agent: String,
    /// Out of ten.
    score: f64,
    /// The score as a word.
    level: String,
    /// How much evidence it rests on, in percent.
    confidence: u8,
    /// Each factor out of ten, before slashes.
    factors: BTreeMap<String, f64>,
    /// The heaviest slashes in force; at most 16.
    #[schema(required = false)]
    slashes: Vec<Slash>,
    /// How many events it follows from.
    events: u64,
    /// When it was computed, Unix seconds.
    at: u64,
}

/// A slash in force.
#[derive(ToSchema)]
pub(super) struct Slash {
    /// Of the report.
    id: String,
    /// What was found.
    finding: String,
    /// How bad it was.
    severity: String,
    /// What it took off the score at first.
    points: f64,
    /// Unix seconds.
    at: u64,
    /// `hop:<uuid>` or `decision:<uuid>`.
    evidence: String,
}

/// What a peer must show before policy is asked.
#[derive(ToSchema)]
pub(super) struct Require {
    /// `declared`, `observed` or `hardware`.
    #[schema(required = false, pattern = "^(declared|observed|hardware)$")]
    assurance: String,
    /// `cooperative` or `captured`.
    #[schema(required = false, pattern = "^(cooperative|captured)$")]
    enforcement: String,
}

/// A host outside the mesh.
#[derive(ToSchema)]
pub(super) struct EgressRule {
    /// A DNS name, `*.` and a DNS name, or an IP address.
    host: String,
    /// 443 if absent.
    #[schema(required = false)]
    port: u16,
    /// Let the name resolve to loopback or private addresses.
    #[schema(required = false)]
    allow_private: bool,
}

/// An order to stop.
#[derive(ToSchema)]
pub(super) struct Order {
    /// A UUID.
    id: String,
    scope: Scope,
    /// `pause` or `kill`.
    mode: String,
    /// Why; callers see it.
    reason: String,
    /// Who ordered it, and who approved it where two were needed.
    issued_by: Vec<String>,
    /// Unix seconds.
    issued_at: u64,
    /// Unix seconds at which a pause ends by itself.
    expires: Option<u64>,
}

/// Whom an order stops.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub(super) enum Scope {
    /// Everything.
    Mesh {},
    /// Agents that have all of these labels: 1 to 8.
    Selector { labels: BTreeMap<String, String> },
    /// One agent: calls to it and from it.
    Agent { agent: String },
    /// One tool or skill of one agent, or of all.
    Tool { agent: Option<String>, tool: String },
    /// Calls of one agent to another.
    Pair { source: String, destination: String },
}

/// Why a request was refused (RFC 9457).
#[derive(ToSchema)]
pub(super) struct Problem {
    /// `urn:aip:reason:<reason>`.
    r#type: String,
    /// The reason in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What failed, why, and what to do.
    detail: String,
    /// Stable, snake_case; docs/admin-api.md lists them.
    reason: String,
    /// Every mistake that was found.
    #[schema(required = false)]
    errors: Vec<Mistake>,
}

/// One mistake in a document.
#[derive(ToSchema)]
pub(super) struct Mistake {
    /// A field path, or `file:line:column`.
    field: String,
    /// What is wrong, and what would be right.
    message: String,
}
