//! Agents that were no end of a hop and recorded that they were.

use super::*;

/// A third agent whose log is read before or after all others, and which recorded a call of the planner's with this hop.
fn third(mesh: &Mesh, hop: HopId, first: bool) -> Agent {
    let name = fresh_name();
    let log = format!("{}{}", if first { "00000000" } else { "ffffffff" }, &name[8..]);
    let mut third = Agent::with_log(mesh.home.path(), "third", &log);
    third.one(hop, Direction::Inbound, &mesh.planner.id, DecisionId::fresh());
    third.checkpoint();
    third
}

fn log_of(agent: &Agent) -> String {
    agent.writer.dir().file_name().unwrap().to_str().unwrap().to_owned()
}

/// The faults' kinds and logs, in the order of kinds' names.
fn named(mesh: &Mesh) -> (Report, Vec<(&'static str, String)>) {
    let report = mesh.verify();
    let mut named: Vec<_> = report.faults.iter().map(|f| (f.kind.as_str(), f.log.clone())).collect();
    named.sort();
    (report, named)
}

#[test]
fn a_third_agents_record_stands_in_for_nobody() {
    for first in [true, false] {
        let mut mesh = Mesh::busy();
        let (hop, callee) = (HopId::fresh(), mesh.researcher.id.clone());
        mesh.planner.one(hop, Direction::Outbound, &callee, DecisionId::fresh());
        mesh.planner.checkpoint();
        let third = third(&mesh, hop, first);
        mesh.researcher.now += 600_000;
        mesh.researcher.checkpoint();
        let (report, named) = named(&mesh);
        let expected = [
            ("missing_at_callee", log_of(&mesh.planner)),
            ("other_callee", log_of(&third)),
        ];
        assert_eq!(named, expected, "{:#?}", report.faults);
        assert_eq!(report.hops.both, 20, "the hop has one end");
        let other = report.faults.iter().find(|f| f.kind == Kind::OtherCallee).unwrap();
        assert!(other.detail.contains(&callee.to_string()), "{}", other.detail);
    }
}

#[test]
fn a_third_agents_record_makes_nobodys_true_one_a_second_use() {
    for first in [true, false] {
        let mut mesh = Mesh::busy();
        let hop = HopId::fresh();
        mesh.at_both(hop, |_, _| {}, |_, _| {});
        mesh.checkpoints();
        let third = third(&mesh, hop, first);
        let (report, named) = named(&mesh);
        assert_eq!(named, [("other_callee", log_of(&third))], "{:#?}", report.faults);
        assert_eq!((report.hops.both, report.hops.agreed), (21, 21));
    }
}

#[test]
fn a_caller_that_uses_one_hop_for_two_agents_is_named_for_it() {
    let mut mesh = Mesh::busy();
    let hop = HopId::fresh();
    mesh.at_both(hop, |_, _| {}, |_, _| {});
    mesh.planner
        .one(hop, Direction::Outbound, &id("third"), DecisionId::fresh());
    mesh.checkpoints();
    let (report, named) = named(&mesh);
    assert_eq!(named, [("hop_reused", log_of(&mesh.planner))], "{:#?}", report.faults);
    assert_eq!(report.hops.agreed, 21);
}

#[test]
fn a_refusal_that_a_third_agent_recorded_is_not_the_callees() {
    let mut mesh = Mesh::busy();
    let (hop, callee, refusal) = (HopId::fresh(), mesh.researcher.id.clone(), DecisionId::fresh());
    mesh.planner
        .recorded(hop, Direction::Outbound, &callee, refusal, |_, end| {
            end.status = 403;
            (end.request_out, end.response_in) = (Passed::default(), Passed { bytes: 5, digest: None });
        });
    mesh.planner.checkpoint();
    mesh.researcher.now += 600_000;
    mesh.researcher.checkpoint();
    let mut third = Agent::new(mesh.home.path(), "third");
    let mut made_up = decision(hop, Direction::Inbound, &third.id, &mesh.planner.id);
    (made_up.id, made_up.hop, made_up.reason) = (refusal, None, "killed".into());
    let mut end = third.end_of(&made_up);
    end.status = 403;
    (end.request_out, end.response_in) = (Passed::default(), Passed::default());
    for event in [Event::Decision(Box::new(made_up)), Event::End(Box::new(end))] {
        third.writer.append(event, third.now).unwrap();
    }
    third.checkpoint();
    assert_eq!(mesh.kinds(), [Kind::MissingAtCallee]);
}

#[test]
fn what_a_log_says_for_another_agent_is_named_and_is_no_end_of_its_hops() {
    let mut mesh = Mesh::busy();
    let hop = HopId::fresh();
    let caller = mesh.planner.id.clone();
    let log = format!("00000000{}", &fresh_name()[8..]);
    let mut third = Agent::with_log(mesh.home.path(), "third", &log);
    let made_up = decision(hop, Direction::Outbound, &caller, &id("nobody"));
    third
        .writer
        .append(Event::Decision(Box::new(made_up)), third.now)
        .unwrap();
    third.checkpoint();
    mesh.at_both(hop, |_, _| {}, |_, _| {});
    mesh.checkpoints();
    let (report, named) = named(&mesh);
    assert_eq!(named, [("agent_differs", log)], "{:#?}", report.faults);
    assert_eq!(report.hops.agreed, 21);
}

#[test]
fn what_a_fault_repeats_of_a_record_is_bounded() {
    let mesh = Mesh::busy();
    let mut third = Agent::new(mesh.home.path(), "third");
    let mut made_up = decision(HopId::fresh(), Direction::Outbound, &third.id, &mesh.planner.id);
    made_up.source.id = "x".repeat(100_000);
    third
        .writer
        .append(Event::Decision(Box::new(made_up)), third.now)
        .unwrap();
    third.checkpoint();
    let found = mesh.verify().faults;
    assert_eq!(found[0].kind, Kind::AgentDiffers, "{found:#?}");
    let detail = &found[0].detail;
    assert!(
        detail.len() < 1_000 && detail.ends_with(&third.id.to_string()),
        "{detail}"
    );
}
