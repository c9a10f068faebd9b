//! Conditions with deadlines.

use std::time::{Duration, Instant};

/// How long a condition may take that normally holds within a second: two busy cores and a cold cache included.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// Waits until `condition` answers; panics with `what` past [`DEADLINE`].
pub async fn until<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, condition).await
}

/// As [`until`], of something that takes longer.
pub async fn until_within<T>(deadline: Duration, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until `condition` answers `Ok`; past [`DEADLINE`] panics with `what` and the last refusal.
pub async fn until_ok<T>(what: &str, mut condition: impl AsyncFnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(why) => assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain: {what}: {why}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}
