//! Records as they come, for whoever watches: the newest, so many and so many bytes of them. Who falls further behind is told
//! how many it missed; nobody waits for it, and what it has not read is held for nobody else.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aip_api::AgentName;
use tokio::sync::Notify;

/// Records that somebody who watches may be behind: seconds of a busy mesh.
const MAX_RECORDS: usize = 8_192;
/// And bytes of their lines, of which each may have half a MiB.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// A record that has just come.
#[derive(Debug)]
pub struct Seen {
    /// Whose log.
    pub agent: AgentName,
    /// Which.
    pub log: Arc<str>,
    /// Its segment.
    pub segment: u64,
    /// Where its line begins.
    pub offset: u64,
    /// The line, without its end: what was read from it would take many times as much.
    pub line: Box<[u8]>,
}

/// The newest records.
#[derive(Debug, Default)]
pub struct Feed {
    held: Mutex<Held>,
    watchers: AtomicUsize,
    came: Notify,
}

#[derive(Debug, Default)]
struct Held {
    seen: VecDeque<Arc<Seen>>,
    /// How many came before the first that is held.
    before: u64,
    bytes: usize,
}

impl Held {
    fn drop_first(&mut self) {
        if let Some(first) = self.seen.pop_front() {
            self.before += 1;
            self.bytes -= first.line.len();
        }
    }
}

impl Feed {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody watches.
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Acquire) > 0
    }

    /// Tells whoever watches.
    pub fn tell(&self, seen: Seen) {
        if !self.is_watched() {
            return;
        }
        {
            let mut held = self.held();
            held.bytes += seen.line.len();
            held.seen.push_back(Arc::new(seen));
            while held.seen.len() > MAX_RECORDS || held.bytes > MAX_BYTES {
                held.drop_first();
            }
        }
        self.came.notify_waiters();
    }

    /// Records from now on.
    pub fn watch(self: &Arc<Self>) -> Watcher {
        self.watchers.fetch_add(1, Ordering::AcqRel);
        let held = self.held();
        Watcher {
            at: held.before + held.seen.len() as u64,
            feed: self.clone(),
        }
    }
}

/// Somebody who watches.
#[derive(Debug)]
pub struct Watcher {
    feed: Arc<Feed>,
    /// Records that came before the next one it is told of.
    at: u64,
}

/// So many records came meanwhile and are not held any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed(pub u64);

impl Watcher {
    /// The next record, when it has come. It may be given up and asked again.
    ///
    /// # Errors
    /// Some were missed; the next call goes on after them.
    pub async fn next(&mut self) -> Result<Arc<Seen>, Missed> {
        let feed = self.feed.clone();
        loop {
            let came = feed.came.notified();
            tokio::pin!(came);
            // From here on it hears of what comes, also while it looks.
            came.as_mut().enable();
            if let Some(next) = self.look() {
                return next;
            }
            came.await;
        }
    }

    fn look(&mut self) -> Option<Result<Arc<Seen>, Missed>> {
        let held = self.feed.held();
        if self.at < held.before {
            let missed = held.before - self.at;
            self.at = held.before;
            return Some(Err(Missed(missed)));
        }
        let place = usize::try_from(self.at - held.before).ok()?;
        let seen = held.seen.get(place)?.clone();
        self.at += 1;
        Some(Ok(seen))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if self.feed.watchers.fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut held = self.feed.held();
            while !held.seen.is_empty() {
                held.drop_first();
            }
            held.seen.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn seen(offset: u64, bytes: usize) -> Seen {
        Seen {
            agent: "planner".parse().unwrap(),
            log: "log".into(),
            segment: 0,
            offset,
            line: vec![b'x'; bytes].into(),
        }
    }

    #[tokio::test]
    async fn who_watches_hears_all_in_order_and_waits_for_the_next() {
        let feed = Arc::new(Feed::default());
        feed.tell(seen(0, 10));
        let mut watcher = feed.watch();
        assert!(watcher.next().now_or_never().is_none(), "it came before");
        (1..4).for_each(|n| feed.tell(seen(n, 10)));
        for n in 1..4 {
            assert_eq!(watcher.next().await.unwrap().offset, n);
        }
        let told = feed.clone();
        let (next, ()) = tokio::join!(watcher.next(), async move { told.tell(seen(4, 10)) });
        assert_eq!(next.unwrap().offset, 4);
    }

    #[tokio::test]
    async fn who_reads_nothing_holds_no_more_than_so_many_bytes_and_is_told_what_it_missed() {
        let feed = Arc::new(Feed::default());
        let mut slow = feed.watch();
        for n in 0..1_000 {
            feed.tell(seen(n, 500_000));
        }
        let held = feed.held().bytes;
        assert!(held <= MAX_BYTES && held > MAX_BYTES - 500_001, "{held}");
        let left = (MAX_BYTES / 500_000) as u64;
        assert_eq!(slow.next().await.unwrap_err(), Missed(1_000 - left));
        assert_eq!(slow.next().await.unwrap().offset, 1_000 - left);
        for n in 0..2 * MAX_RECORDS as u64 {
            feed.tell(seen(n, 10));
        }
        assert_eq!(feed.held().seen.len(), MAX_RECORDS);
        drop(slow);
        assert_eq!(feed.held().bytes, 0, "nobody watches");
        feed.tell(seen(0, 10));
        assert!(feed.held().seen.is_empty());
    }
}
