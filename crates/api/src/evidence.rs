//! Evidence: what a sidecar says it measured, and the Merkle digest of files in it (RFC 9334 calls the sidecar the
//! attester). Evidence is a JWS, ES256, by the key of the CSR it comes with.

use serde::{Deserialize, Serialize};

use crate::resource::Measurement;
use crate::{AgentName, Digest};

/// Most files that one measurement may cover: past it a walk is a mistake (a home directory, a dependency cache).
pub const MAX_FILES: usize = 10_000;
/// Most bytes that one measurement may read; at about 1 GB/s of SHA-256 this keeps a start under a second.
pub const MAX_TOTAL_BYTES: u64 = 256 * 1024 * 1024;
/// Longest path in a measurement, in bytes (PATH_MAX on Linux).
pub const MAX_PATH_BYTES: usize = 4096;
/// Largest evidence JWS that the control plane reads: 10,000 files of ordinary path length.
pub const MAX_EVIDENCE_BYTES: usize = 3 * 1024 * 1024;
/// Longest name of a run: a UUID, with room for what other supervisors call theirs.
pub const MAX_RUN_BYTES: usize = 64;
/// The `typ` of an evidence JWS.
pub const EVIDENCE_TYP: &str = "aip-evidence+jwt";

/// What stands in a measured command line for the port that the agent serves at: a port that is chosen at each start
/// makes no other program of it.
pub const PORT_PLACEHOLDER: &str = "{port}";

/// How far a fact can be trusted: who measured it, and could the agent have interfered?
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// The sidecar says so; it stands beside the agent.
    #[default]
    Declared,
    /// Something outside the agent's reach measured it.
    Observed,
    /// Hardware signed it.
    Hardware,
}

/// Whether an agent can go around its sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// The agent uses its proxy variables because it was started so.
    #[default]
    Cooperative,
    /// A network namespace or redirect leaves it no other way.
    Captured,
}

impl Assurance {
    /// The word that policy, status and docs use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Observed => "observed",
            Self::Hardware => "hardware",
        }
    }
}

impl Enforcement {
    /// The word that policy, status and docs use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cooperative => "cooperative",
            Self::Captured => "captured",
        }
    }
}

/// One measured file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredFile {
    /// Path below the measured root, `/` between its parts.
    pub path: String,
    /// Whether the owner may execute it.
    pub exec: bool,
    /// Digest of the content; of the target's text for a symbolic link.
    pub sha256: Digest,
}

/// What the sidecar states at issuance (`docs/architecture.md`, Identity).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Version of this statement: 1.
    pub v: u32,
    /// For which agent.
    pub agent: AgentName,
    /// The control plane's nonce, base64url.
    pub nonce: String,
    /// SHA-256 of the DER SubjectPublicKeyInfo of the CSR's key: binds the statement to the connection key.
    pub jkt: Digest,
    /// Which attestor made it: `files` or `process`.
    pub attestor: String,
    /// Who measured, at best.
    pub assurance: Assurance,
    /// Merkle digest of [`Evidence::files`].
    pub code: Digest,
    /// The files under `code`, sorted by the bytes of their path.
    pub files: Vec<MeasuredFile>,
    /// Digest of the agent's declared configuration, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Digest>,
    /// Digest of the executable, where the sidecar supervises the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<Digest>,
    /// The agent's command line, where the sidecar supervises it; its port as [`PORT_PLACEHOLDER`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Digest of the sidecar's own executable.
    pub sidecar: Digest,
    /// Can the agent go around?
    pub enforcement: Enforcement,
    /// Which run of the agent this is: made anew when its supervisor starts it; where nobody supervises it, when the
    /// sidecar starts. At most [`MAX_RUN_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// In which run this sidecar suspended itself for drift, if it did and has not been let back in since: a report that
    /// never arrived is made good by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drifted: Option<String>,
    /// The generation of the SVID that it held then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drifted_generation: Option<u64>,
    /// When, in Unix seconds.
    pub iat: u64,
}

