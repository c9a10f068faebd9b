//! Settings: one YAML file, and listening sockets that say which flag is wrong.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use aip_api::problem::FieldError;
use serde::de::DeserializeOwned;

/// Largest settings file. Real ones are a page; the YAML parser's work grows with nesting.
const MAX_BYTES: u64 = 1024 * 1024;

/// Why a process can't start with its settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("the settings file {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too large.
    #[error("the settings file {0} is larger than 1 MiB")]
    TooLarge(PathBuf),
    /// The file is not what it should be.
    #[error("{path}: {message}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// What, with line and column where the parser knows them.
        message: String,
    },
    /// Values that can't be; all of them.
    #[error("{} setting(s) can't be used:\n{}", .0.len(), list(.0))]
    Invalid(Vec<FieldError>),
    /// The port is taken.
    #[error("{address} for {what} is taken by another process; choose another with {flag}")]
    PortTaken {
        /// What wanted to listen.
        what: String,
        /// Where.
        address: SocketAddr,
        /// The flag that sets it.
        flag: String,
    },
    /// The address can't be listened on.
    #[error("can't listen on {address} for {what}: {source}; choose another with {flag}")]
    Listen {
        /// What wanted to listen.
        what: String,
        /// Where.
        address: SocketAddr,
        /// The flag that sets it.
        flag: String,
        /// Why.
        source: io::Error,
    },
}

fn list(errors: &[FieldError]) -> String {
    errors.iter().map(|e| format!("  {e}")).collect::<Vec<_>>().join("\n")
}

impl SettingsError {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::File { .. } => "settings_unreadable",
            Self::TooLarge(_) => "settings_too_large",
            Self::Syntax { .. } => "settings_syntax",
            Self::Invalid(_) => "settings_invalid",
            Self::PortTaken { .. } => "port_taken",
            Self::Listen { .. } => "listen_failed",
        }
    }
}

/// Reads a YAML file.
///
/// # Errors
/// Unreadable, too large, or not of the expected shape.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, SettingsError> {
    let failed = |source| SettingsError::File {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(SettingsError::TooLarge(path.to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    // The parser's own message names the field and the line.
    serde_yaml::from_str(&text).map_err(|e| SettingsError::Syntax {
        path: path.to_owned(),
        message: e.to_string(),
    })
}

/// Listens; `what` and `flag` stand in the error.
///
/// # Errors
/// Taken, or not an address of this machine.
pub fn listen(what: &str, flag: &str, address: SocketAddr) -> Result<TcpListener, SettingsError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|source: io::Error| {
        let (what, flag) = (what.to_owned(), flag.to_owned());
        if source.kind() == io::ErrorKind::AddrInUse {
            SettingsError::PortTaken { what, address, flag }
        } else {
            SettingsError::Listen {
                what,
                address,
                flag,
                source,
            }
        }
    })
}
