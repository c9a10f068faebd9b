//! The data path in one process: sidecars over loopback with real TLS, an agent that shows what reached it, and worlds
//! that a test makes. No control plane: what a sidecar is told comes from [`mesh::Side::push`].

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

#[path = "data_path/agent.rs"]
mod agent;
#[path = "data_path/client.rs"]
mod client;
#[path = "data_path/kinds.rs"]
mod kinds;
#[path = "data_path/mesh.rs"]
mod mesh;
#[path = "data_path/orders.rs"]
mod orders;
#[path = "data_path/paused.rs"]
mod paused;
#[path = "data_path/pki.rs"]
mod pki;

#[path = "data_path/allow.rs"]
mod allow;
#[path = "data_path/answered.rs"]
mod answered;
#[path = "data_path/audit.rs"]
mod audit;
#[path = "data_path/bodies.rs"]
mod bodies;
#[path = "data_path/calls.rs"]
mod calls;
#[path = "data_path/connect.rs"]
mod connect;
#[path = "data_path/cut.rs"]
mod cut;
#[path = "data_path/disguise.rs"]
mod disguise;
#[path = "data_path/docs.rs"]
mod docs;
#[path = "data_path/expect.rs"]
mod expect;
#[path = "data_path/held.rs"]
mod held;
#[path = "data_path/hygiene.rs"]
mod hygiene;
#[path = "data_path/interval.rs"]
mod interval;
#[path = "data_path/kill.rs"]
mod kill;
#[path = "data_path/peers.rs"]
mod peers;
#[path = "data_path/refuse.rs"]
mod refuse;
#[path = "data_path/reputation.rs"]
mod reputation;
#[path = "data_path/retry.rs"]
mod retry;
#[path = "data_path/rewrite.rs"]
mod rewrite;
#[path = "data_path/stopped.rs"]
mod stopped;
#[path = "data_path/stream.rs"]
mod stream;
#[path = "data_path/timeouts.rs"]
mod timeouts;
#[path = "data_path/tunnel.rs"]
mod tunnel;
#[path = "data_path/unread.rs"]
mod unread;
#[path = "data_path/upgrade.rs"]
mod upgrade;
#[path = "data_path/world.rs"]
mod world;
