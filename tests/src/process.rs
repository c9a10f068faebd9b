//! The mesh as processes.

mod access;
mod admin;
mod binaries;
mod child;
mod mesh;
mod sidecar;

pub use access::{Record, Records, pairs};
pub use admin::Admin;
pub use binaries::binary;
pub(crate) use binaries::repository;
pub use child::{Process, free_port};
pub use mesh::{ControlPlane, Mesh};
pub use sidecar::{Sidecar, SidecarSpec};
