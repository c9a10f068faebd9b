//! The secret by which the outbound port knows its agent.

use std::path::Path;

use aip_runtime::files;
use anyhow::Context as _;
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use crate::config::Access;

/// Shortest secret that is taken: guessing is local and cheap, so 128 bits, which are 22 characters of base64.
const MIN_CHARACTERS: usize = 22;
/// Random bytes of a secret of ours.
const RANDOM_BYTES: usize = 24;

/// The secret, made if it is ours to make. None where the port asks for none.
pub(super) fn of(access: &Access) -> anyhow::Result<Option<Zeroizing<String>>> {
    let Some(path) = &access.proxy_secret_file else {
        if access.agent_uid.is_none() {
            tracing::warn!(
                reason = "proxy_open",
                "every process that reaches the outbound port can speak as this agent (--proxy-open)"
            );
        }
        return Ok(None);
    };
    // One that was made before stays: the agent has it in its environment.
    if access.makes_secret {
        if !path.exists() {
            make(path).with_context(|| format!("the proxy secret {} can't be made", path.display()))?;
        }
        tracing::info!(
            file = %path.display(),
            "the agent must show the secret in this file: HTTP_PROXY=http://aip:<secret>@<outbound address>"
        );
    }
    read(path).map(Some)
}

fn read(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.with_context(|| format!("--proxy-secret-file {} can't be read", path.display()))?;
    let secret = Zeroizing::new(text.trim().to_owned());
    anyhow::ensure!(
        secret.len() >= MIN_CHARACTERS,
        "--proxy-secret-file {} holds fewer than {MIN_CHARACTERS} characters",
        path.display()
    );
    Ok(secret)
}

fn make(path: &Path) -> anyhow::Result<()> {
    let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
    let random = SystemRandom::new().fill(&mut *bytes);
    random.map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
    let text = Zeroizing::new(hex::encode(*bytes));
    Ok(files::write_private(path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_secret_is_made_once_and_for_this_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy-secret");
        let access = Access {
            proxy_secret_file: Some(path.clone()),
            makes_secret: true,
            agent_uid: None,
        };
        let made = of(&access).unwrap().unwrap();
        assert_eq!(made.len(), 2 * RANDOM_BYTES);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(of(&access).unwrap().unwrap(), made, "a restart asks for the same");
        let other = dir.path().join("other");
        let again = Access {
            proxy_secret_file: Some(other),
            ..access
        };
        assert_ne!(of(&again).unwrap().unwrap(), made);
    }

    #[test]
    fn a_secret_that_was_given_is_read_and_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("given");
        let access = Access {
            proxy_secret_file: Some(path.clone()),
            makes_secret: false,
            agent_uid: None,
        };
        assert!(of(&access).is_err(), "it is not there");
        std::fs::write(&path, "short\n").unwrap();
        assert!(of(&access).unwrap_err().to_string().contains("fewer than 22"));
        std::fs::write(&path, "0123456789012345678901\n").unwrap();
        assert_eq!(of(&access).unwrap().unwrap().as_str(), "0123456789012345678901");
    }
}
