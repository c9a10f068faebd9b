//! HTTP/1.1 over std: a threaded server and a client that honours the proxy variables.

mod client;
mod message;
mod server;

pub use client::{Client, Reply};
pub use message::{Request, Response};
pub use server::serve;

/// Longest request or response head: what common servers take.
pub(crate) const MAX_HEAD: usize = 64 * 1024;
/// Longest body: the demo sends a few hundred bytes.
pub(crate) const MAX_BODY: usize = 1024 * 1024;
