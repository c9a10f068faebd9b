//! The fixed schedule of the open loop.
//!
//! tokio's timers round to a millisecond, which at 1,000 requests per second would be all one measures. A thread that
//! sleeps on a `timerfd` wakes the generator at the precision of the kernel's clock, without spinning.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::sync::Notify;

/// Most requests that may be due and not yet sent. A server this far behind is not measured but drowned.
const MAX_WAITING: usize = 100_000;

/// Moments at which requests are due, waiting for a free connection.
pub(crate) struct Schedule {
    period: Duration,
    due: RefCell<VecDeque<Instant>>,
    arrived: Notify,
    closed: Cell<bool>,
}

impl Schedule {
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            period: Duration::from_secs(1) / per_second,
            due: RefCell::new(VecDeque::new()),
            arrived: Notify::new(),
            closed: Cell::new(false),
        }
    }

    /// Makes requests due until `stop`, or until the server is hopelessly behind.
    pub(crate) async fn tick(&self, stop: &Cell<bool>) -> anyhow::Result<()> {
        let done = self.tick_until(stop).await;
        self.closed.set(true);
        // Wakes every worker that waits now; the others see `closed` when they look.
        self.arrived.notify_waiters();
        done
    }

    async fn tick_until(&self, stop: &Cell<bool>) -> anyhow::Result<()> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let every = Timespec {
            tv_sec: self.period.as_secs() as i64,
            tv_nsec: i64::from(self.period.subsec_nanos()),
        };
        timerfd_settime(
            &timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec {
                it_interval: every,
                it_value: every,
            },
        )?;
        let mut next = Instant::now() + self.period;
        let clock = Arc::new(Clock::default());
        let ticking = tokio::task::spawn_blocking({
            let clock = Arc::clone(&clock);
            move || clock.run(&timer)
        });
        let mut keeps_up = true;
        while keeps_up && !stop.get() && !ticking.is_finished() {
            clock.wake.notified().await;
            for _ in 0..clock.fired.swap(0, Ordering::AcqRel) {
                self.due.borrow_mut().push_back(next);
                next += self.period;
                self.arrived.notify_one();
            }
            keeps_up = self.due.borrow().len() <= MAX_WAITING;
        }
        clock.stop.store(true, Ordering::Release);
        ticking.await??;
        ensure!(keeps_up, "{MAX_WAITING} requests waiting: the server can't keep up");
        Ok(())
    }

    /// The moment at which the next request was due; `None` when the measurement is over and nothing waits.
    pub(crate) async fn next(&self) -> Option<Instant> {
        loop {
            if let Some(due) = self.due.borrow_mut().pop_front() {
                return Some(due);
            }
            if self.closed.get() {
                return None;
            }
            self.arrived.notified().await;
        }
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.due.borrow().len() as u64
    }
}

/// What the thread that sleeps on the timer shares with the generator.
#[derive(Default)]
struct Clock {
    fired: AtomicU64,
    wake: Notify,
    stop: AtomicBool,
}

impl Clock {
    fn run(&self, timer: &OwnedFd) -> anyhow::Result<()> {
        let done = self.count(timer);
        // Whatever ended the thread, the generator must not wait for it.
        self.wake.notify_one();
        done
    }

    fn count(&self, timer: &OwnedFd) -> anyhow::Result<()> {
        let mut expirations = [0u8; 8];
        while !self.stop.load(Ordering::Acquire) {
            rustix::io::read(timer, &mut expirations)?;
            self.fired.fetch_add(u64::from_ne_bytes(expirations), Ordering::AcqRel);
            self.wake.notify_one();
        }
        Ok(())
    }
}
