//! A way for TCP connections between two processes of this machine, which can be slowed, held up in either direction, and
//! cut, as [`crate::network`] does it with links, for fifty processes that need no hosts of their own and no root.
//!
//! What is held up is not lost: it goes on when the way is open again, as TCP would send it again. A cut resets what there is,
//! and whoever comes then.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What is read before it is sent on: as much as may be on its way when a way is held up.
const ON_ITS_WAY: usize = 16 * 1024;

/// What becomes of bytes in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    #[default]
    Passes,
    /// Each piece so much later.
    Late(Duration),
    /// Nothing comes through, and nobody is told.
    Stalls,
}

/// How the way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From whoever connects to the other end, and back.
    Open {
        forth: Flow,
        back: Flow,
    },
    Cut,
}

impl Way {
    /// Nothing is in the way.
    pub const CLEAR: Self = Self::Open {
        forth: Flow::Passes,
        back: Flow::Passes,
    };

    fn flow(self, is_forth: bool) -> Flow {
        match self {
            Self::Open { forth, .. } if is_forth => forth,
            Self::Open { back, .. } => back,
            Self::Cut => Flow::Stalls,
        }
    }
}

/// A way, open until this is dropped.
#[derive(Debug)]
pub struct Relay {
    /// Where one connects.
    pub address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    way: watch::Sender<Way>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// A way from a free port to `target`.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (target, way) = (Arc::new(Mutex::new(target)), watch::Sender::new(Way::CLEAR));
        let task = tokio::spawn(accept(listener, target.clone(), way.subscribe()));
        Self {
            address,
            target,
            way,
            task,
        }
    }

    /// Leads who connects from now on to there.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }

    /// Makes the way so, for what goes over it and for whoever comes.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    pub fn way(&self) -> Way {
        *self.way.borrow()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.way.send_replace(Way::Cut);
    }
}

async fn accept(listener: TcpListener, target: Arc<Mutex<SocketAddr>>, way: watch::Receiver<Way>) {
    // A connection that broke off before it was taken is none of the listener's troubles.
    loop {
        let Ok((near, _)) = listener.accept().await else {
            continue;
        };
        let (to, way) = (*target.lock().unwrap(), way.clone());
        tokio::spawn(async move {
            let _ = carry(near, to, way).await;
        });
    }
}

/// Carries one connection until both ends have ended it or the way is cut.
async fn carry(near: TcpStream, to: SocketAddr, way: watch::Receiver<Way>) -> io::Result<()> {
    if *way.borrow() == Way::Cut {
        return near.set_zero_linger();
    }
    let far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let forth = pass(near_in, far_out, way.clone(), true);
    tokio::try_join!(forth, pass(far_in, near_out, way, false)).map(drop)
}

/// Passes bytes on in one direction, and their end. A cut resets both ends.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: watch::Receiver<Way>,
    is_forth: bool,
) -> io::Result<()> {
    let mut cut = way.clone();
    tokio::select! {
        done = pass_on(&mut from, &mut to, way, is_forth) => done,
        _ = cut.wait_for(|way| *way == Way::Cut) => {
            from.as_ref().set_zero_linger()?;
            to.as_ref().set_zero_linger()?;
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
}

async fn pass_on(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut way: watch::Receiver<Way>,
    is_forth: bool,
) -> io::Result<()> {
    let mut piece = vec![0; ON_ITS_WAY];
    loop {
        let read = from.read(&mut piece).await?;
        let flow = way.borrow().flow(is_forth);
        if let Flow::Late(by) = flow {
            tokio::time::sleep(by).await;
        }
        let opened = way.wait_for(|way| way.flow(is_forth) != Flow::Stalls).await;
        drop(opened.map_err(io::Error::other)?);
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::DEADLINE;

    /// An end that sends back what comes, and a connection to it over a relay.
    async fn connected() -> (Relay, TcpStream) {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::start(echo.local_addr().unwrap()).await;
        tokio::spawn(async move {
            while let Ok((tcp, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = tcp.into_split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let near = TcpStream::connect(relay.address).await.unwrap();
        (relay, near)
    }

    async fn hears(near: &mut TcpStream, expected: &str) {
        let mut heard = vec![0; expected.len()];
        let read = tokio::time::timeout(DEADLINE, near.read_exact(&mut heard)).await;
        read.expect("it comes").unwrap();
        assert_eq!(heard, expected.as_bytes());
    }

    /// For a while, so that what should not come has the time to.
    async fn hears_nothing(near: &mut TcpStream) {
        let waited = tokio::time::timeout(Duration::from_millis(200), near.peek(&mut [0])).await;
        assert!(waited.is_err(), "something came");
    }

    #[tokio::test]
    async fn what_is_held_up_in_either_direction_comes_when_the_way_is_open_again() {
        let (relay, mut near) = connected().await;
        near.write_all(b"one").await.unwrap();
        hears(&mut near, "one").await;
        let (clear, held) = (Flow::Passes, Flow::Stalls);
        for (forth, back) in [(held, clear), (clear, held), (held, held)] {
            relay.set(Way::Open { forth, back });
            near.write_all(b"two").await.unwrap();
            hears_nothing(&mut near).await;
            relay.set(Way::CLEAR);
            hears(&mut near, "two").await;
        }
        let late = Flow::Late(Duration::from_millis(1));
        relay.set(Way::Open {
            forth: late,
            back: late,
        });
        near.write_all(b"three").await.unwrap();
        hears(&mut near, "three").await;
    }

    #[tokio::test]
    async fn a_cut_resets_what_there_is_and_whoever_comes() {
        let (relay, mut near) = connected().await;
        near.write_all(b"one").await.unwrap();
        hears(&mut near, "one").await;
        relay.set(Way::Cut);
        assert!(near.read_u8().await.is_err());
        let mut next = TcpStream::connect(relay.address).await.unwrap();
        assert!(next.read_u8().await.is_err());
        relay.set(Way::CLEAR);
        let mut next = TcpStream::connect(relay.address).await.unwrap();
        next.write_all(b"two").await.unwrap();
        hears(&mut next, "two").await;
    }

    #[tokio::test]
    async fn an_end_in_order_is_passed_on() {
        let (_relay, mut near) = connected().await;
        near.write_all(b"last").await.unwrap();
        near.shutdown().await.unwrap();
        hears(&mut near, "last").await;
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
    }
}
