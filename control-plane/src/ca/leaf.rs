//! SVIDs: a leaf for an agent's key, carrying the attestation result that speaks for exactly that key.

use aip_api::attestation::{AttestationResult, Confirmation, MAX_RESULT_BYTES, RESULT_OID, RESULT_TYP};
use aip_api::evidence::Evidence;
use aip_api::resource::{Agent, KeyPurpose};
use aip_api::{Digest, SpiffeId};
use aip_runtime::jws;
use aip_runtime::x509::{CsrKey, spki_digest};
use rcgen::{CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SubjectPublicKeyInfo};
use time::Duration;

use super::{Ca, CaError, x509};

/// What was issued.
#[derive(Debug)]
pub struct IssuedSvid {
    /// The leaf, then the issuing intermediate; DER.
    pub chain: Vec<Vec<u8>>,
    /// The attestation result, as in the leaf.
    pub result: String,
    /// Lower-case hex.
    pub serial: String,
    /// SHA-256 of the intermediate's SubjectPublicKeyInfo.
    pub issuer: Digest,
    /// Unix seconds.
    pub not_after: u64,
}

impl Ca {
    /// Issues an SVID for `key`, to an agent whose evidence was checked.
    ///
    /// # Errors
    /// A certificate can't be made, or its key is not the CSR's.
    pub fn issue(&self, agent: &Agent, key: &CsrKey, evidence: &Evidence, ttl: u64) -> Result<IssuedSvid, CaError> {
        let material = self.material.load();
        let issuing = material.current();
        let id = SpiffeId::new(self.trust_domain.clone(), agent.name.clone());
        let ttl = Duration::seconds(i64::try_from(ttl).unwrap_or(i64::MAX));
        let mut params = x509::params(agent.name.to_string(), ttl)?;
        let end = |t: time::OffsetDateTime| u64::try_from(t.unix_timestamp()).unwrap_or(0);
        if end(params.not_after) > issuing.not_after {
            return Err(CaError::Certificate(
                "the intermediate ends before the SVID would: rotate it".into(),
            ));
        }
        let not_after = end(params.not_after);
        let claims = self.claims(&id, agent, key, evidence, not_after);
        let signer = self.signer(KeyPurpose::Attestation);
        let result = jws::sign_eddsa(&signer, RESULT_TYP, &claims).map_err(|e| CaError::Certificate(e.to_string()))?;
        if result.len() + 8 > MAX_RESULT_BYTES {
            return Err(CaError::Certificate(
                "the agent's labels and capabilities don't fit into a certificate".into(),
            ));
        }
        let (number, serial) = x509::serial()?;
        params.serial_number = Some(number);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names.push(x509::uri(id.to_string())?);
        params.custom_extensions.push(CustomExtension::from_oid_content(
            RESULT_OID,
            octet_string(result.as_bytes()),
        ));
        let public = SubjectPublicKeyInfo::from_der(&key.spki)?;
        let leaf = params.signed_by(&public, &issuing.issuer)?.der().to_vec();
        // Another encoding of the same key would be another digest than the one the result speaks of.
        if spki_digest(&leaf).ok() != Some(key.jkt) {
            return Err(CaError::Certificate(
                "the CSR's key is encoded in an unusual way".into(),
            ));
        }
        let chain = vec![leaf, issuing.certificate.clone()];
        Ok(IssuedSvid {
            chain,
            result,
            serial,
            issuer: issuing.digest,
            not_after,
        })
    }

    fn claims(&self, id: &SpiffeId, agent: &Agent, key: &CsrKey, evidence: &Evidence, exp: u64) -> AttestationResult {
        AttestationResult {
            iss: format!("spiffe://{}/control-plane", self.trust_domain),
            sub: id.clone(),
            iat: aip_runtime::unix_now(),
            exp,
            nonce: evidence.nonce.clone(),
            cnf: Confirmation { jkt: key.jkt },
            owner: agent.owner.clone(),
            labels: agent.labels.clone(),
            capabilities: agent.capabilities.clone(),
            code: evidence.code,
            config: evidence.config,
            sidecar: evidence.sidecar,
            attestor: evidence.attestor.clone(),
            assurance: evidence.assurance,
            enforcement: evidence.enforcement,
            generation: agent.generation,
        }
    }
}

/// DER OCTET STRING (X.690 section 8.7).
fn octet_string(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x04];
    let length = content.len();
    if length < 128 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let skip = bytes.iter().take_while(|b| **b == 0).count();
        out.push(0x80 | (bytes.len() - skip) as u8);
        out.extend_from_slice(&bytes[skip..]);
    }
    out.extend_from_slice(content);
    out
}
