use super::*;

fn end() -> Record {
    Record {
        v: RECORD_VERSION,
        seq: 7,
        prev: Digest::sha256(b"before"),
        at: 1_700_000_000_000,
        event: Event::End(Box::new(End {
            id: DecisionId::fresh(),
            hop: Some(HopId::fresh()),
            direction: Direction::Inbound,
            status: 200,
            end: "complete".into(),
            blame: String::new(),
            other: String::new(),
            ms: 3,
            salt: String::new(),
            request_in: Passed::default(),
            request_out: Passed::default(),
            response_in: Passed::default(),
            response_out: Passed {
                bytes: 2,
                digest: Some(Digest::sha256(b"ok")),
            },
        })),
    }
}

#[test]
fn a_line_is_the_same_whether_its_event_was_written_before_its_place_or_with_it() {
    let record = end();
    let mut settled = record.event.clone().settled().unwrap();
    let whole = [&record.to_bytes().unwrap()[..], b"\n"].concat();
    for (seq, at) in [(u64::MAX, u64::MAX), (0, 0), (record.seq, record.at)] {
        // As often as it is tried: the last one counts.
        settled.line(seq, record.prev, at);
    }
    assert_eq!(settled.line(record.seq, record.prev, record.at), whole);
    let longest = settled.line(u64::MAX, record.prev, u64::MAX).to_vec();
    let furthest = Record {
        seq: u64::MAX,
        at: u64::MAX,
        ..record
    };
    assert_eq!(longest, [&furthest.to_bytes().unwrap()[..], b"\n"].concat());
}

#[test]
fn a_record_is_read_back_and_has_one_spelling() {
    let record = end();
    let bytes = record.to_bytes().unwrap();
    assert_eq!(Record::from_bytes(&bytes).unwrap(), record);
    let spaced = String::from_utf8(bytes.clone()).unwrap().replacen(':', ": ", 1);
    assert!(matches!(
        Record::from_bytes(spaced.as_bytes()),
        Err(RecordError::NotCanonical)
    ));
    let later = String::from_utf8(bytes).unwrap().replacen("\"v\":1", "\"v\":2", 1);
    assert!(matches!(
        Record::from_bytes(later.as_bytes()),
        Err(RecordError::Version(2))
    ));
}

proptest::proptest! {
    #[test]
    fn every_fact_is_written_so_that_it_reads_back(numbers in proptest::collection::vec(proptest::num::f64::NORMAL, 1..20)) {
        let facts = serde_json::json!({ "protocol": { "arguments": numbers } });
        let decision = serde_json::json!({
            "v": 1, "seq": 0, "prev": Digest::sha256(b""), "at": 1, "kind": "decision", "id": DecisionId::fresh(),
            "direction": "inbound", "source": {"id": "a"}, "destination": {"id": "b"}, "method": "POST", "path": "/",
            "protocol": "mcp", "verdict": "allow", "mesh_revision": 1, "revision": 1, "facts": {},
        });
        let mut record: Record = serde_json::from_value(decision).unwrap();
        if let Event::Decision(decision) = &mut record.event {
            decision.facts.kept = Arc::new(facts);
        }
        let mut settled = record.event.settled().unwrap();
        let line = settled.line(0, Digest::sha256(b""), 1).strip_suffix(b"\n").unwrap();
        let read = Record::from_bytes(line).unwrap();
        proptest::prop_assert_eq!(read.to_bytes().unwrap(), line);
    }
}
