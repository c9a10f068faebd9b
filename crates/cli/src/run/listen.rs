//! Whether the command's port can be reached around the sidecar: read from the kernel's list of listening sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The state of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// The addresses beyond loopback on which something listens on `port`.
pub(super) fn beyond_loopback(port: u16) -> Vec<IpAddr> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .flat_map(|table| listening(&table, port))
        .filter(|ip| !ip.is_loopback())
        .collect()
}

fn listening(table: &str, port: u16) -> Vec<IpAddr> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next()?, fields.nth(1)?);
            let (ip, at) = local.split_once(':')?;
            (state == LISTEN && u16::from_str_radix(at, 16).ok()? == port)
                .then(|| address(ip))
                .flatten()
        })
        .collect()
}

/// Words of 32 bits in the machine's byte order, as the kernel prints them.
fn address(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = hex
        .as_bytes()
        .chunks(8)
        .map(|word| {
            u32::from_str_radix(std::str::from_utf8(word).ok()?, 16)
                .ok()
                .map(u32::to_ne_bytes)
        })
        .collect();
    let bytes = words?.concat();
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|b| Ipv4Addr::from(b).into()),
        16 => <[u8; 16]>::try_from(bytes)
            .ok()
            .map(|b| Ipv6Addr::from(b).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_on_every_address_is_found_and_one_on_loopback_is_not() {
        let wide = TcpListener::bind("0.0.0.0:0").unwrap();
        let narrow = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(
            beyond_loopback(wide.local_addr().unwrap().port()),
            [IpAddr::from([0, 0, 0, 0])]
        );
        assert_eq!(
            beyond_loopback(narrow.local_addr().unwrap().port()),
            Vec::<IpAddr>::new()
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_spelling_of_addresses_is_read() {
        assert_eq!(address("0100007F"), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(
            address("00000000000000000000000001000000"),
            Some(Ipv6Addr::LOCALHOST.into())
        );
        assert_eq!(
            address("0000000000000000FFFF00000100007F"),
            Some(IpAddr::from([127, 0, 0, 1]))
        );
    }
}
