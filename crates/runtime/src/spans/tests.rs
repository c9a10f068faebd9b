use std::net::TcpListener;

use super::*;
use crate::settings::Text;

fn settings(endpoint: &str) -> Settings {
    let (endpoint, mut errors) = (Text::from(endpoint), Vec::new());
    let asked = Asked {
        endpoint: Some(&endpoint),
        ..Asked::default()
    };
    let settings = Settings::check(asked, "test", &|_| None, &mut errors);
    settings.unwrap_or_else(|| panic!("{errors:?}"))
}

fn span() -> Span {
    Span {
        trace: [1; 16],
        id: [2; 8],
        parent: None,
        kind: Kind::Server,
        name: "GET".into(),
        start: SystemTime::now(),
        took: Duration::from_millis(1),
        failed: false,
        attributes: vec![("aip.verdict", Value::Word("allow"))],
    }
}

/// Takes connections, by the system's queue, and never says a word.
fn silent() -> (TcpListener, Settings) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = settings(&format!("http://{}", listener.local_addr().unwrap()));
    (listener, settings)
}

#[tokio::test]
async fn whoever_sends_never_waits_for_a_collector_that_hangs_and_memory_is_bounded() {
    let (_listener, settings) = silent();
    let spans = Spans::start(&settings).unwrap();
    // More than queue and batches hold; this thread is the only one, so nothing is taken out meanwhile.
    for _ in 0..3 * MAX_QUEUED {
        spans.send(span());
    }
    let queue = &spans.0.as_ref().unwrap().queue;
    assert_eq!((queue.max_capacity(), queue.capacity()), (MAX_QUEUED, 0));
    assert!(
        !spans.close(Duration::from_millis(10)).await,
        "the end does not wait for it either"
    );
    spans.send(span());
}

#[tokio::test]
async fn a_collector_that_is_not_there_is_no_hindrance() {
    let (listener, settings) = silent();
    drop(listener);
    let spans = Spans::start(&settings).unwrap();
    spans.send(span());
    // Refused at once, and dropped: nothing is left to wait for.
    assert!(spans.close(Duration::from_secs(30)).await);
}

#[test]
fn nothing_is_sampled_where_nothing_is_sent() {
    assert!(Spans::default().sampler().is_none());
    Spans::default().send(span());
}
