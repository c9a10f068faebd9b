use super::*;
use crate::record::sample::decision;
use crate::record::{Decision, Direction, End, Passed};
use aip_api::Digest;

fn end(decision: &Decision, request: &[u8], response: &[u8]) -> End {
    let passed = |bytes: &[u8]| Passed {
        bytes: bytes.len() as u64,
        digest: (!bytes.is_empty()).then(|| Digest::of_parts(&[b"salt", bytes])),
    };
    End {
        id: decision.id,
        hop: None,
        direction: decision.direction,
        status: 200,
        end: "complete".into(),
        blame: String::new(),
        other: String::new(),
        ms: 1,
        salt: "00".repeat(16),
        request_in: passed(request),
        request_out: passed(request),
        response_in: passed(response),
        response_out: passed(response),
    }
}

/// One end, with what is changed in its two records.
fn told(
    direction: Direction,
    (request, response): (&[u8], &[u8]),
    change: impl FnOnce(&mut Decision, &mut End),
) -> Told {
    let mut decision = decision(direction);
    let mut end = end(&decision, request, response);
    change(&mut decision, &mut end);
    Said::of(&decision).ended(&end)
}

const BOTH: (&[u8], &[u8]) = (b"question", b"answer");

fn caller(bodies: (&[u8], &[u8]), change: impl FnOnce(&mut Decision, &mut End)) -> Told {
    told(Direction::Outbound, bodies, change)
}

fn callee(bodies: (&[u8], &[u8]), change: impl FnOnce(&mut Decision, &mut End)) -> Told {
    told(Direction::Inbound, bodies, change)
}

#[test]
fn ends_that_saw_the_same_agree_and_every_difference_is_named() {
    let ours = caller(BOTH, |_, _| {});
    let theirs = |bodies| compare(&ours, &callee(bodies, |_, _| {}));
    assert_eq!(theirs(BOTH), []);
    assert!(!unproven(&ours, &callee(BOTH, |_, _| {})));
    assert_eq!(theirs((b"questiom", b"answer")), [Difference::RequestDigest]);
    assert_eq!(theirs((b"quest", b"answer")), [Difference::RequestBytes]);
    assert_eq!(theirs((b"question", b"answes")), [Difference::ResponseDigest]);
    assert_eq!(theirs((b"question", b"")), [Difference::ResponseBytes]);
    let early = callee((b"que", b"answer"), |_, end| end.request_in.digest = None);
    assert_eq!(compare(&ours, &early), [], "it answered before it had read everything");
    assert!(unproven(&ours, &early));
    let silent = callee(BOTH, |_, end| end.response_out.digest = None);
    assert_eq!(
        compare(&ours, &silent),
        [Difference::ResponseDigest],
        "what nobody vouches for"
    );
    let salted = callee(BOTH, |_, end| end.salt = "01".repeat(16));
    assert_eq!(compare(&ours, &salted), [Difference::Salt]);
    let unsalted = callee(BOTH, |_, end| end.salt = String::new());
    assert_eq!(compare(&ours, &unsalted), [Difference::Salt], "a digest with no salt");
}

#[test]
fn both_ends_speak_of_the_same_call() {
    let ours = caller(BOTH, |_, _| {});
    let differs = |change: fn(&mut Decision)| compare(&ours, &callee(BOTH, |decision, _| change(decision)));
    assert_eq!(differs(|d| d.method = "GET".into()), [Difference::Method]);
    assert_eq!(differs(|d| d.path = "/other".into()), [Difference::Path]);
    assert_eq!(differs(|d| d.call = "tools/list".into()), [Difference::Call]);
    assert_eq!(differs(|d| d.tool = "close_books".into()), [Difference::Tool]);
    // Who does not look into the body knows neither.
    let blind = |d: &mut Decision| (d.protocol, d.call, d.tool) = ("http".into(), String::new(), String::new());
    assert_eq!(differs(blind), []);
    assert_eq!(differs(|d| d.tool = String::new()), []);
    // A switch to WebSocket is 101 to a caller of HTTP/1.1, and 200 between the sidecars.
    let asked = caller(BOTH, |d, e| (d.protocol, e.status) = ("websocket".into(), 101));
    assert_eq!(
        compare(&asked, &callee(BOTH, |d, _| d.protocol = "websocket".into())),
        []
    );
    assert_eq!(
        compare(&asked, &callee(BOTH, |_, _| ())),
        [Difference::Status],
        "nobody else saw a wish to switch"
    );
}

#[test]
fn a_refusal_that_the_caller_was_told_of_is_one_at_the_callee_too() {
    let status = |ours: u16, theirs: u16| {
        compare(
            &caller(BOTH, |_, end| end.status = ours),
            &callee(BOTH, |_, end| end.status = theirs),
        )
    };
    assert_eq!(status(403, 403), []);
    assert_eq!(status(200, 403), [Difference::Status]);
    assert_eq!(status(403, 200), [Difference::Status]);
    let gone = caller(BOTH, |_, end| {
        (end.end, end.blame) = ("aborted".into(), "caller".into())
    });
    let other = callee(BOTH, |_, end| end.status = 500);
    assert_eq!(
        compare(&gone, &other),
        [Difference::Status],
        "it was passed on before the end"
    );
    // An answer of its own: the callee was too slow.
    let late = caller(BOTH, |_, end| {
        (end.status, end.end, end.blame) = (504, "response_timeout".into(), "callee".into());
        end.response_in = Passed::default();
    });
    assert_eq!(compare(&late, &callee(BOTH, |_, _| {})), []);
}

#[test]
fn a_hop_that_was_cut_may_have_lost_bytes_and_never_won_any() {
    fn cut(direction: Direction, bodies: (&[u8], &[u8])) -> Told {
        told(direction, bodies, |_, end| {
            end.end = "killed".into();
            (end.request_in.digest, end.request_out.digest) = (None, None);
            (end.response_in.digest, end.response_out.digest) = (None, None);
        })
    }
    let ours = cut(Direction::Outbound, (b"question", b"ans"));
    let theirs = |request: &[u8], response: &[u8]| compare(&ours, &cut(Direction::Inbound, (request, response)));
    assert_eq!(theirs(b"question", b"answer"), []);
    assert_eq!(theirs(b"que", b"answer"), []);
    assert_eq!(theirs(b"question!", b"answer"), [Difference::RequestBytes]);
    assert_eq!(theirs(b"question", b""), [Difference::ResponseBytes]);
}

#[test]
fn who_says_that_it_was_cut_off_is_not_believed_where_the_other_end_saw_the_whole() {
    let ours = caller(BOTH, |_, _| {});
    let gone = |response: &[u8]| {
        callee((b"question", response), |_, end| {
            (end.end, end.blame) = ("aborted".into(), "agent".into());
            end.response_out.digest = None;
        })
    };
    assert_eq!(compare(&ours, &gone(b"answer")), [Difference::ResponseDigest]);
    assert_eq!(compare(&ours, &gone(b"answer and more")), [Difference::ResponseBytes]);
    let mute = caller(BOTH, |_, end| {
        (end.end, end.blame) = ("aborted".into(), "caller".into());
        (end.request_out.digest, end.response_in.digest) = (None, None);
    });
    assert_eq!(
        compare(&mute, &callee(BOTH, |_, _| {})),
        [Difference::RequestDigest],
        "the callee saw the request's end, which the caller's sidecar must have sent"
    );
}
