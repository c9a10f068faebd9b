//! Signed statements of reputation: made for whoever is outside the mesh, and taken back by a control plane that forgot.

use aip_api::resource::reputation::{MAX_STATEMENT_BYTES, STATEMENT_TYP, Statement};
use aip_api::resource::{KeyPurpose, Reputation};
use aip_api::{AgentName, SpiffeId};
use aip_runtime::jws;

use super::event::What;
use crate::ca::Ca;
use crate::refusal::{Reason, Refusal};
use crate::registry::{Actor, Registry, retrying};

/// How long a statement is good, in seconds: a day, as long as the longest SVID.
pub const STATEMENT_SECONDS: u64 = 86_400;

/// What an import did.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Whether the statement said less than was known, and holds from now on.
    pub adopted: bool,
    /// The store's revision.
    pub revision: u64,
}

impl Registry {
    /// The signed statement of an agent's reputation now.
    ///
    /// # Errors
    /// Unknown agent, or the store fails.
    pub async fn reputation_statement(&self, ca: &Ca, agent: &AgentName) -> Result<(Statement, String), Refusal> {
        let settings = self.reputation_settings().await?;
        let now = self.clock.now();
        self.still_registered(agent).await?;
        let book = self.reputation_book(agent).await?;
        let statement = Statement {
            iss: issuer(ca),
            sub: SpiffeId::new(ca.trust_domain().clone(), agent.clone()),
            iat: now,
            exp: now + STATEMENT_SECONDS,
            reputation: book.reputation(&settings, self.clock.steady()),
        };
        let signed = jws::sign_eddsa(&ca.signer(KeyPurpose::Attestation), STATEMENT_TYP, &statement);
        let signed = signed.map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?;
        Ok((statement, signed))
    }

    /// Takes a statement that this mesh's control plane signed and may have forgotten, as a store that was restored from a
    /// copy has. The lower score holds, until a reset: a higher one changes nothing.
    ///
    /// # Errors
    /// Not signed by this mesh, over, of another agent, or the store fails.
    pub async fn import_reputation(
        &self,
        ca: &Ca,
        sub: &str,
        agent: &AgentName,
        text: &str,
    ) -> Result<Imported, Refusal> {
        let told = self.read_statement(ca, agent, text)?;
        retrying(async || {
            let settings = self.reputation_settings().await?;
            let mut book = self.reputation_book(agent).await?;
            let known = book.reputation(&settings, self.clock.steady());
            // What follows from fewer events than are known here is history, and not a contradiction.
            if told.score >= known.score || told.events < known.events {
                let revision = self.store.revision();
                return Ok(Imported {
                    adopted: false,
                    revision,
                });
            }
            let what = What::Imported {
                score: told.score,
                events: told.events,
                by: sub.to_owned(),
            };
            let (_, registered) = self.still_registered(agent).await?;
            let draft = self
                .change(&Actor::admin(sub), "reputation.import", agent.as_str())
                .ops([registered])
                .detail(format!("{} instead of {}", told.score, known.score));
            let (draft, _) = self.reputation_ops(draft, &mut book, what, &settings).await?;
            let revision = draft.commit().await?;
            Ok(Imported {
                adopted: true,
                revision,
            })
        })
        .await
    }

    fn read_statement(&self, ca: &Ca, agent: &AgentName, text: &str) -> Result<Reputation, Refusal> {
        let refuse = |why: &str| Refusal::new(Reason::StatementInvalid, why.to_owned());
        if text.len() > MAX_STATEMENT_BYTES {
            return Err(refuse("longer than any statement is"));
        }
        let signer = ca.signer(KeyPurpose::Attestation);
        let key_of = |kid: &str| (kid == signer.kid()).then(|| signer.public_key());
        let statement: Statement =
            jws::verify_eddsa(text, STATEMENT_TYP, key_of).map_err(|e| refuse(&e.to_string()))?;
        let about = SpiffeId::new(ca.trust_domain().clone(), agent.clone());
        if statement.iss != issuer(ca) || statement.sub != about || statement.reputation.agent != *agent {
            return Err(refuse("of another mesh, or of another agent"));
        }
        if statement.exp <= self.clock.now() {
            return Err(refuse("it is over"));
        }
        Ok(statement.reputation)
    }
}

fn issuer(ca: &Ca) -> String {
    format!("spiffe://{}/control-plane", ca.trust_domain())
}