/// What is wrong with a list of files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// Over [`MAX_FILES`].
    #[error("{0} files are declared; at most {MAX_FILES} can be measured: narrow the globs")]
    TooMany(usize),
    /// Unsorted, twice the same, absolute, or leading outside.
    #[error("path {0:?} is not allowed: paths are relative, below the root, unique and sorted by their bytes")]
    Path(String),
}

/// The command line as it is measured: each occurrence of the agent's port, as a number of its own, is
/// [`PORT_PLACEHOLDER`].
pub fn measured_argv(argv: &[String], port: u16) -> Vec<String> {
    let port = port.to_string();
    argv.iter().map(|argument| without_port(argument, &port)).collect()
}

fn without_port(argument: &str, port: &str) -> String {
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let (mut out, mut rest) = (String::with_capacity(argument.len()), argument);
    while let Some(at) = rest.find(port) {
        let (before, found) = rest.split_at(at);
        let after = &found[port.len()..];
        let part_of_more = is_digit(before.chars().next_back()) || is_digit(after.chars().next());
        // What stands before was looked at in the turn before, but for its last digit.
        let part_of_more = part_of_more || (before.is_empty() && is_digit(out.chars().next_back()));
        out.push_str(before);
        out.push_str(if part_of_more { port } else { PORT_PLACEHOLDER });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The digest of a measured command line: of each argument's length and bytes, in order.
pub fn argv_digest(argv: &[String]) -> Digest {
    let mut bytes = b"aip argv\0".to_vec();
    for argument in argv {
        bytes.extend((argument.len() as u64).to_be_bytes());
        bytes.extend(argument.as_bytes());
    }
    Digest::sha256(&bytes)
}

/// The Merkle root over measured files (RFC 6962 section 2.1; leaves by path bytes).
///
/// Leaf data is `u32be(len(path)) || path || exec || SHA-256(file)`; leaf and node hashes carry RFC 6962's prefixes.
///
/// # Errors
/// Too many files; a path that is absolute, leaves the root, or stands out of order.
pub fn code_digest(files: &[MeasuredFile]) -> Result<Digest, FilesError> {
    if files.len() > MAX_FILES {
        return Err(FilesError::TooMany(files.len()));
    }
    let ordered = files.windows(2).all(|w| w[0].path.as_bytes() < w[1].path.as_bytes());
    for (i, file) in files.iter().enumerate() {
        let misplaced = !ordered && i > 0 && files[i - 1].path.as_bytes() >= file.path.as_bytes();
        if misplaced || !is_inner_path(&file.path) {
            return Err(FilesError::Path(file.path.chars().take(200).collect()));
        }
    }
    let leaves: Vec<Digest> = files
        .iter()
        .map(|f| {
            // Bounded by MAX_PATH_BYTES, checked above.
            let len = u32::try_from(f.path.len()).unwrap_or(u32::MAX).to_be_bytes();
            Digest::of_parts(&[&[0], &len, f.path.as_bytes(), &[u8::from(f.exec)], f.sha256.as_bytes()])
        })
        .collect();
    Ok(merkle_root(&leaves))
}

fn is_inner_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= MAX_PATH_BYTES
        && !path.contains('\0')
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

/// RFC 6962 section 2.1 over leaf hashes.
fn merkle_root(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => Digest::sha256(b""),
        [one] => *one,
        many => {
            let split = many.len().next_power_of_two() / 2;
            let (left, right) = many.split_at(split);
            Digest::of_parts(&[&[1], merkle_root(left).as_bytes(), merkle_root(right).as_bytes()])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(path: &str, content: &[u8]) -> MeasuredFile {
        MeasuredFile {
            path: path.into(),
            exec: false,
            sha256: Digest::sha256(content),
        }
    }

    #[test]
    fn the_root_follows_rfc_6962() {
        let files = [file("a", b"1"), file("b", b"2"), file("c", b"3")];
        let leaf = |f: &MeasuredFile| {
            let len = (f.path.len() as u32).to_be_bytes();
            Digest::of_parts(&[&[0], &len, f.path.as_bytes(), &[0], f.sha256.as_bytes()])
        };
        let node = |l: Digest, r: Digest| Digest::of_parts(&[&[1], l.as_bytes(), r.as_bytes()]);
        let expected = node(node(leaf(&files[0]), leaf(&files[1])), leaf(&files[2]));
        assert_eq!(code_digest(&files).unwrap(), expected);
        assert_eq!(code_digest(&[]).unwrap(), Digest::sha256(b""));
    }

    #[test]
    fn paths_stay_below_the_root_and_in_order() {
        for bad in ["/etc/passwd", "../x", "a/../b", "a//b", "./a", "", "a/", "a\0b"] {
            assert!(code_digest(&[file(bad, b"")]).is_err(), "{bad:?} must be refused");
        }
        assert!(code_digest(&[file("b", b""), file("a", b"")]).is_err(), "unsorted");
        assert!(code_digest(&[file("a", b""), file("a", b"")]).is_err(), "twice");
        let many: Vec<_> = (0..=MAX_FILES).map(|i| file(&format!("{i:06}"), b"")).collect();
        assert_eq!(code_digest(&many), Err(FilesError::TooMany(MAX_FILES + 1)));
        assert!(code_digest(&many[..MAX_FILES]).is_ok());
    }

    #[test]
    fn a_port_that_is_chosen_at_each_start_makes_no_other_command_line() {
        let words = |argv: &[&str]| argv.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
        let at = |port: u16| {
            let port_text = port.to_string();
            let argv = words(&["serve", "-p", &port_text, &format!("--listen=127.0.0.1:{port}/x")]);
            measured_argv(&argv, port)
        };
        assert_eq!(
            at(8000),
            words(&["serve", "-p", "{port}", "--listen=127.0.0.1:{port}/x"])
        );
        assert_eq!(argv_digest(&at(8000)), argv_digest(&at(49_152)));
        // Only the port as a number of its own.
        for other in ["18000", "80001", "x80008000", "800080008000"] {
            assert_eq!(measured_argv(&words(&[other]), 8000), words(&[other]));
        }
        assert_ne!(argv_digest(&words(&["ab", "c"])), argv_digest(&words(&["a", "bc"])));
        assert_ne!(
            argv_digest(&words(&["-c", "good"])),
            argv_digest(&words(&["-c", "evil"]))
        );
    }

    proptest! {
        #[test]
        fn any_change_changes_the_digest(n in 1usize..40, at in 0usize..40, flip in 0usize..3) {
            let files: Vec<_> = (0..n).map(|i| file(&format!("f{i:03}"), &[i as u8])).collect();
            let mut other = files.clone();
            let at = at % n;
            match flip {
                0 => other[at].exec = true,
                1 => other[at].sha256 = Digest::sha256(b"changed"),
                _ => { other.remove(at); }
            }
            prop_assert_ne!(code_digest(&files).unwrap(), code_digest(&other).unwrap());
        }
    }
}

/// The `typ` of a drift report's JWS.
pub const DRIFT_TYP: &str = "aip-drift+jwt";
/// Most changed files that a drift report names; of more it says how many there are.
pub const MAX_DRIFTED_NAMED: usize = 20;
/// Largest drift report that the control plane reads: its longest paths, and room for the rest.
pub const MAX_DRIFT_BYTES: usize = 160 * 1024;

/// What a sidecar states when what its agent runs is no longer what was approved: a JWS, ES256, by its SVID's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drift {
    /// Version of this statement: 1.
    pub v: u32,
    /// Which agent.
    pub agent: AgentName,
    /// The generation that it ran under.
    pub generation: u64,
    /// The digest that was approved.
    pub was: Digest,
    /// The digest that was found; none where it can't be measured any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Digest>,
    /// What would have to be approved for `found`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurement: Option<Measurement>,
    /// How many files were measured for `found`.
    #[serde(default)]
    pub files: usize,
    /// In which run of the agent ([`Evidence::run`]).
    pub run: String,
    /// Paths that changed, the first [`MAX_DRIFTED_NAMED`] of them.
    pub paths: Vec<String>,
    /// How many changed.
    pub changed: u64,
    /// Found at, Unix seconds.
    pub at: u64,
    /// Stated at, Unix seconds: a report that is said again is signed again.
    pub iat: u64,
}
