//! Signed statements (JWS compact form): EdDSA by the control plane's keys, ES256 by an SVID's key.
//!
//! Algorithm, type and key are fixed by the caller, never taken from the token. Times are the caller's to check:
//! what "now" means differs between a live peer and an audit.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result as JwtResult};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::rand::SystemRandom;
use ring::signature::{self as rs, EcdsaKeyPair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use signature::{Error as SignatureError, Signer as SignerTrait, Verifier};

use crate::signing::{Signer, VerifyingKey};

/// Why a statement was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// Not a JWS in compact form, or its claims are not the expected ones.
    #[error("not a well-formed statement of the expected type")]
    Malformed,
    /// Another algorithm or type than the caller fixed.
    #[error("another algorithm or type than expected")]
    WrongType,
    /// Signed by a key that is not known for this purpose.
    #[error("signed by a key that is not known for this purpose")]
    UnknownKey,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    BadSignature,
    /// The key can't sign.
    #[error("the key can't sign")]
    Signing,
}

struct Es256Signer(EcdsaKeyPair, SystemRandom);
struct RingVerifier(Algorithm, &'static dyn rs::VerificationAlgorithm, Vec<u8>);

impl SignerTrait<Vec<u8>> for Es256Signer {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        self.0
            .sign(&self.1, message)
            .map(|s| s.as_ref().to_vec())
            .map_err(|_| SignatureError::new())
    }
}

impl JwtSigner for Es256Signer {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        rs::UnparsedPublicKey::new(self.1, &self.2)
            .verify(message, signature)
            .map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> JwtResult<Box<dyn JwtSigner>> {
    if *algorithm != Algorithm::ES256 {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let random = SystemRandom::new();
    let kind = &rs::ECDSA_P256_SHA256_FIXED_SIGNING;
    let pair = EcdsaKeyPair::from_pkcs8(kind, key.as_bytes(), &random).map_err(|_| ErrorKind::InvalidKeyFormat)?;
    Ok(Box::new(Es256Signer(pair, random)))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> JwtResult<Box<dyn JwtVerifier>> {
    let kind: &'static dyn rs::VerificationAlgorithm = match algorithm {
        Algorithm::EdDSA => &rs::ED25519,
        Algorithm::ES256 => &rs::ECDSA_P256_SHA256_FIXED,
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    Ok(Box::new(RingVerifier(
        *algorithm,
        kind,
        key.try_get_as_bytes()?.to_vec(),
    )))
}

/// The library's own providers would bring a second crypto stack; ours is ring, as for TLS.
fn install() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: signer,
        verifier_factory: verifier,
        key_utils: KeyUtils::new_unimplemented(),
    };
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error only says that the process has one already.
        let _ = PROVIDER.install_default();
    });
}

fn header(algorithm: Algorithm, typ: &str, kid: Option<&str>) -> Header {
    let mut header = Header::new(algorithm);
    header.typ = Some(typ.to_owned());
    header.kid = kid.map(str::to_owned);
    header
}

fn verified<C: DeserializeOwned>(token: &str, algorithm: Algorithm, key: &DecodingKey) -> Result<C, JwsError> {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    jsonwebtoken::decode::<C>(token, key, &validation)
        .map(|data| data.claims)
        .map_err(|e| match e.kind() {
            ErrorKind::InvalidSignature => JwsError::BadSignature,
            ErrorKind::InvalidAlgorithm => JwsError::WrongType,
            _ => JwsError::Malformed,
        })
}

fn head_of(token: &str, algorithm: Algorithm, typ: &str) -> Result<Header, JwsError> {
    install();
    let header = jsonwebtoken::decode_header(token).map_err(|_| JwsError::Malformed)?;
    if header.alg == algorithm && header.typ.as_deref() == Some(typ) {
        Ok(header)
    } else {
        Err(JwsError::WrongType)
    }
}

/// Signs `claims` as a statement of type `typ`; the key id stands in its header.
///
/// # Errors
/// The claims can't be written as JSON.
pub fn sign_eddsa<C: Serialize>(signer: &Signer, typ: &str, claims: &C) -> Result<String, JwsError> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
    let header = header(Algorithm::EdDSA, typ, Some(signer.kid()));
    let part = |value: Result<Vec<u8>, serde_json::Error>| value.map(|v| B64.encode(v)).map_err(|_| JwsError::Signing);
    // The key never leaves its `Signer`, so the library can't be handed it; the compact form is these two lines.
    let message = format!(
        "{}.{}",
        part(serde_json::to_vec(&header))?,
        part(serde_json::to_vec(claims))?
    );
    let signature = B64.encode(signer.sign(message.as_bytes()));
    Ok(format!("{message}.{signature}"))
}

