use aip_api::resource::MeshMode;

use super::*;

async fn ledger(dir: &Path) -> Ledger {
    let ca = crate::testing::mesh(MeshMode::Dev).await.ca;
    let (ledger, writing) = Ledger::open(dir, ca).await.unwrap();
    tokio::spawn(writing.run());
    ledger
}

fn finding(agent: &str, n: u64) -> Finding {
    Finding {
        at: n,
        agent: agent.parse().unwrap(),
        log: format!("{agent}-{n}"),
        reason: "checkpoint_fork".into(),
        detail: String::new(),
        statement: String::new(),
        chain: Vec::new(),
        against: None,
    }
}

#[tokio::test]
async fn one_agent_keeps_no_other_agents_evidence_from_being_kept() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = ledger(dir.path()).await;
    for n in 0..MAX_FINDINGS_EACH + 20 {
        ledger.broken(finding("liar", n)).await.unwrap();
    }
    ledger.broken(finding("other", 1)).await.unwrap();
    let kept = ledger.findings("", 1_000).await.unwrap();
    let of = |agent: &str| {
        kept.iter()
            .filter(|(_, finding)| finding.agent.as_str() == agent)
            .count()
    };
    assert_eq!((of("liar") as u64, of("other")), (MAX_FINDINGS_EACH, 1));
    let count = ledger.findings_of(&"liar".parse().unwrap()).await.unwrap();
    assert_eq!(count, MAX_FINDINGS_EACH + 20, "all are counted");
    let last = format!("liar-{}", MAX_FINDINGS_EACH + 19);
    let broken = ledger.log(&last).await.unwrap().unwrap().broken;
    assert!(broken.is_some(), "and nothing more of any of these logs is taken");
}

fn mismatch(caller: &str, callee: &str, n: usize) -> Mismatch {
    Mismatch {
        at: n as u64,
        hop: format!("{caller}-{callee}-{n}"),
        caller: caller.parse().unwrap(),
        callee: callee.parse().unwrap(),
        differs: vec!["status".into()],
        caller_decision: String::new(),
        callee_decision: String::new(),
    }
}

#[tokio::test]
async fn two_agents_that_contradict_each_other_push_out_no_mismatch_but_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = ledger(dir.path()).await;
    let keep = async |mismatch: Mismatch| {
        let sent = ledger.commands.send(Command::Mismatch(Box::new(mismatch))).await;
        assert!(sent.is_ok());
    };
    keep(mismatch("a", "victim", 0)).await;
    for n in 0..2 * MAX_MISMATCHES_EACH {
        keep(mismatch("a", "b", n)).await;
    }
    keep(mismatch("b", "a", 0)).await;
    // What is asked after them is answered after them.
    ledger.broken(finding("last", 0)).await.unwrap();
    let kept = ledger.mismatches("", 1_000).await.unwrap();
    let hops: Vec<&str> = kept.iter().map(|(_, mismatch)| mismatch.hop.as_str()).collect();
    assert_eq!(hops.len(), MAX_MISMATCHES_EACH + 2);
    assert_eq!(
        (hops[0], hops[1], hops[hops.len() - 1]),
        ("a-victim-0", format!("a-b-{MAX_MISMATCHES_EACH}").as_str(), "b-a-0")
    );
}
