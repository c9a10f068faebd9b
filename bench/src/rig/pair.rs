//! Our pair alone, in front of an agent that somebody else runs, and ended in order.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use super::admin::Admin;
use super::{SetUp, answers, mesh};
use crate::children::Child;
use crate::load::Target;

/// Longest until one of its processes has ended after it was asked to: an instrumented one writes megabytes first.
const END: Duration = Duration::from_secs(60);

pub(crate) struct Pair {
    pub(crate) target: Target,
    pub(crate) admin: Admin,
    children: Vec<Child>,
    // Last, so that nothing runs in it any more when it is removed.
    _dir: TempDir,
}

impl Pair {
    pub(crate) async fn start(agent: SocketAddr, bin_dir: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("aip-bench-").tempdir()?;
        let SetUp {
            target,
            children,
            admin,
            groups: _,
        } = mesh::start(dir.path(), bin_dir, agent)
            .await
            .context("set up our pair")?;
        answers(&target).await.context("one request through our pair")?;
        Ok(Self {
            target,
            admin: admin.context("our pair has an admin API")?,
            children,
            _dir: dir,
        })
    }

    /// Ends the sidecars before their control plane; an error unless each ends well.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        for child in self.children.into_iter().rev() {
            child.end(END).await?;
        }
        Ok(())
    }
}
