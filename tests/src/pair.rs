//! Two sidecars of a scripted mesh, `caller` and `callee`, and behind the callee an agent that shows what reached it.

use std::net::SocketAddr;
use std::path::Path;

use aip_api::AgentName;
use aip_api::resource::{Agent as Registered, EgressRule, MeshConfig, MeshMode};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::frames::Raw;
use crate::http::{self, Answer};
use crate::pki::LeafSpec;
use crate::process::{Records, Sidecar, pairs};
use crate::scripted::{Scripted, baseline};
use crate::wait;

/// Everything is allowed but what has `denied` for a path segment or a method, and hosts that nobody lists.
pub const RULES: &str = r#"package aip.policy.baseline

rules contains {"rule": "open", "verdict": "allow", "reason": "open for tests"} if {
	input.destination.kind == "agent"
}

rules contains {"rule": "listed", "verdict": "allow", "reason": "a test lists this host"} if {
	input.destination.kind == "external"
	input.destination.name == "localhost"
}

rules contains {"rule": "no_denied_path", "verdict": "deny", "reason": "a test denies it"} if {
	input.request.path[_] == "denied"
}

rules contains {"rule": "no_denied_call", "verdict": "deny", "reason": "a test denies it"} if {
	input.protocol.method == "denied"
}
"#;

/// Where somebody speaks HTTP/2 to the pair: as the caller's own agent, or as a peer with the caller's certificate.
#[derive(Debug, Clone, Copy)]
pub enum Port {
    Outbound,
    Inbound,
}

/// The pair.
pub struct Pair {
    pub scripted: Scripted,
    pub caller: Sidecar,
    pub callee: Sidecar,
    pub agent: Agent,
    dir: TempDir,
}

impl Pair {
    /// A pair with [`RULES`].
    pub async fn start() -> Self {
        Self::start_ruled(RULES).await
    }

    /// A pair with this baseline.
    pub async fn start_ruled(rego: &str) -> Self {
        let pair = Self::start_both(rego, &[]).await;
        // The caller has learnt of the callee's endpoint once a call gets there.
        wait::until_ok("a first call gets through", async || {
            let answer = pair.get("/first").await;
            if answer.status == 200 {
                Ok(())
            } else {
                Err(format!("{} {}", answer.status, answer.text()))
            }
        })
        .await;
        pair
    }

    /// As [`Self::start`]; the caller's outbound port asks for the secret in this file, so no call was made yet.
    pub async fn start_guarded(secret: &Path) -> Self {
        Self::start_both(RULES, &["--proxy-secret-file", &secret.display().to_string()]).await
    }

    async fn start_both(rego: &str, flags: &[&str]) -> Self {
        let scripted = Scripted::start();
        scripted.put(&baseline(rego));
        let (agent, dir) = (Agent::start(), TempDir::new().unwrap());
        // In `dir` from the start: a pair in a `static` is never dropped, and a janitor sees to what it leaves.
        crate::process::sweep_after_us(dir.path());
        let callee = scripted.sidecar("callee", agent.address, dir.path()).await;
        let caller = scripted.sidecar_with("caller", agent.address, dir.path(), flags).await;
        Self {
            scripted,
            caller,
            callee,
            agent,
            dir,
        }
    }

    /// One more agent of this mesh with a sidecar.
    pub async fn third(&self, document: Registered, agent: SocketAddr) -> Sidecar {
        let name = document.name.to_string();
        let sidecar = self.scripted.sidecar(&name, agent, self.dir.path()).await;
        let revision = self.scripted.put(&document);
        wait::until(&format!("{name} has its settings"), async || {
            (sidecar.snapshot().await["revision"].as_u64() >= Some(revision)).then_some(())
        })
        .await;
        sidecar
    }

    /// Lists an outside host, which may resolve to this machine.
    pub async fn allow_egress(&self, host: &str, port: u16) {
        let mut config = MeshConfig::new("aip.internal".parse().unwrap(), MeshMode::Dev);
        config.egress = vec![EgressRule {
            host: host.to_owned(),
            port,
            allow_private: true,
        }];
        let revision = self.scripted.put(&config);
        wait::until("the caller has the egress list", async || {
            (self.caller.snapshot().await["revision"].as_u64() >= Some(revision)).then_some(())
        })
        .await;
    }

    /// Bytes on the caller's outbound port; what came back until `enough`.
    pub async fn raw(&self, bytes: &str, enough: impl Fn(&[u8]) -> bool) -> String {
        http::raw(self.caller.outbound, bytes.as_bytes(), enough).await
    }

    /// A connection on which a test writes frames of its own.
    pub async fn frames(&self, port: Port, settings: &[(u16, u32)]) -> Raw {
        self.unbegun(port).await.begin(settings).await
    }

    /// As [`Self::frames`], before its first byte.
    pub async fn unbegun(&self, port: Port) -> Raw {
        match port {
            Port::Outbound => Raw::plain(self.caller.outbound).await,
            Port::Inbound => {
                let leaf = self.scripted.with_pki(|pki| pki.leaf(&LeafSpec::good("caller")));
                Raw::mutual(self.callee.inbound, &leaf).await
            }
        }
    }

    /// The sidecar whose port it is.
    pub fn behind(&self, port: Port) -> &Sidecar {
        match port {
            Port::Outbound => &self.caller,
            Port::Inbound => &self.callee,
        }
    }

    /// A GET through the mesh.
    pub async fn get(&self, path: &str) -> Answer {
        self.caller.get(&format!("http://callee.aip.internal{path}")).await
    }

    /// The records of both ends with this text in their path, once both have it.
    pub async fn recorded(&self, path: &str) -> (Records, Records) {
        wait::until_ok(&format!("both ends recorded {path}"), async || {
            pairs(
                &self.records_of(&self.caller, path),
                &self.records_of(&self.callee, path),
            )
        })
        .await
    }

    /// The caller's records with this text in their path.
    pub fn records_of(&self, sidecar: &Sidecar, path: &str) -> Records {
        Records(
            sidecar
                .records()
                .0
                .into_iter()
                .filter(|r| r.path().contains(path))
                .collect(),
        )
    }
}

/// A registered agent of this name.
pub fn registered(name: &str) -> Registered {
    let name: AgentName = name.parse().unwrap();
    Registered::new(name)
}
