//! The threads that serve connections.
//!
//! Each worker has a runtime of its own, with one thread. A connection stays with the worker that it was given to, and
//! so does all that its requests need: the connection to the agent, the one to the peer's sidecar, their tasks. Nothing
//! on the way of a request waits for another thread to be woken, which cost more than half of its CPU time when the
//! workers shared their tasks.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Threads of a worker for what blocks, which is looking up names. More wait, no longer than a lookup may take: an agent that
/// asks for many names at once must not be given hundreds of threads.
const LOOKUP_THREADS: usize = 8;

thread_local! {
    /// Which worker this thread is. Threads that are none share the first one's connections.
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

struct Worker {
    runtime: Handle,
    connections: AtomicUsize,
    /// Dropped with the worker, which ends its thread.
    _stop: Option<oneshot::Sender<()>>,
}

/// The workers of a sidecar. Cloning shares them; they end with the last clone.
#[derive(Clone)]
pub struct Workers(Arc<[Worker]>);

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Workers({})", self.0.len())
    }
}

impl Workers {
    /// Starts this many threads.
    ///
    /// # Errors
    /// The system gives no thread, or no file descriptors for its runtime.
    pub fn start(count: usize) -> io::Result<Self> {
        (0..count).map(start).collect::<io::Result<_>>().map(Self)
    }

    /// The runtime of the caller as the only worker, for sidecars inside another program.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn of_caller() -> Self {
        Self(Arc::new([Worker {
            runtime: Handle::current(),
            connections: AtomicUsize::new(0),
            _stop: None,
        }]))
    }

    /// Gives a connection to the worker that has the fewest; it counts for as long as `serve` keeps its place.
    pub(crate) fn serve<F>(&self, tcp: TcpStream, serve: impl FnOnce(TcpStream, Place) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        // Its readiness must come from the worker's own reactor.
        let Ok(tcp) = tcp.into_std() else { return };
        let least = (0..self.0.len()).min_by_key(|i| self.0[*i].connections.load(Ordering::Relaxed));
        let Some(index) = least else { return };
        self.0[index].connections.fetch_add(1, Ordering::Relaxed);
        let place = Place {
            workers: self.clone(),
            index,
        };
        self.0[index].runtime.spawn(async move {
            match TcpStream::from_std(tcp) {
                Ok(tcp) => serve(tcp, place).await,
                Err(error) => tracing::warn!(%error, "a connection can't be served"),
            }
        });
    }

    /// One `T` for each worker.
    pub(crate) fn each<T>(&self, make: impl Fn() -> T) -> PerWorker<T> {
        PerWorker(self.0.iter().map(|_| make()).collect())
    }
}

/// A connection among those of its worker.
pub(crate) struct Place {
    workers: Workers,
    index: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.workers.0[self.index].connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn start(index: usize) -> io::Result<Worker> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(LOOKUP_THREADS)
        .build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name(format!("worker-{index}"));
    thread.spawn(move || {
        INDEX.set(index);
        // Resolves when the sender is dropped.
        let _ = runtime.block_on(stopped);
        // Not waited for: a lookup that hangs must not hold up the end.
        runtime.shutdown_background();
    })?;
    Ok(Worker {
        runtime: handle,
        connections: AtomicUsize::new(0),
        _stop: Some(stop),
    })
}

/// What each worker has one of.
pub(crate) struct PerWorker<T>(Box<[T]>);

impl<T> PerWorker<T> {
    /// This worker's.
    pub(crate) fn here(&self) -> &T {
        self.at(index())
    }

    /// That worker's.
    pub(crate) fn at(&self, index: usize) -> &T {
        // A thread of another sidecar in this process has an index of that one's.
        &self.0[index % self.0.len()]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}

/// Which worker this thread is.
pub(crate) fn index() -> usize {
    INDEX.get()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connections_spread_over_the_workers_and_give_their_places_back() {
        let workers = Workers::start(2).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut clients = Vec::new();
        let (report, mut reports) = tokio::sync::mpsc::channel(4);
        for _ in 0..4 {
            clients.push(TcpStream::connect(address).await.unwrap());
            let (tcp, _) = listener.accept().await.unwrap();
            let (seen, report) = (seen.clone(), report.clone());
            workers.serve(tcp, async move |tcp: TcpStream, _place| {
                seen.lock().unwrap().push(index());
                report.send(()).await.unwrap();
                // Until the client goes.
                let _ = tcp.readable().await;
            });
            reports.recv().await.unwrap();
        }
        let mut seen = seen.lock().unwrap().clone();
        seen.sort_unstable();
        assert_eq!(seen, [0, 0, 1, 1]);
        drop(clients);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while workers.0.iter().any(|w| w.connections.load(Ordering::Relaxed) > 0) {
            assert!(std::time::Instant::now() < deadline, "places are not given back");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn workers_end_with_the_last_clone() {
        let workers = Workers::start(1).unwrap();
        let (held, released) = oneshot::channel::<()>();
        workers.0[0].runtime.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(workers);
        // The runtime drops its tasks when it ends.
        let ended = tokio::time::timeout(std::time::Duration::from_secs(10), released).await;
        assert!(ended.is_ok_and(|released| released.is_err()));
    }
}
