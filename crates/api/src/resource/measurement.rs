//! `Measurement`: an approved set of facts for an agent.

use serde::{Deserialize, Serialize};

use super::{Kind, Resource};
use crate::evidence::{Evidence, argv_digest};
use crate::problem::FieldError;
use crate::{AgentName, Digest};

/// An approved measurement: evidence of `agent` matches when every field that is present here is equal there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// The agent that may run this.
    pub agent: AgentName,
    /// The attestor that must have measured it.
    pub attestor: String,
    /// Merkle digest of the declared files.
    pub code: Digest,
    /// Digest of the declared configuration; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Digest>,
    /// Digest of the executable; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<Digest>,
    /// Digest of the command line, the agent's port aside ([`argv_digest`]); absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Digest>,
    /// Digest of the sidecar's executable; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Digest>,
    /// Who approved it.
    #[serde(default)]
    pub approved_by: String,
    /// When, Unix seconds.
    #[serde(default)]
    pub approved_at: u64,
}

impl Measurement {
    /// What would have to be approved for this evidence to match.
    pub fn of(evidence: &Evidence) -> Self {
        Self {
            agent: evidence.agent.clone(),
            attestor: evidence.attestor.clone(),
            code: evidence.code,
            config: evidence.config,
            executable: evidence.executable,
            argv: evidence.argv.as_deref().map(argv_digest),
            sidecar: Some(evidence.sidecar),
            approved_by: String::new(),
            approved_at: 0,
        }
    }

    /// Whether the evidence shows what was approved.
    pub fn matches(&self, evidence: &Evidence) -> bool {
        let same = |approved: Option<Digest>, shown: Option<Digest>| approved.is_none() || approved == shown;
        self.agent == evidence.agent
            && self.attestor == evidence.attestor
            && self.code == evidence.code
            && same(self.config, evidence.config)
            && same(self.executable, evidence.executable)
            && same(self.argv, evidence.argv.as_deref().map(argv_digest))
            && same(self.sidecar, Some(evidence.sidecar))
    }

    /// The digest of what is approved, whoever approved it: the second half of the name.
    pub fn fingerprint(&self) -> Digest {
        let mut parts = vec![
            b"aip measurement\0".to_vec(),
            self.attestor.as_bytes().to_vec(),
            vec![0],
        ];
        for digest in [Some(self.code), self.config, self.executable, self.argv, self.sidecar] {
            // Presence is hashed too, so that "any" and a value never fold together.
            parts.push(vec![u8::from(digest.is_some())]);
            parts.push(digest.map(|d| d.as_bytes().to_vec()).unwrap_or_default());
        }
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        Digest::of_parts(&slices)
    }
}

impl Resource for Measurement {
    const KIND: Kind = Kind::Measurement;
    fn name(&self) -> String {
        format!("{}/{}", self.agent, self.fingerprint())
    }
    fn validate(&self) -> Vec<FieldError> {
        if ["files", "process", "kubernetes"].contains(&self.attestor.as_str()) {
            Vec::new()
        } else {
            vec![FieldError::new(
                "attestor",
                format!("{:?} is not one of files, process, kubernetes", self.attestor),
            )]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::{Assurance, Enforcement};

    fn evidence(argv: Option<&[&str]>) -> Evidence {
        Evidence {
            v: 1,
            agent: "planner".parse().unwrap(),
            nonce: String::new(),
            jkt: Digest::sha256(b"key"),
            attestor: "process".into(),
            assurance: Assurance::Declared,
            code: Digest::sha256(b""),
            files: Vec::new(),
            config: None,
            executable: Some(Digest::sha256(b"python3")),
            argv: argv.map(|argv| argv.iter().map(|a| (*a).to_owned()).collect()),
            sidecar: Digest::sha256(b"sidecar"),
            enforcement: Enforcement::Cooperative,
            run: None,
            drifted: None,
            drifted_generation: None,
            iat: 0,
        }
    }

    /// An interpreter runs whatever its arguments say: who approved one program has not approved another.
    #[test]
    fn another_command_line_is_another_measurement() {
        let good = evidence(Some(&["python3", "-c", "serve()"]));
        let approved = Measurement::of(&good);
        assert!(approved.matches(&good));
        for other in [
            evidence(Some(&["python3", "-c", "steal()"])),
            evidence(Some(&["python3", "-c", "serve()", ""])),
            evidence(Some(&[])),
            evidence(None),
        ] {
            assert!(!approved.matches(&other), "{:?}", other.argv);
            assert_ne!(Measurement::of(&other).fingerprint(), approved.fingerprint());
        }
        let any = Measurement { argv: None, ..approved };
        assert!(any.matches(&good), "one that names no command line is for any");
    }
}
