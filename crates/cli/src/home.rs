//! Where `aip` keeps things on this machine, and how it finds the control plane.

use std::io;
use std::path::{Path, PathBuf};

use aip_api::AgentName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::{Exit, Failure};

/// Largest of our own files that is read back.
const MAX_FILE: u64 = 1024 * 1024;

/// `$AIP_HOME`, or `~/.aip`.
#[derive(Debug, Clone)]
pub(crate) struct Home(PathBuf);

/// How to reach the control plane; written by `aip up` to `<home>/context.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Context {
    /// URL of the admin API.
    pub(crate) admin: String,
    /// The admin API's Unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) socket: Option<PathBuf>,
    /// `ip:port` of the mesh streams.
    pub(crate) mesh: String,
    /// File with the admin token.
    pub(crate) token_file: PathBuf,
    /// Digest of the root's public key.
    pub(crate) root: String,
}

impl Home {
    pub(crate) fn find(given: Option<&Path>) -> Result<Self, Failure> {
        if let Some(path) = given {
            // Children run elsewhere: what they are told must not depend on where they stand.
            return std::path::absolute(path).map(Self).map_err(|e| {
                Failure::new(Exit::Usage, format!("{} is not a directory", path.display())).why(e.to_string())
            });
        }
        match std::env::var_os("HOME").filter(|h| !h.is_empty()) {
            Some(home) => Ok(Self(Path::new(&home).join(".aip"))),
            None => Err(Failure::new(Exit::Usage, "neither AIP_HOME nor HOME is set")
                .next("set AIP_HOME to a directory of yours, or pass --home")),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn control_plane(&self) -> PathBuf {
        self.0.join("control-plane")
    }

    fn context_file(&self) -> PathBuf {
        self.0.join("context.json")
    }

    /// What `aip up` wrote, if it ever ran here.
    pub(crate) fn context(&self) -> Option<Context> {
        serde_json::from_value(read_json(&self.context_file())?).ok()
    }

    pub(crate) fn write_context(&self, context: &Context) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(context).map_err(io::Error::other)?;
        aip_runtime::files::write_private(&self.context_file(), &text)
    }

    /// Where `aip run` keeps what belongs to one agent.
    pub(crate) fn agent(&self, name: &AgentName) -> PathBuf {
        self.0.join("agents").join(name.as_str())
    }

    /// The state files of all agents that `aip run` has started from this home.
    pub(crate) fn agent_states(&self) -> Vec<Value> {
        let mut states: Vec<(PathBuf, Value)> = std::fs::read_dir(self.0.join("agents"))
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let path = entry.ok()?.path().join("state.json");
                Some((path.clone(), read_json(&path)?))
            })
            .collect();
        states.sort_by(|a, b| a.0.cmp(&b.0));
        states.into_iter().map(|(_, state)| state).collect()
    }
}

/// A private directory (0700), made with its parents.
pub(crate) fn private_dir(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| {
            Failure::new(Exit::Failed, format!("{} can't be made", path.display()))
                .why(e.to_string())
                .next("choose a writable directory with --home or AIP_HOME")
        })
}

/// A JSON file of bounded size; `None` where it is missing or isn't JSON.
pub(crate) fn read_json(path: &Path) -> Option<Value> {
    let meta = std::fs::metadata(path).ok()?;
    (meta.len() <= MAX_FILE).then_some(())?;
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
