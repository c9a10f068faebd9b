//! HTTP/2 as both listeners serve it, and how the tasks of its streams are started.

use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::TokioTimer;

use super::limits::{
    CONNECTION_WINDOW, MAX_HEADER_LIST, MAX_LOCAL_RESETS, MAX_PENDING_RESETS, MAX_SEND_BUFFER, MAX_STREAMS,
    STREAM_WINDOW,
};
use super::stalled::UntilGivenUp;

/// Starts a task for each stream. On the heap before it is a task: one is moved several times until it runs, and again
/// when it is over, and the HTTP library's have room for what only the connection's own needs. It ends with what it carries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tasks;

impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(UntilGivenUp::going_on(future));
    }
}

/// A server with our bounds.
pub(super) fn server() -> Builder<Tasks> {
    let mut builder = Builder::new(Tasks);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}
