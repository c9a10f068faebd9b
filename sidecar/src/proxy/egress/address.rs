//! Addresses that a name must not lead to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address that is meant: an IPv4 address in IPv6 clothes (mapped, compatible, NAT64, 6to4) is that address.
pub(super) fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let s = v6.segments();
    let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match s {
        // ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2) and ::a.b.c.d (2.5.5.1; :: and ::1 are themselves).
        [0, 0, 0, 0, 0, 0xffff, high, low] => v4(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        // 64:ff9b::/96 and 64:ff9b:1::/48 (RFC 6052, RFC 8215).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => v4(high, low),
        // 2002::/16 (RFC 3056).
        [0x2002, high, low, ..] => v4(high, low),
        // ::ffff:0:a.b.c.d (RFC 2765).
        [0, 0, 0, 0, 0xffff, 0, high, low] => v4(high, low),
        _ => address,
    }
}

/// Never reached, whatever is configured: metadata services, link-local, multicast, unspecified, broadcast, reserved.
pub(super) fn is_never_reached(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(v4) => never_v4(v4),
        IpAddr::V6(v6) => never_v6(v6),
    }
}

fn never_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    // Cloud metadata lies in link-local (169.254.169.254), but for Alibaba's and Oracle's older ones.
    let metadata = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)].contains(&address);
    metadata
        || a == 0
        || address.is_link_local()
        || address.is_multicast()
        || a >= 240
        // Protocol assignments, documentation, 6to4 relays, benchmarking (RFC 6890).
        || matches!((a, b, c), (192, 0, 0 | 2) | (198, 51, 100) | (203, 0, 113) | (192, 88, 99))
        || (a == 198 && matches!(b, 18 | 19))
}

fn never_v6(address: Ipv6Addr) -> bool {
    let s = address.segments();
    // AWS and Google have metadata among unique local addresses.
    let metadata = [
        Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
        Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    ];
    metadata.contains(&address)
        || address.is_unspecified()
        || address.is_multicast()
        // Link-local, and site-local, which it replaced.
        || (s[0] & 0xffc0) == 0xfe80
        || (s[0] & 0xffc0) == 0xfec0
        // Teredo hides an IPv4 address behind another server; documentation; discard-only (RFC 6666).
        || (s[0] == 0x2001 && (s[1] == 0 || s[1] == 0xdb8))
        || (s[0] == 0x100 && s[1..4] == [0, 0, 0])
}

/// Reached only where a rule allows it by name: loopback, private, carrier-grade NAT, unique local.
pub(super) fn is_private(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback() || v4.is_private() || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => v6.is_loopback() || (v6.segments()[0] & 0xfe00) == 0xfc00,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_never_reached() {
        for address in [
            "169.254.169.254",
            "fd00:ec2::254",
            "fd20:ce::254",
            "100.100.100.200",
            "169.254.1.1",
            "fe80::1",
            "fec0::1",
            "224.0.0.1",
            "ff02::1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::",
            "2001::1",
            "2001:db8::1",
        ] {
            assert!(is_never_reached(ip(address)), "{address}");
        }
    }

    #[test]
    fn what_is_reached_only_when_allowed() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "fc00::1",
            "fdff::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
            "::ffff:0:10.0.0.1",
        ] {
            assert!(is_private(ip(address)) && !is_never_reached(ip(address)), "{address}");
        }
    }

    #[test]
    fn public_addresses_are_public() {
        for address in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
        ] {
            assert!(!is_private(ip(address)) && !is_never_reached(ip(address)), "{address}");
        }
    }
}
