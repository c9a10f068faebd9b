//! A ClientHello as its bytes (RFC 8446 section 4.1.2), so that every part of it can be wrong, and the records it is
//! sent in.

/// Content types of records.
pub mod content {
    pub const CHANGE_CIPHER_SPEC: u8 = 20;
    pub const ALERT: u8 = 21;
    pub const HANDSHAKE: u8 = 22;
    pub const APPLICATION_DATA: u8 = 23;
    pub const HEARTBEAT: u8 = 24;
}

/// Extensions by their number.
pub mod extension {
    pub const SERVER_NAME: u16 = 0;
    pub const SUPPORTED_GROUPS: u16 = 10;
    pub const SIGNATURE_ALGORITHMS: u16 = 13;
    pub const ALPN: u16 = 16;
    pub const SESSION_TICKET: u16 = 35;
    pub const PRE_SHARED_KEY: u16 = 41;
    pub const EARLY_DATA: u16 = 42;
    pub const SUPPORTED_VERSIONS: u16 = 43;
    pub const COOKIE: u16 = 44;
    pub const PSK_MODES: u16 = 45;
    pub const KEY_SHARE: u16 = 51;
}

/// The group x25519, of which any 32 bytes but a few are a share.
pub const X25519: u16 = 29;

/// What a client says first. Lengths are written as they are, and may be written otherwise.
#[derive(Debug, Clone)]
pub struct Hello {
    pub version: u16,
    pub session: Vec<u8>,
    pub suites: Vec<u8>,
    pub compression: Vec<u8>,
    pub extensions: Vec<(u16, Vec<u8>)>,
}

impl Hello {
    /// One that a server of TLS 1.3 and HTTP/2 answers.
    pub fn good() -> Self {
        let extensions = vec![
            (extension::SUPPORTED_VERSIONS, vec![2, 3, 4]),
            (extension::SUPPORTED_GROUPS, sized(&X25519.to_be_bytes())),
            // ecdsa_secp256r1_sha256 and ed25519.
            (extension::SIGNATURE_ALGORITHMS, sized(&[4, 3, 8, 7])),
            (extension::ALPN, sized(b"\x02h2")),
            (extension::KEY_SHARE, sized(&share(X25519, &[9; 32]))),
        ];
        Self {
            version: 0x0303,
            session: Vec::new(),
            // TLS_AES_128_GCM_SHA256.
            suites: vec![0x13, 1],
            compression: vec![0],
            extensions,
        }
    }

    /// With this extension at its end, whether it has one of this number or not.
    #[must_use]
    pub fn and(mut self, number: u16, bytes: impl Into<Vec<u8>>) -> Self {
        self.extensions.push((number, bytes.into()));
        self
    }

    /// Without any extension of this number.
    #[must_use]
    pub fn without(mut self, number: u16) -> Self {
        self.extensions.retain(|(own, _)| *own != number);
        self
    }

    /// With this in the place of its own.
    #[must_use]
    pub fn with(self, number: u16, bytes: impl Into<Vec<u8>>) -> Self {
        self.without(number).and(number, bytes)
    }

    fn body(&self) -> Vec<u8> {
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(number, bytes)| [&number.to_be_bytes()[..], &sized(bytes)].concat())
            .collect();
        [
            &self.version.to_be_bytes()[..],
            &[0x42; 32],
            &[self.session.len() as u8],
            &self.session,
            &sized(&self.suites),
            &[self.compression.len() as u8],
            &self.compression,
            &sized(&extensions),
        ]
        .concat()
    }

    /// The handshake message.
    pub fn message(&self) -> Vec<u8> {
        handshake(1, &self.body())
    }

    /// In as many records as it takes.
    pub fn records(&self) -> Vec<u8> {
        records(content::HANDSHAKE, &self.message(), MAX_RECORD)
    }

    /// The message, of a body with something after its end.
    pub fn trailed(&self, by: &[u8]) -> Vec<u8> {
        handshake(1, &[&self.body(), by].concat())
    }
}

/// Bytes of a record at most (RFC 8446 section 5.1).
pub const MAX_RECORD: usize = 1 << 14;

/// A handshake message.
pub fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

/// A key share entry.
pub fn share(group: u16, key: &[u8]) -> Vec<u8> {
    [&group.to_be_bytes()[..], &sized(key)].concat()
}

/// A vector with its length in two bytes before it.
pub fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// One record.
pub fn record(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &sized(bytes)].concat()
}

/// As many records as it takes, with `each` bytes in each of them.
pub fn records(kind: u8, bytes: &[u8], each: usize) -> Vec<u8> {
    bytes.chunks(each).flat_map(|part| record(kind, part)).collect()
}