/// The claims of a statement of type `typ` that one of the control plane's keys signed. `key_of` answers the key that
/// is known under a key id *for the purpose at hand*.
///
/// # Errors
/// Malformed, of another algorithm or type, by an unknown key, or not verifying.
pub fn verify_eddsa<C: DeserializeOwned>(
    token: &str,
    typ: &str,
    key_of: impl Fn(&str) -> Option<VerifyingKey>,
) -> Result<C, JwsError> {
    let header = head_of(token, Algorithm::EdDSA, typ)?;
    let key = header.kid.as_deref().and_then(key_of).ok_or(JwsError::UnknownKey)?;
    verified(token, Algorithm::EdDSA, &DecodingKey::from_ed_der(key.as_bytes()))
}

/// Signs `claims` with an ECDSA P-256 key in PKCS#8.
///
/// # Errors
/// Not such a key.
pub fn sign_es256<C: Serialize>(pkcs8: &[u8], typ: &str, claims: &C) -> Result<String, JwsError> {
    install();
    let header = header(Algorithm::ES256, typ, None);
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_ec_der(pkcs8)).map_err(|_| JwsError::Signing)
}

/// The claims of a statement of type `typ` that the P-256 key of `point` (uncompressed, 65 bytes) signed.
///
/// # Errors
/// Malformed, of another algorithm or type, or not verifying.
pub fn verify_es256<C: DeserializeOwned>(token: &str, typ: &str, point: &[u8]) -> Result<C, JwsError> {
    head_of(token, Algorithm::ES256, typ)?;
    verified(token, Algorithm::ES256, &DecodingKey::from_ec_der(point))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aip_api::resource::KeyPurpose;
    use ring::signature::KeyPair as _;
    use serde_json::{Value, json};

    fn ed() -> Signer {
        Signer::generate(KeyPurpose::Attestation).unwrap().0
    }

    #[test]
    fn only_the_named_key_type_and_algorithm_pass() {
        let (ours, theirs) = (ed(), ed());
        let token = sign_eddsa(&ours, "a+jwt", &json!({"x": 1})).unwrap();
        let by = |signer: &Signer| {
            let (kid, key) = (signer.kid().to_owned(), signer.public_key());
            move |k: &str| (k == kid).then_some(key)
        };
        assert_eq!(
            verify_eddsa::<Value>(&token, "a+jwt", by(&ours)).unwrap(),
            json!({"x": 1})
        );
        assert_eq!(
            verify_eddsa::<Value>(&token, "b+jwt", by(&ours)),
            Err(JwsError::WrongType)
        );
        assert_eq!(
            verify_eddsa::<Value>(&token, "a+jwt", by(&theirs)),
            Err(JwsError::UnknownKey)
        );
        let swapped = theirs.public_key();
        assert_eq!(
            verify_eddsa::<Value>(&token, "a+jwt", |_| Some(swapped)),
            Err(JwsError::BadSignature)
        );
        let es = sign_es256(&p256(), "a+jwt", &json!({})).unwrap();
        assert_eq!(verify_eddsa::<Value>(&es, "a+jwt", by(&ours)), Err(JwsError::WrongType));
        for bad in ["", "a", "a.b", "a.b.c", "....", &token[1..], &token[..token.len() - 2]] {
            assert!(verify_eddsa::<Value>(bad, "a+jwt", by(&ours)).is_err(), "{bad:?}");
        }
        // alg none, and HS256 keyed with the public key, are the classic forgeries.
        for alg in ["none", "HS256"] {
            let head = base64_of(&json!({"alg": alg, "typ": "a+jwt", "kid": ours.kid()}));
            let forged = format!("{head}.{}.", base64_of(&json!({"x": 2})));
            assert!(verify_eddsa::<Value>(&forged, "a+jwt", by(&ours)).is_err(), "{alg}");
        }
    }

    fn base64_of(value: &Value) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    }

    fn p256() -> Vec<u8> {
        let kind = &rs::ECDSA_P256_SHA256_FIXED_SIGNING;
        EcdsaKeyPair::generate_pkcs8(kind, &SystemRandom::new())
            .unwrap()
            .as_ref()
            .to_vec()
    }

    #[test]
    fn es256_is_bound_to_the_key() {
        let (key, other) = (p256(), p256());
        let point = |pkcs8: &[u8]| {
            let kind = &rs::ECDSA_P256_SHA256_FIXED_SIGNING;
            EcdsaKeyPair::from_pkcs8(kind, pkcs8, &SystemRandom::new())
                .unwrap()
                .public_key()
                .as_ref()
                .to_vec()
        };
        let token = sign_es256(&key, "e+jwt", &json!({"x": 1})).unwrap();
        assert!(verify_es256::<Value>(&token, "e+jwt", &point(&key)).is_ok());
        assert_eq!(
            verify_es256::<Value>(&token, "e+jwt", &point(&other)),
            Err(JwsError::BadSignature)
        );
        assert_eq!(
            verify_es256::<Value>(&token, "x+jwt", &point(&key)),
            Err(JwsError::WrongType)
        );
    }
}
