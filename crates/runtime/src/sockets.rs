//! What sockets there are on this machine, and whose: the user, as the kernel says in `/proc/net/tcp` and
//! `/proc/net/tcp6` (of this process's network namespace).
//!
//! The tables are read while the world goes on, so a row proves something only about a connection that was there the
//! whole time. A client could connect, send, reset the connection and have somebody else connect from the same port,
//! whose row would then be found. So [`is_of`] looks at its own end afterwards: one that was reset has no peer any more
//! (`ENOTCONN`), and one that has was connected all along, with that row as its other end.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpStream;

/// Clients may use an IPv6 socket for an IPv4 address (Java does), so both are read.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// Rows of one table that are looked at: more connections than a machine has ports for one address, many times over.
const MAX_ROWS: usize = 1_000_000;

/// States, as in the kernel's `include/net/tcp_states.h`. Others are not asked for: once a socket is closing, its row
/// may say user 0 for want of one.
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

struct Row<'a> {
    local: SocketAddr,
    remote: SocketAddr,
    state: &'a str,
    uid: u32,
}

/// Whether the client at the other end of this accepted connection, on this machine, belongs to the user `uid`. No, if
/// that can't be known.
pub async fn is_of(tcp: &TcpStream, uid: u32) -> bool {
    let (Ok(client), Ok(server)) = (tcp.peer_addr(), tcp.local_addr()) else {
        return false;
    };
    let found = tokio::task::spawn_blocking(move || of_connection(client, server)).await;
    matches!(found, Ok(Ok(Some(owner))) if owner == uid) && tcp.peer_addr().is_ok()
}

/// The user whose socket is the client's end of this connection.
///
/// # Errors
/// The kernel's tables can't be read.
fn of_connection(client: SocketAddr, server: SocketAddr) -> io::Result<Option<u32>> {
    let (client, server) = (plain(client), plain(server));
    find(|row| row.state == ESTABLISHED && row.local == client && row.remote == server)
}

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// Where; unspecified for all addresses of this machine.
    pub address: IpAddr,
    /// Whose.
    pub uid: u32,
}

/// What listens on this port of this machine, at whatever addresses.
///
/// # Errors
/// The kernel's tables can't be read.
pub fn listening(port: u16) -> io::Result<Vec<Listening>> {
    let mut found = Vec::new();
    find(|row| {
        if row.state == LISTEN && row.local.port() == port {
            found.push(Listening {
                address: row.local.ip(),
                uid: row.uid,
            });
        }
        false
    })?;
    Ok(found)
}

fn find(mut is_it: impl FnMut(&Row<'_>) -> bool) -> io::Result<Option<u32>> {
    for table in TABLES {
        let file = match File::open(table) {
            Ok(file) => file,
            // A kernel without IPv6 has no second table.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table != TABLES[0] => continue,
            Err(error) => return Err(error),
        };
        let mut lines = BufReader::with_capacity(64 * 1024, file);
        let mut line = String::new();
        for _ in 0..MAX_ROWS {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                break;
            }
            // The first line is a heading, and no row.
            if let Some(row) = row(&line)
                && is_it(&row)
            {
                return Ok(Some(row.uid));
            }
        }
    }
    Ok(None)
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid …` (proc(5)).
fn row(line: &str) -> Option<Row<'_>> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let local = address(columns.next()?)?;
    let remote = address(columns.next()?)?;
    let state = columns.next()?;
    let uid = columns.nth(3)?.parse().ok()?;
    Some(Row {
        local,
        remote,
        state,
        uid,
    })
}

/// An address and port in hex; the address as 32-bit words in the machine's own byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = address.get(at..at + 8)?;
        u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes)
    };
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (i, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(8 * i)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket};

    fn me() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[tokio::test]
    async fn a_connection_is_its_client_s_and_nobody_else_s() {
        for (listens, dials) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            // An IPv6 socket that dials an IPv4 address.
            ("127.0.0.1:0", "::ffff:127.0.0.1"),
        ] {
            let Ok(listener) = TcpListener::bind(listens).await else {
                // No IPv6 on this machine.
                continue;
            };
            let to = SocketAddr::new(dials.parse().unwrap(), listener.local_addr().unwrap().port());
            let _client = TcpStream::connect(to).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            assert!(is_of(&accepted, me()).await, "{dials}");
            assert!(!is_of(&accepted, me() + 1).await, "{dials}");
        }
    }

    /// The user who connects from the port of a connection that was reset does not stand in for the one before.
    #[tokio::test]
    async fn a_connection_that_was_reset_is_nobody_s() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        // From an address of its own, so that no other connection of this machine takes the port in between.
        let first = TcpSocket::new_v4().unwrap();
        first.bind("127.0.0.186:0".parse().unwrap()).unwrap();
        let first = first.connect(to).await.unwrap();
        let from = first.local_addr().unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        rustix::net::sockopt::set_socket_linger(&first, Some(std::time::Duration::ZERO)).unwrap();
        drop(first);
        let again = TcpSocket::new_v4().unwrap();
        again.set_reuseaddr(true).unwrap();
        again.bind(from).unwrap();
        let _second = again.connect(to).await.unwrap();
        assert_eq!(of_connection(from, to).unwrap(), Some(me()), "the row of the second");
        assert!(!is_of(&accepted, me()).await, "the first is over");
    }

    #[tokio::test]
    async fn what_listens_is_found_with_its_address_and_user() {
        for address in ["127.0.0.1", "0.0.0.0"] {
            let address: IpAddr = address.parse().unwrap();
            let listener = TcpListener::bind((address, 0)).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let uid = me();
            assert_eq!(listening(port).unwrap(), [Listening { address, uid }]);
            drop(listener);
            assert_eq!(listening(port).unwrap(), []);
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_read_as_the_kernel_spells_them() {
        for (text, is) in [
            ("0100007F:0050", "127.0.0.1:80"),
            ("00000000000000000000000001000000:0050", "[::1]:80"),
            ("0000000000000000FFFF00000100007F:0050", "127.0.0.1:80"),
        ] {
            assert_eq!(address(text), Some(is.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn rows_are_read_as_the_kernel_writes_them() {
        let line =
            "   2: 0100007F:3A99 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 77 1 0 20";
        if cfg!(target_endian = "little") {
            let row = row(line).unwrap();
            assert_eq!(row.local, "127.0.0.1:15001".parse().unwrap());
            assert_eq!((row.remote.port(), row.state, row.uid), (50_000, "01", 1_000));
        }
        for bad in [
            "",
            "  sl  local_address rem_address   st",
            "0: 01:1 01:1 01",
            "0: x:1 y:1 01 0 0 0 0",
        ] {
            assert!(row(bad).is_none(), "{bad}");
        }
    }
}
