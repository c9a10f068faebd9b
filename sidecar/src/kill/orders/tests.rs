use super::*;

fn order(scope: Scope, mode: Mode, expires: Option<u64>) -> Order {
    Order {
        id: uuid::Uuid::now_v7().to_string(),
        scope,
        mode,
        reason: "a test".into(),
        issued_by: vec!["ann".into()],
        issued_at: 1,
        expires,
    }
}

fn orders(list: Vec<Order>) -> Orders {
    let mut set = KillSet::empty("aip.internal".parse().unwrap(), 1, 1);
    set.orders = list;
    Orders::of(&set)
}

fn name(text: &str) -> AgentName {
    text.parse().unwrap()
}

fn labels(key: &str, value: &str) -> Labels {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn bare(name: &AgentName) -> Named<'_> {
    Named {
        name,
        registered: None,
        certified: None,
    }
}

#[test]
fn an_agent_is_meant_by_name_by_label_and_with_the_whole_mesh() {
    let (ann, bob, gold) = (name("ann"), name("bob"), labels("tier", "gold"));
    let by_name = orders(vec![order(Scope::Agent { agent: ann.clone() }, Mode::Kill, None)]);
    assert!(by_name.of_agent(bare(&ann), 1).is_some() && by_name.of_agent(bare(&bob), 1).is_none());
    let scope = Scope::Selector { labels: gold.clone() };
    let by_label = orders(vec![order(scope, Mode::Kill, None)]);
    assert!(by_label.of_agent(bare(&ann), 1).is_none());
    for (registered, certified) in [(Some(&gold), None), (None, Some(&gold))] {
        let ann = Named {
            name: &ann,
            registered,
            certified,
        };
        assert!(
            by_label.of_agent(ann, 1).is_some(),
            "either the registry's or the certificate's"
        );
    }
    let all = orders(vec![order(Scope::Mesh {}, Mode::Pause, None)]);
    assert!(all.of_agent(bare(&bob), 1).is_some());
}

#[test]
fn the_strictest_counts_and_a_pause_ends_by_itself() {
    let ann = name("ann");
    let scope = || Scope::Agent { agent: name("ann") };
    let both = orders(vec![
        order(scope(), Mode::Pause, Some(10)),
        order(scope(), Mode::Pause, Some(20)),
        order(Scope::Mesh {}, Mode::Kill, None),
    ]);
    assert_eq!(both.of_agent(bare(&ann), 1).unwrap().mode, Mode::Kill);
    let pauses = orders(both.all()[..2].to_vec());
    assert_eq!(pauses.of_agent(bare(&ann), 9).unwrap().expires, Some(20));
    assert!(pauses.of_agent(bare(&ann), 19).is_some() && pauses.of_agent(bare(&ann), 20).is_none());
}

#[test]
fn a_tool_that_can_not_be_established_may_be_the_one_that_is_stopped() {
    let (ann, bob) = (name("ann"), name("bob"));
    let scope = Scope::Tool {
        agent: Some(ann.clone()),
        tool: "wipe".into(),
    };
    let stopped = orders(vec![order(scope, Mode::Kill, None)]);
    let none = Fact::Known(String::new());
    let called = |tool: Fact<String>, agent: &AgentName| stopped.of_tool(agent, [&tool, &none], 1).is_some();
    assert!(called(Fact::Known("wipe".into()), &ann) && !called(Fact::Known("read".into()), &ann));
    assert!(called(Fact::Unestablished("batch"), &ann) && !called(Fact::Known("wipe".into()), &bob));
    assert!(stopped.names_tools_of(&ann, 1) && !stopped.names_tools_of(&bob, 1));
}

#[test]
fn a_pair_has_a_direction() {
    let (ann, bob) = (name("ann"), name("bob"));
    let scope = Scope::Pair {
        source: ann.clone(),
        destination: bob.clone(),
    };
    let pair = orders(vec![order(scope, Mode::Kill, None)]);
    assert!(pair.of_pair(&ann, &bob, 1).is_some() && pair.of_pair(&bob, &ann, 1).is_none());
    assert!(pair.of_agent(bare(&ann), 1).is_none());
}
