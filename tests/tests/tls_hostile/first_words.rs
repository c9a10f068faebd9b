//! What is said first.

use aip_tests::hello::{Hello, MAX_RECORD, X25519, content, extension, handshake, record, records, share, sized};

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Refused as no TLS, or against its protocol.
    Malformed,
    /// Refused for its version.
    Version,
    /// Refused for what it would speak.
    Alpn,
    /// Nothing comes back to what has no end.
    Cut,
    /// It is answered, and breaks off then: nothing was wrong.
    GoesOn,
    /// It is refused, or what it asks for is passed over.
    Ignored,
}
use Due::{Alpn, Cut, GoesOn, Ignored, Malformed, Version};

/// What is wrong, what is said, and what becomes of it.
pub(crate) type Attack = (&'static str, Vec<u8>, Due);

fn plain(bytes: &[u8]) -> Vec<u8> {
    record(content::HANDSHAKE, bytes)
}

/// Records that no handshake begins with, or whose frame is wrong.
fn frames() -> Vec<Attack> {
    let hello = Hello::good().message();
    let ccs = record(content::CHANGE_CIPHER_SPEC, &[1]);
    let too_long = [&[content::HANDSHAKE, 3, 1, 0x48, 1][..], &[0; 0x4801]].concat();
    vec![
        ("a record that is too long", too_long, Malformed),
        ("a record of nothing", plain(b""), Malformed),
        ("an alert for a beginning", record(content::ALERT, &[2, 40]), Malformed),
        (
            "application data for a beginning",
            record(content::APPLICATION_DATA, b"hello"),
            Malformed,
        ),
        (
            "a heartbeat (CVE-2014-0160)",
            record(content::HEARTBEAT, b"\x01\x40\x00bleed"),
            Malformed,
        ),
        ("a flood of ChangeCipherSpec", ccs.repeat(10_000), Malformed),
        (
            "ChangeCipherSpec without end after ClientHello",
            [plain(&hello), ccs.repeat(10_000)].concat(),
            Ignored,
        ),
        (
            "a ClientHello of SSL 2",
            b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80".to_vec(),
            Malformed,
        ),
        ("half a record's head", vec![content::HANDSHAKE, 3], Cut),
    ]
}

/// ClientHellos that are cut, or come in pieces.
fn pieces() -> Vec<Attack> {
    let hello = Hello::good().message();
    let large = Hello::good().and(0xfafa, vec![0; 60_000]).message();
    vec![
        ("a record that is cut short", plain(&hello)[..60].to_vec(), Cut),
        ("a message that is cut short", plain(&hello[..60]), Cut),
        (
            "a ClientHello in records of one byte",
            records(content::HANDSHAKE, &hello, 1),
            GoesOn,
        ),
        (
            "60 KB of ClientHello in records of one byte",
            records(content::HANDSHAKE, &large, 1),
            Ignored,
        ),
        (
            "a message that would be of 16 MiB",
            plain(&[&[1, 0xff, 0xff, 0xff][..], &[0; 1_000]].concat()),
            Malformed,
        ),
        (
            "records of nothing in between",
            [plain(&hello[..40]), plain(b"").repeat(1_000), plain(&hello[40..])].concat(),
            Malformed,
        ),
        (
            "an alert in between",
            [
                plain(&hello[..40]),
                record(content::ALERT, &[1, 90]),
                plain(&hello[40..]),
            ]
            .concat(),
            Malformed,
        ),
        (
            "bytes after the end of ClientHello",
            plain(&Hello::good().trailed(b"more")),
            Malformed,
        ),
        (
            "a second ClientHello behind the first",
            plain(&[hello.clone(), hello.clone()].concat()),
            Malformed,
        ),
        (
            "a second ClientHello in the next record",
            plain(&hello).repeat(2),
            Ignored,
        ),
        (
            "another message for a beginning",
            plain(&handshake(20, &[0; 32])),
            Malformed,
        ),
    ]
}

/// Versions, suites and the other parts of a ClientHello that are no extensions.
fn heads() -> Vec<Attack> {
    let with = |change: &dyn Fn(&mut Hello)| {
        let mut hello = Hello::good();
        change(&mut hello);
        hello.records()
    };
    let versions = |list: &[u8]| Hello::good().with(extension::SUPPORTED_VERSIONS, list).records();
    vec![
        ("TLS 1.0 to 1.2", versions(&[6, 3, 1, 3, 2, 3, 3]), Version),
        ("versions of nobody", versions(&[4, 0x7f, 0x1c, 0xfa, 0xfa]), Version),
        ("no versions", versions(&[0]), Ignored),
        ("half a version", versions(&[1, 3]), Malformed),
        (
            "a session of 33 bytes",
            with(&|hello| hello.session = vec![7; 33]),
            Malformed,
        ),
        ("half a suite", with(&|hello| hello.suites.push(0)), Malformed),
        ("no suite", with(&|hello| hello.suites.clear()), Malformed),
        (
            "suites of nobody",
            with(&|hello| hello.suites = [0xfa, 0xfa].repeat(30_000)),
            Malformed,
        ),
        (
            "compression (CRIME)",
            with(&|hello| hello.compression = vec![1]),
            Malformed,
        ),
        ("no extensions", with(&|hello| hello.extensions.clear()), Malformed),
    ]
}

/// Extensions that are absent, twice or malformed.
fn extensions() -> Vec<Attack> {
    use extension::{ALPN, KEY_SHARE, SERVER_NAME, SIGNATURE_ALGORITHMS, SUPPORTED_GROUPS};
    let good = Hello::good;
    let missing = |number| good().without(number).records();
    let named = |name: &[u8]| {
        good()
            .and(SERVER_NAME, sized(&[&[0][..], &sized(name)].concat()))
            .records()
    };
    let names = sized(&[&[0][..], &sized(b"a.b")].concat().repeat(8_000));
    let protocols = |list: &[u8]| good().with(ALPN, sized(list)).records();
    vec![
        ("no key share", missing(KEY_SHARE), Malformed),
        ("no groups", missing(SUPPORTED_GROUPS), Malformed),
        ("no signatures", missing(SIGNATURE_ALGORITHMS), Malformed),
        (
            "an extension that stands twice",
            good().and(ALPN, sized(b"\x02h2")).records(),
            Malformed,
        ),
        ("no protocol", missing(ALPN), Ignored),
        ("another protocol", protocols(b"\x08http/1.1"), Alpn),
        ("12,000 other protocols", protocols(&b"\x04none".repeat(12_000)), Alpn),
        ("protocols without a name", protocols(&[0; 200]), Malformed),
        ("an empty list of protocols", protocols(b""), Malformed),
        (
            "8,000 server names",
            good().and(SERVER_NAME, names).records(),
            Malformed,
        ),
        ("a server name of 50 KB", named(&[b'a'; 50_000]), Ignored),
        ("a server name that is none", named(b"\0\xff"), Ignored),
        (
            "an extension longer than what is there",
            plain(&{
                let mut hello = good().message();
                let end = hello.len() - 40;
                hello[end..end + 2].copy_from_slice(&[0xff, 0xff]);
                hello
            }),
            Malformed,
        ),
    ]
}

/// Groups and shares, and the ways to resume that nobody has here.
fn keys() -> Vec<Attack> {
    use extension::{COOKIE, EARLY_DATA, KEY_SHARE, PRE_SHARED_KEY, PSK_MODES, SESSION_TICKET, SUPPORTED_GROUPS};
    let good = Hello::good;
    let shares = |list: &[u8]| good().with(KEY_SHARE, sized(list));
    let nobodys = good().with(SUPPORTED_GROUPS, sized(&[0xfa, 0xfa, 0, 1]));
    let own = share(X25519, &[9; 32]);
    let ticket = |bytes: usize, binders: usize| {
        let identities = sized(&[&sized(&vec![7; bytes])[..], &[0; 4]].concat());
        let binders = sized(&[&[32][..], &[7; 32]].concat().repeat(binders));
        [identities, binders].concat()
    };
    let psk = |offered: Vec<u8>| good().and(PSK_MODES, [1, 1]).and(PRE_SHARED_KEY, offered);
    let early = record(content::APPLICATION_DATA, &[7; 1_000]);
    vec![
        ("groups of nobody", nobodys.records(), Malformed),
        (
            "a share of 31 bytes",
            shares(&share(X25519, &[9; 31])).records(),
            Malformed,
        ),
        (
            "a share of zeros",
            shares(&share(X25519, &[0; 32])).records(),
            Malformed,
        ),
        ("two shares of a group", shares(&own.repeat(2)).records(), Malformed),
        ("half a share", shares(&own[..10]).records(), Malformed),
        (
            "no share, and none again when asked for one",
            shares(b"").records().repeat(2),
            Ignored,
        ),
        ("a ticket of nobody", psk(ticket(200, 1)).records(), GoesOn),
        ("a ticket of 60 KB", psk(ticket(60_000, 1)).records(), GoesOn),
        ("a ticket with two binders", psk(ticket(200, 2)).records(), Ignored),
        (
            "a ticket before another extension",
            psk(ticket(200, 1)).and(COOKIE, sized(&[7; 20])).records(),
            Malformed,
        ),
        (
            "a session ticket of TLS 1.2 of 60 KB",
            good().and(SESSION_TICKET, [7; 60_000]).records(),
            GoesOn,
        ),
        (
            "early data",
            [psk(ticket(200, 1)).and(EARLY_DATA, []).records(), early.clone()].concat(),
            Ignored,
        ),
        (
            "early data without a ticket",
            [good().and(EARLY_DATA, []).records(), early].concat(),
            Ignored,
        ),
    ]
}

pub(crate) fn attacks() -> Vec<Attack> {
    assert!(Hello::good().message().len() < MAX_RECORD);
    [frames(), pieces(), heads(), extensions(), keys()].concat()
}
