//! Whose signatures are believed: roots, and the audit keys that they certify.

use std::path::Path;

use aip_api::resource::KeyPurpose;
use aip_api::{Digest, SpiffeId, TrustDomain};
use aip_audit::checkpoint::{
    CHECKPOINT_TYP, LEDGER_BEGINS_TYP, LedgerBegins, RETIRED_TYP, Retired, TREE_HEAD_TYP, TreeHead,
};
use aip_audit::log::{self, Kept};
use aip_audit::{Checkpoint, verify::Keys};
use aip_runtime::trust::TrustState;
use aip_runtime::{jws, x509};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::Globals;
use crate::bounded;
use crate::client::Admin;
use crate::exit::{Exit, Failure};

/// Where an export keeps it.
pub(super) const FILE: &str = "trust.json";
/// Largest file that is read: a dozen certificates.
const MAX_FILE: u64 = 1024 * 1024;

/// The roots and keys of a mesh.
#[derive(Debug)]
pub(crate) struct Trust(TrustState);

impl Trust {
    /// From `file`; or from the folder's own, if a root in it is one that is known here; or from the control plane.
    pub(super) async fn find(globals: &Globals, dir: Option<&Path>, file: Option<&Path>) -> Result<Self, Failure> {
        if let Some(file) = file {
            return Self::of(&read(file)?, None);
        }
        let beside = dir.map(|dir| dir.join(FILE)).filter(|file| file.is_file());
        let context = globals.home()?.context();
        let pin = globals.mesh_root.or_else(|| context.as_ref()?.root.parse().ok());
        match (beside, pin) {
            (Some(file), Some(pin)) => Self::of(&read(&file)?, Some(pin)),
            (Some(file), None) => Err(Failure::new(
                Exit::Usage,
                format!("{} is not believed by itself", file.display()),
            )
            .why("whoever changed the records could have put other keys beside them")
            .next(
                "pass --mesh-root with the digest of the mesh's root, or --trust with a file that you got elsewhere",
            )),
            (None, pin) => {
                let document = Admin::open(globals)?.get("/v1/trust").await.map_err(|failure| {
                    failure
                        .next("without a control plane, pass --trust with what `GET /v1/trust` gave when there was one")
                })?;
                Self::of(&document, pin)
            }
        }
    }

    /// From what `GET /v1/trust` answers; with `pin`, only the root with this digest is believed.
    pub(super) fn of(document: &Value, pin: Option<Digest>) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::new(Exit::Invalid, "the roots and keys can't be used").why(why);
        let domain: TrustDomain =
            serde_json::from_value(document["trust_domain"].clone()).map_err(|_| wrong("it names no trust domain"))?;
        let roots: Vec<_> = texts(&document["roots"]).filter_map(der).collect();
        let believed = |root: &Vec<u8>| pin.is_none_or(|pin| x509::spki_digest(root).is_ok_and(|found| found == pin));
        let roots: Vec<_> = roots.into_iter().filter(believed).collect();
        if roots.is_empty() {
            return Err(wrong("none of its roots is the one that is known here (--mesh-root)"));
        }
        let mut state = TrustState::new(domain, roots);
        for key in document["keys"].as_array().into_iter().flatten() {
            if let Some(certificate) = key["certificate"].as_str().and_then(der) {
                // A key of another root only means that what it signed is not believed.
                let _ = state.add_key(&certificate);
            }
        }
        Ok(Self(state))
    }
}

impl Trust {
    fn own(&self, issuer: &str) -> Result<(), String> {
        match issuer == self.0.trust_domain().to_string() {
            true => Ok(()),
            false => Err(format!("it is of the trust domain {issuer}")),
        }
    }
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn der(pem: &str) -> Option<Vec<u8>> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(body.trim()).ok()
}

fn read(file: &Path) -> Result<Value, Failure> {
    let failed = |why: String| Failure::new(Exit::Invalid, format!("{} can't be read", file.display())).why(why);
    let bytes = bounded::read(file, MAX_FILE).map_err(|e| failed(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))
}

impl Keys for Trust {
    fn checkpoint(&self, kept: &Kept) -> Result<(Checkpoint, SpiffeId), String> {
        let claimed = log::claims_of(&kept.statement).ok_or("it is no checkpoint")?;
        let signer = x509::svid_signer(&kept.chain, &self.0, claimed.at / 1000).map_err(|e| e.to_string())?;
        let claims = jws::verify_es256(&kept.statement, CHECKPOINT_TYP, &signer.point).map_err(|e| e.to_string())?;
        Ok((claims, signer.id))
    }

    fn tree_head(&self, statement: &str) -> Result<TreeHead, String> {
        let key = |kid: &str| self.0.key(KeyPurpose::Audit, kid);
        let head: TreeHead = jws::verify_eddsa(statement, TREE_HEAD_TYP, key).map_err(|e| e.to_string())?;
        self.own(&head.iss).map(|()| head)
    }

    fn ledger_begins(&self, statement: &str) -> Result<LedgerBegins, String> {
        let key = |kid: &str| self.0.key(KeyPurpose::Audit, kid);
        let begins: LedgerBegins = jws::verify_eddsa(statement, LEDGER_BEGINS_TYP, key).map_err(|e| e.to_string())?;
        self.own(&begins.iss).map(|()| begins)
    }

    fn retired(&self, statement: &str) -> Result<Retired, String> {
        let key = |kid: &str| self.0.key(KeyPurpose::Audit, kid);
        let retired: Retired = jws::verify_eddsa(statement, RETIRED_TYP, key).map_err(|e| e.to_string())?;
        self.own(&retired.iss).map(|()| retired)
    }
}
