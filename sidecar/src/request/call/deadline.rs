//! Until when a response must begin. Who sends a request slowly must not make whoever is to answer it look slow.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::proxy::streams::Exchange;
use crate::request::refusal::Refusal;

/// Shortest wait: times of exchanges are in whole milliseconds.
const STEP: Duration = Duration::from_millis(1);

/// Waits for the head of the response: for `limit` from when the request's body last moved on. Where the limit has passed and the
/// body's sender is waited for, it is the sender that is late. So a body takes at most `limit` and the pieces that are under way
/// then, and whoever answers has all of `limit` after it.
/// A request holds all of this while its agent thinks, so what is waited for is not moved in here.
///
/// # Errors
/// The body did not come in time, or the response did not.
pub(super) async fn within<T>(
    limit: Duration,
    exchange: &Exchange,
    mut sent: Pin<&mut impl Future<Output = T>>,
) -> Result<T, Refusal> {
    let (mut rest, mut seen) = (limit, None);
    loop {
        if let Ok(sent) = tokio::time::timeout(rest, sent.as_mut()).await {
            return Ok(sent);
        }
        let moved = exchange.moved_at();
        if exchange.awaits_body.load(Ordering::Relaxed) {
            return Err(Refusal::BodyTimeout);
        }
        rest = limit.saturating_sub(exchange.silent_for());
        // Nothing moved since the last look, or too long ago.
        if rest.is_zero() || seen == Some(moved) {
            return Err(Refusal::ResponseTimeout);
        }
        (rest, seen) = (rest.max(STEP), Some(moved));
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;

    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::kill::lease::Lease;

    const LIMIT: Duration = Duration::from_secs(3);

    fn exchange() -> Arc<Exchange> {
        Exchange::begin(false, &Arc::new(Lease::default()))
    }

    /// The request's body moves on once a second until then; and whether more is waited for after that.
    fn body(exchange: &Arc<Exchange>, until: Duration, more: bool) {
        let exchange = exchange.clone();
        exchange.awaits_body.store(true, Ordering::Relaxed);
        tokio::spawn(async move {
            let began = Instant::now();
            while began.elapsed() < until {
                sleep(Duration::from_secs(1)).await;
                exchange.moved();
            }
            exchange.awaits_body.store(more, Ordering::Relaxed);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_has_the_whole_limit_after_the_body() {
        let exchange = exchange();
        body(&exchange, Duration::from_secs(2), false);
        let answers = sleep(Duration::from_millis(4_900));
        assert_eq!(within(LIMIT, &exchange, pin!(answers)).await, Ok(()));
        let late = within(LIMIT, &exchange, pin!(sleep(Duration::from_secs(9)))).await;
        assert_eq!(late, Err(Refusal::ResponseTimeout));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_still_coming_is_its_senders() {
        let (trickled, began) = (exchange(), Instant::now());
        body(&trickled, Duration::from_secs(60), true);
        let late = within(LIMIT, &trickled, pin!(std::future::pending::<()>())).await;
        assert_eq!((late, began.elapsed()), (Err(Refusal::BodyTimeout), LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_reads_no_further_is_late_itself() {
        let (stalled, began) = (exchange(), Instant::now());
        let late = within(LIMIT, &stalled, pin!(std::future::pending::<()>())).await;
        assert_eq!((late, began.elapsed()), (Err(Refusal::ResponseTimeout), LIMIT));
    }
}
