//! Settings: one YAML file, and listening sockets that say which flag is wrong.

mod said;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use aip_api::problem::FieldError;
use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};

pub use said::{Said, Text, parsed};

/// Largest settings file. Real ones are a page; the YAML parser's work grows with nesting.
const MAX_BYTES: u64 = 1024 * 1024;

/// The exit code of a process whose settings can't be used, as of one whose flags can't be read: starting it again
/// changes nothing.
pub const MISTAKE: u8 = 2;

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
    /// Whether somebody wrote something that can't be, and has to change it; else the machine is in the way.
    pub const fn is_mistake(&self) -> bool {
        match self {
            Self::File { .. } | Self::TooLarge(_) | Self::Syntax { .. } | Self::Invalid(_) => true,
            Self::PortTaken { .. } | Self::Listen { .. } => false,
        }
    }

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

/// Reads a YAML file of settings: a mapping from their names. Values that can't be used go to `mistakes`, each by its
/// name and line, and are as if they were not there: so all of them are reported at once, and with what else is wrong.
/// The lines of the others go to `said`.
///
/// # Errors
/// Unreadable, too large, or no YAML mapping.
pub fn load<T: DeserializeOwned>(
    path: &Path,
    said: &mut Said,
    mistakes: &mut Vec<FieldError>,
) -> Result<T, SettingsError> {
    let failed = |source| SettingsError::File {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(SettingsError::TooLarge(path.to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    read(&text, said, mistakes).map_err(|message| SettingsError::Syntax {
        path: path.to_owned(),
        message,
    })
}

/// The settings in `text`. The error is the parser's, with line and column where it knows them.
fn read<T: DeserializeOwned>(text: &str, said: &mut Said, mistakes: &mut Vec<FieldError>) -> Result<T, String> {
    let whole = match serde_yaml::from_str(text).map_err(|e: serde_yaml::Error| e.to_string())? {
        Value::Mapping(whole) => whole,
        Value::Null => Mapping::new(),
        _ => return Err("settings are a mapping from names to values".into()),
    };
    let mut good = Mapping::new();
    for (name, value) in whole {
        // Alone, so that the first mistake does not hide the others.
        let alone = Mapping::from_iter([(name.clone(), value.clone())]);
        match serde_yaml::from_value::<T>(Value::Mapping(alone)) {
            Ok(_) => {
                let named = name
                    .as_str()
                    .and_then(|name| Some((name.to_owned(), line_of(text, name)?)));
                said.lines.extend(named);
                good.insert(name, value);
            }
            Err(error) => mistakes.push(mistake(text, &name, &error)),
        }
    }
    serde_yaml::from_value(Value::Mapping(good)).map_err(|e| e.to_string())
}

fn mistake(text: &str, name: &Value, error: &serde_yaml::Error) -> FieldError {
    let name = match name {
        Value::String(name) => name.clone(),
        other => format!("{other:?}"),
    };
    let said = error.to_string();
    // The parser's own path begins with the name.
    let said = said.strip_prefix(&format!("{name}: ")).unwrap_or(&said);
    said::at_line(line_of(text, &name).as_ref(), name, said)
}

/// The line on which a top-level name stands, where each has a line of its own.
fn line_of(text: &str, name: &str) -> Option<usize> {
    let is_it = |line: &str| {
        let line = line.trim_start_matches(['"', '\'']);
        let after = line.strip_prefix(name).map(|rest| rest.trim_start_matches(['"', '\'']));
        after.is_some_and(|rest| rest.trim_start().starts_with(':'))
    };
    text.lines().position(is_it).map(|index| index + 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Some {
        name: Option<String>,
        workers: Option<usize>,
        listen: Option<SocketAddr>,
        globs: Vec<String>,
    }

    fn read_some(text: &str) -> (Result<Some, String>, Vec<String>) {
        let mut mistakes = Vec::new();
        let read = read(text, &mut Said::default(), &mut mistakes);
        (read, mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_value_of_a_wrong_type_is_reported_with_its_line_and_the_others_count() {
        let text = "name: fine\nworkers: [1]\n# a comment\n'listen': nowhere\nnmae: x\nglobs:\n  - a\n  - {b: c}\n";
        let (read, mistakes) = read_some(text);
        assert_eq!(read.unwrap().name.as_deref(), Option::Some("fine"));
        let expected = [
            ("workers: line 2: ", "usize"),
            ("listen: line 4: ", "address"),
            ("nmae: line 5: ", "unknown field"),
            ("globs", "line 6: "),
        ];
        assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
        for (begins, holds) in expected {
            let found = mistakes.iter().find(|m| m.starts_with(begins));
            assert!(
                found.is_some_and(|m| m.contains(holds)),
                "{begins}…{holds}: {mistakes:#?}"
            );
        }
    }

    #[test]
    fn what_is_no_mapping_is_an_error_and_nothing_is_nothing() {
        assert_eq!(read_some("").0.unwrap(), Some::default());
        assert_eq!(read_some("# nothing\n").0.unwrap(), Some::default());
        for bad in ["- a\n", "text", "a: [\n", "name: a\nname: b\n"] {
            assert!(read_some(bad).0.is_err(), "{bad}");
        }
        assert!(
            read_some("name: a\nname: b\n").0.unwrap_err().contains("name"),
            "twice the same"
        );
    }
}
