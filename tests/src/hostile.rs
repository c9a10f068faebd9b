//! An agent that answers with bytes of a test's choosing, in HTTP/1.1 or HTTP/2, and goes on for as long as it is listened to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::frames::{self, HEADERS, SETTINGS, frame};

/// How it answers a request.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// At once.
    pub first: Vec<u8>,
    /// After it, without end.
    pub again: Vec<u8>,
    /// Between two of those.
    pub pause: Duration,
    /// Closes after `first`.
    pub closes: bool,
}

impl Answer {
    /// These bytes, and then nothing more for now.
    pub fn of(first: impl Into<Vec<u8>>) -> Self {
        Self {
            first: first.into(),
            ..Self::default()
        }
    }

    /// These bytes, and then the connection ends.
    pub fn last(first: impl Into<Vec<u8>>) -> Self {
        Self {
            closes: true,
            ..Self::of(first)
        }
    }

    /// `first`, and then `again` without end.
    pub fn endless(first: impl Into<Vec<u8>>, again: impl Into<Vec<u8>>) -> Self {
        Self {
            again: again.into(),
            ..Self::of(first)
        }
    }
}

type Answers = dyn Fn(u32) -> Answer + Send + Sync;

/// The agent.
#[derive(Clone)]
pub struct Hostile {
    pub address: SocketAddr,
    answers: Arc<watch::Sender<Arc<Answers>>>,
    speaking: Arc<AtomicUsize>,
}

/// Takes one from the connections on which it speaks without end.
struct Speaking(Arc<AtomicUsize>);

impl Drop for Speaking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Hostile {
    /// Serves on a free port until the process ends; `http2` is with prior knowledge.
    pub fn start(http2: bool) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let agent = Self {
            address: listener.local_addr().unwrap(),
            answers: Arc::new(watch::Sender::new(Arc::new(|_| Answer::default()))),
            speaking: Arc::default(),
        };
        let serving = agent.clone();
        // A test's runtime ends with the test; an agent that tests share needs its own.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serving.serve(listener, http2));
        });
        agent
    }

    /// How it answers from now on: what is made of the stream of a request (of HTTP/1.1: 0). Where it speaks without end,
    /// it hangs up now.
    pub fn answers(&self, answers: impl Fn(u32) -> Answer + Send + Sync + 'static) {
        self.answers.send_replace(Arc::new(answers));
    }

    /// Connections on which it speaks without end.
    pub fn speaking(&self) -> usize {
        self.speaking.load(Ordering::SeqCst)
    }

    async fn serve(self, listener: std::net::TcpListener, http2: bool) {
        let listener = TcpListener::from_std(listener).unwrap();
        while let Ok((tcp, _)) = listener.accept().await {
            let agent = self.clone();
            tokio::spawn(async move {
                // It ends as its other end likes.
                let _ = match http2 {
                    true => agent.http2(tcp).await,
                    false => agent.http1(tcp).await,
                };
            });
        }
    }

    fn answer(&self, stream: u32) -> Answer {
        let answers = self.answers.borrow().clone();
        answers(stream)
    }

    /// Says it; whether the connection goes on.
    async fn say(
        &self,
        writes: &mut (impl AsyncWrite + Unpin),
        reads: &mut (impl AsyncRead + Unpin),
        answer: &Answer,
    ) -> std::io::Result<bool> {
        let mut replaced = self.answers.subscribe();
        writes.write_all(&answer.first).await?;
        if answer.closes {
            writes.shutdown().await?;
            return Ok(false);
        }
        if answer.again.is_empty() {
            return Ok(true);
        }
        self.speaking.fetch_add(1, Ordering::SeqCst);
        let _speaking = Speaking(self.speaking.clone());
        let speaking = async {
            loop {
                writes.write_all(&answer.again).await?;
                tokio::time::sleep(answer.pause).await;
            }
        };
        // Whatever else is asked is not heard.
        let hung_up = async {
            let mut unheard = vec![0; 16 * 1024];
            while reads.read(&mut unheard).await? > 0 {}
            Ok(false)
        };
        tokio::select! {
            ended = speaking => ended,
            ended = hung_up => ended,
            _ = replaced.changed() => Ok(false),
        }
    }

    async fn http1(&self, mut tcp: TcpStream) -> std::io::Result<()> {
        let (mut read, mut part) = (Vec::new(), vec![0; 16 * 1024]);
        loop {
            while !crate::http::head_came(&read) {
                match tcp.read(&mut part).await? {
                    0 => return Ok(()),
                    n => read.extend_from_slice(&part[..n]),
                }
            }
            read.clear();
            let (answer, (mut reads, mut writes)) = (self.answer(0), tcp.split());
            if !self.say(&mut writes, &mut reads, &answer).await? {
                return Ok(());
            }
        }
    }

    async fn http2(&self, tcp: TcpStream) -> std::io::Result<()> {
        let (mut reads, mut writes) = tcp.into_split();
        let mut preface = [0; frames::PREFACE.len()];
        reads.read_exact(&mut preface).await?;
        writes.write_all(&frames::settings(&[])).await?;
        loop {
            let came = frames::next(&mut reads).await?;
            match came.kind {
                SETTINGS if came.flags & frames::ACK == 0 => {
                    writes.write_all(&frame(SETTINGS, frames::ACK, 0, &[])).await?;
                }
                HEADERS => {
                    let answer = self.answer(came.stream);
                    if !self.say(&mut writes, &mut reads, &answer).await? {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
    }
}
