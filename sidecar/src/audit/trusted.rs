//! Whether a log that goes on after a crash rests on what this sidecar's own key signed: whoever can write its files and
//! has no key must not get a signature under what they wrote.

use std::path::Path;

use aip_api::SpiffeId;
use aip_audit::Checkpoint;
use aip_audit::checkpoint::CHECKPOINT_TYP;
use aip_audit::log::{LogError, Reader, claims_of, kept};
use aip_runtime::trust::TrustState;
use aip_runtime::{jws, x509};

use super::Audit;

/// How long records may stand without any signature, in milliseconds: a dozen of the five seconds between two.
const UNSIGNED_MILLIS: u64 = 60_000;

impl Audit {
    /// Looks at what the log that goes on was last signed for, now that the roots of the mesh are known. Where that is not
    /// this sidecar's, the log stays as it is, for the auditor, and another one begins.
    pub fn rests_on(&self, me: &SpiffeId, trust: &TrustState) {
        let Some(shared) = self.shared() else { return };
        let resting = shared.book().resting();
        let Some((life, dir)) = resting else { return };
        if let Err(why) = believed(&dir, me, trust) {
            let error = LogError::Damaged {
                path: dir,
                line: 0,
                seq: None,
                why,
            };
            shared.book().broken(life, &error);
        }
    }
}

/// The last checkpoint of the log is signed by an SVID of this agent, and speaks of this log.
fn believed(dir: &Path, me: &SpiffeId, trust: &TrustState) -> Result<(), String> {
    let all = kept(dir).map_err(|e| e.to_string())?;
    let claimed = all.iter().filter_map(|kept| Some((claims_of(&kept.statement)?, kept)));
    let Some((claimed, last)) = claimed.max_by_key(|(claims, kept)| (claims.size, kept.line)) else {
        return young(dir);
    };
    let signer = x509::svid_signer(&last.chain, trust, claimed.at / 1_000).map_err(|e| e.to_string())?;
    let claims: Checkpoint =
        jws::verify_es256(&last.statement, CHECKPOINT_TYP, &signer.point).map_err(|e| e.to_string())?;
    let log = dir.file_name().and_then(|name| name.to_str());
    if signer.id != *me || claims.agent != *me || Some(claims.log.as_str()) != log {
        return Err(format!(
            "its last checkpoint is of log {} of {}, signed by {}",
            claims.log, claims.agent, signer.id
        ));
    }
    Ok(())
}

/// A log that was never signed is one of a life that ended within seconds.
fn young(dir: &Path) -> Result<(), String> {
    let (mut first, mut last) = (None, 0);
    for entry in Reader::open(dir).map_err(|e| e.to_string())? {
        let at = entry.map_err(|e| e.to_string())?.record.at;
        first.get_or_insert(at);
        last = at;
    }
    match first {
        Some(first) if last.saturating_sub(first) > UNSIGNED_MILLIS => {
            Err("its records were never signed, over more than a minute".to_owned())
        }
        _ => Ok(()),
    }
}
