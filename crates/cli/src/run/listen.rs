//! Whether the command's port can be reached around the sidecar.

use std::net::IpAddr;

use aip_runtime::sockets;

/// The addresses beyond loopback on which something listens on `port`; none where that can't be known.
pub(super) fn beyond_loopback(port: u16) -> Vec<IpAddr> {
    let listening = sockets::listening(port).unwrap_or_default();
    let addresses = listening.into_iter().map(|socket| socket.address);
    addresses.filter(|address| !address.is_loopback()).collect()
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
}
