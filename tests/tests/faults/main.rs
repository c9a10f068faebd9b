//! Faults of the network between hosts: links that are slow, lossy, narrow, cut, or open in one direction alone. Calls end
//! within their deadlines, none is delivered twice, and all is as before once the link is whole again.
//!
//! Each test has hosts of its own, in network namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod control;
mod silence;
mod slow;
mod world;
