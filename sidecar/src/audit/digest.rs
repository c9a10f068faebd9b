//! Salted digests of bodies as they stream. The caller's sidecar makes the salt of a hop and tells the callee's: the
//! records of both ends can be compared, and nobody who has only the records can try out what was said. A digest is one of
//! its hop and its direction: in the record of another it is wrong.

use aip_api::Digest;
use aip_api::id::HopId;
use aip_audit::record::Passed;
use http::HeaderValue;
use rand::Rng as _;
use ring::digest::{Context, SHA256};

/// The salt, from sidecar to sidecar.
pub(crate) const SALT: &str = "x-aip-salt";

/// What digests of a hop begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Salt([u8; 16]);

impl Salt {
    /// A new one: each call has its own, so it comes from the thread's generator (ChaCha12, seeded and seeded again by the
    /// system) and not from a system call.
    pub(crate) fn fresh() -> Self {
        let mut salt = [0; 16];
        rand::rng().fill_bytes(&mut salt);
        Self(salt)
    }

    /// 32 hex digits, in lower case.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut salt = [0; 16];
        hex::decode_to_slice(text, &mut salt).ok()?;
        Some(Self(salt)).filter(|salt| salt.to_hex() == text)
    }

    fn to_hex(self) -> String {
        digits(&self.0)
    }

    /// How records name it: two ends can see that they had the same, and who reads a record does not have it.
    pub(crate) fn named(self) -> String {
        digits(&Digest::of_parts(&[b"aip salt v1", &self.0]).as_bytes()[..16])
    }

    /// The header.
    pub(crate) fn header(self) -> HeaderValue {
        crate::request::call::once(&self.to_hex())
    }
}

/// 16 bytes in lower-case hex digits. Each request has some, and character by character they take five times as long.
fn digits(bytes: &[u8]) -> String {
    let mut text = [b'0'; 32];
    // Lengths that fit: it can't fail.
    let _ = hex::encode_to_slice(bytes, &mut text);
    std::str::from_utf8(&text).unwrap_or_default().to_owned()
}

/// What digests are for, and how they are made: nothing else begins so.
const LABEL: &[u8] = b"aip hop v1";

/// What digests of a hop begin with: its own, and its salt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed {
    pub(crate) hop: HopId,
    pub(crate) salt: Salt,
}

/// Which of a hop's bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The request's.
    Request = 1,
    /// The response's.
    Response = 2,
}

/// What has passed of a body.
#[derive(Clone)]
pub(crate) struct Tally {
    context: Context,
    bytes: u64,
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tally({} bytes)", self.bytes)
    }
}

impl Tally {
    pub(crate) fn new(seed: Seed, way: Way) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(LABEL);
        context.update(seed.hop.as_bytes());
        context.update(&[way as u8]);
        context.update(&seed.salt.0);
        Self { context, bytes: 0 }
    }

    pub(crate) fn add(&mut self, data: &[u8]) {
        self.context.update(data);
        self.bytes += data.len() as u64;
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// It has come to its end.
    pub(crate) fn passed(self) -> Passed {
        let bytes = self.bytes;
        let digest = (bytes > 0).then(|| {
            let mut digest = [0; 32];
            digest.copy_from_slice(self.context.finish().as_ref());
            Digest::from_bytes(digest)
        });
        Passed { bytes, digest }
    }

    /// All of a body.
    pub(crate) fn of(seed: Seed, way: Way, data: &[u8]) -> Passed {
        let mut tally = Self::new(seed, way);
        tally.add(data);
        tally.passed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_its_hop_its_way_its_salt_and_all_bytes_however_they_come() {
        let seed = Seed {
            hop: HopId::fresh(),
            salt: Salt::parse("000102030405060708090a0b0c0d0e0f").unwrap(),
        };
        let mut tally = Tally::new(seed, Way::Request);
        tally.add(b"in ");
        tally.add(b"parts");
        let salt: Vec<u8> = (0..16).collect();
        let whole = [&b"aip hop v1"[..], seed.hop.as_bytes(), &[1], &salt, b"in parts"].concat();
        let expected = Passed {
            bytes: 8,
            digest: Some(Digest::sha256(&whole)),
        };
        assert_eq!(
            (tally.passed(), Tally::of(seed, Way::Request, b"in parts")),
            (expected, expected)
        );
        assert_eq!(Tally::of(seed, Way::Request, b""), Passed::default());
        let other = Tally::of(seed, Way::Response, b"in parts");
        assert_ne!(other.digest, expected.digest, "an answer is no request");
        let moved = Seed {
            hop: HopId::fresh(),
            ..seed
        };
        let moved = Tally::of(moved, Way::Request, b"in parts");
        assert_ne!(moved.digest, expected.digest, "it stands for no other hop");
        assert_ne!(Salt::fresh(), Salt::fresh());
        assert!(seed.salt.named().len() == 32 && seed.salt.named() != seed.salt.to_hex());
    }

    #[test]
    fn a_salt_has_one_spelling() {
        let salt = Salt::fresh();
        assert_eq!(Salt::parse(&salt.to_hex()), Some(salt));
        for bad in ["", "00", &"A".repeat(32), &"g".repeat(32), &"0".repeat(34)] {
            assert_eq!(Salt::parse(bad), None, "{bad}");
        }
    }
}
