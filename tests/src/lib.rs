//! What AIP's tests share: the mesh as real processes, official clients against it, and a scripted control plane.
//!
//! | module | what |
//! |---|---|
//! | [`wait`] | conditions with deadlines; no test sleeps |
//! | [`process`] | the binaries, a whole mesh of them, their access logs and admin APIs |
//! | [`clients`] | the agents and clients of `tests/clients`, as their users run them |
//! | [`collector`] | an OTLP receiver in this process |
//! | [`agent`] | an HTTP agent in this process that shows exactly what reached it |
//! | [`alerted`] | what alert rules ask the increase of |
//! | [`hello`] | a ClientHello and its records, in which every part can be wrong |
//! | [`frames`] | HTTP/2 frame by frame, where a client library would be too polite |
//! | [`hostile`] | an agent that answers with any bytes |
//! | [`http`] | HTTP through a sidecar, and raw bytes where a client library would be too polite |
//! | [`network`] | hosts of their own, and links between them that can be slowed and cut |
//! | [`pair`] | two sidecars with that agent behind both, for tests of what a request meets |
//! | [`pki`] | a mesh's keys, and certificates with every fault |
//! | [`relay`] | a way for connections between two processes, which can be slowed, held up and cut |
//! | [`root`] | what only root can test |
//! | [`scripted`] | a control plane that pushes what a test tells it to |
//! | [`sealed`] | records of our own after a handshake |
//! | [`seeded`] | random numbers that can be had again |
//! | [`trail`] | the audit logs of a sidecar |
//! | [`wire`] | TLS as a stranger would speak it to a sidecar's port |
//!
//! Tests live in `tests/tests`. Everything here may panic: a broken harness is a failed test.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

pub mod agent;
pub mod alerted;
pub mod clients;
pub mod collector;
pub mod frames;
pub mod hello;
pub mod hostile;
pub mod http;
pub mod network;
pub mod pair;
pub mod pki;
pub mod process;
pub mod relay;
pub mod root;
pub mod scripted;
pub mod sealed;
pub mod seeded;
pub mod trail;
pub mod wait;
pub mod wire;
