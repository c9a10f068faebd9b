//! Every decoder of bytes that a peer chooses, each as a function of these bytes that holds it to its promises: what is read
//! is read again as the same, what has one spelling has no other, what is taken was signed and keeps its bounds, and two
//! readers agree. It panics where a promise does not hold.
//!
//! `fuzz/` gives them to libFuzzer (`make fuzz`), and `tests/fuzz_corpora.rs` gives them what fuzzing found, and some
//! thousand changes of it.
//!
//! | module | what comes from a peer |
//! |---|---|
//! | `request` | heads, headers, paths, trace context, what a tunnel begins with |
//! | `http2` | heads of HTTP/2 |
//! | `body` | JSON, the call in it, agent cards |
//! | `events` | event streams of agents |
//! | `names` | names and ids |
//! | `identity` | statements, certificates, evidence, tokens |
//! | `claims` | drift reports, the secret of a proxy's URL |
//! | `stream` | messages between sidecars and the control plane, resources, the cache of them |
//! | `kill` | orders to stop |
//! | `audit` | records, segments, checkpoints, exports |
//! | `settings` | files of settings, policies |
//! | `mesh` | the keys that sign all of it here |
//!
//! Everything here may panic: a promise that does not hold is a failed test.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod audit;
mod body;
mod claims;
mod events;
mod http2;
mod identity;
mod kill;
mod mesh;
mod names;
mod request;
mod settings;
mod split;
mod stream;

/// Inputs made from real encodings, by what they are.
pub type Seeds = Vec<(&'static str, Vec<u8>)>;

/// One decoder.
pub struct Target {
    /// Its name: of its corpus and of its executable.
    pub name: &'static str,
    /// Reads the bytes, and panics where a promise does not hold. Whether they were taken for what they should be.
    pub run: fn(&[u8]) -> bool,
    /// What its corpus begins with.
    pub seeds: fn() -> Seeds,
}

macro_rules! targets {
    ($($module:ident: $($name:ident $seeds:ident),*;)*) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[
            $($(Target { name: stringify!($name), run: $module::$name, seeds: $module::$seeds },)*)*
        ];
        $($(
            #[doc = concat!("The target `", stringify!($name), "`.")]
            pub fn $name(bytes: &[u8]) {
                $module::$name(bytes);
            }
        )*)*
    };
}

targets! {
    request: http_head http_head_seeds, trailers trailers_seeds, path path_seeds, trace trace_seeds,
        client_hello client_hello_seeds;
    http2: http2_head http2_head_seeds;
    body: json_body json_body_seeds, call call_seeds, agent_card agent_card_seeds;
    events: event_stream event_stream_seeds;
    names: names names_seeds;
    identity: attestation attestation_seeds, svid_extension svid_extension_seeds, svid svid_seeds, csr csr_seeds,
        evidence evidence_seeds, join_token join_token_seeds, admin_token admin_token_seeds;
    claims: drift drift_seeds, proxy_secret proxy_secret_seeds;
    stream: mesh_messages mesh_messages_seeds, resource resource_seeds, manifest manifest_seeds,
        config_cache config_cache_seeds;
    kill: kill_set kill_set_seeds, kill_file kill_file_seeds;
    audit: audit_record audit_record_seeds, audit_segment audit_segment_seeds, audit_checkpoint audit_checkpoint_seeds,
        audit_export audit_export_seeds;
    settings: sidecar_settings sidecar_settings_seeds, control_plane_settings control_plane_settings_seeds,
        policy policy_seeds;
}

/// The bytes as text, whatever they are.
pub(crate) fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory in memory where there is one: these tests write a file for each input.
pub(crate) fn in_memory() -> tempfile::TempDir {
    let shared = std::path::Path::new("/dev/shm");
    let made = tempfile::tempdir_in(shared);
    made.unwrap_or_else(|_| tempfile::tempdir().unwrap())
}
