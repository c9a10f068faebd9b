//! How long it takes to find records among many, asked as people ask: over the admin API.

use std::time::{Duration, Instant};

use aip_audit::log::{Options, Writer, fresh_name};
use aip_audit::record::{Direction, Event};

use crate::support::Mesh;
use crate::support::audit::{decision, now};

const RECORDS: u64 = 1_000_000;
const AGENTS: [&str; 4] = ["planner", "researcher", "writer", "ledger"];

/// `cargo test -p aip-control-plane --test mesh query -- --ignored --nocapture` measures it.
#[tokio::test]
#[ignore = "measures: a million records"]
async fn a_million_records_are_asked_for_over_the_admin_api_within_a_second() {
    let mesh = Mesh::dev().await;
    let begins = now() - RECORDS;
    for (nth, agent) in AGENTS.iter().enumerate() {
        let dir = mesh.data.join("audit").join(agent).join(fresh_name());
        let options = Options {
            total_bytes: u64::MAX,
            ..Options::default()
        };
        let (mut writer, _) = Writer::open(&dir, options).unwrap();
        for at in (nth as u64..RECORDS).step_by(AGENTS.len()) {
            let mut event = decision(agent, "researcher", Direction::Outbound, None);
            if let Event::Decision(decision) = &mut event {
                decision.tool = format!("tool-{}", at % 1_000);
                decision.trace = format!("{at:032x}");
                if at % 10 == 0 {
                    decision.verdict = "deny".into();
                }
            }
            writer.append(event, begins + at).unwrap();
        }
        for segment in aip_audit::log::segments(&dir).unwrap() {
            aip_audit::index::rebuild(&dir, segment).unwrap();
        }
    }
    let asked = [
        ("agent", "agent=planner".to_owned(), 500),
        ("verdict", "verdict=deny".to_owned(), 500),
        ("tool", "tool=tool-7".to_owned(), 500),
        ("a tool that is not there", "tool=none".to_owned(), 0),
        (
            "time",
            format!("since={}&until={}", begins + 1_000, begins + 1_100),
            100,
        ),
        ("the oldest trace", format!("trace={:032x}", 1), 1),
    ];
    for (what, query, hits) in asked {
        let started = Instant::now();
        let page = mesh.admin.get(&format!("/v1/audit/records?limit=500&{query}")).await;
        let took = started.elapsed();
        let found = page["items"].as_array().unwrap().len();
        eprintln!("{what}: {found} of {RECORDS} records in {took:?}");
        assert_eq!(found, hits, "{what}");
        assert!(took < Duration::from_secs(1), "{what}: {took:?}");
    }
}
