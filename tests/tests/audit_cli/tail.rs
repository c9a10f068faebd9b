//! `aip audit tail`: what comes up, over lost connections, and when it ends.

use std::process::Stdio;
use std::time::Duration;

use aip_tests::wait;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{Rig, text};

/// The record of a decision, as `tail` shows it.
pub(super) async fn followed(rig: &Rig, decision: &str) -> Value {
    let command = rig
        .mesh
        .aip_command(&["audit", "tail", "--since", "1m", "--output", "json"]);
    let mut tail = tokio::process::Command::from(command);
    tail.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut tail = tail.spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    wait::until("the tail shows it", async || {
        let line = lines.next_line().await.unwrap().expect("it goes on");
        let item: Value = serde_json::from_str(&line).unwrap();
        (item["record"]["id"] == decision).then_some(item)
    })
    .await
}

/// Who follows what comes up, until it is over or nobody reads it any more.
#[tokio::test(flavor = "multi_thread")]
async fn the_tail_ends_where_nothing_is_wanted_and_where_nobody_reads() {
    let rig = Rig::start().await;
    let over = rig.aip(&["audit", "tail", "--until", "1m"]);
    assert_eq!(over.status.code(), Some(2), "{}", text(&over));
    assert!(text(&over).contains("aip audit query --until"), "{}", text(&over));
    let nothing = rig.aip(&["resume", "nosuch"]);
    assert!(text(&nothing).contains("next: `aip kill list`"), "{}", text(&nothing));
    let mut tail = tokio::process::Command::from(rig.mesh.aip_command(&["audit", "tail"]));
    tail.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut tail = tail.spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    wait::until("the tail shows a call", async || {
        rig.denied("close_books", 1).await;
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await;
        line.ok()?.unwrap()
    })
    .await;
    drop(lines);
    let ended = wait::until("it ends with who reads it", async || {
        rig.denied("close_books", 1).await;
        tail.try_wait().unwrap()
    })
    .await;
    assert!(ended.success(), "{ended}");
    let said = tail.wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stderr), "");
}

/// A record that was made while nobody could be told of it is shown once somebody can.
#[tokio::test(flavor = "multi_thread")]
async fn the_tail_goes_on_over_a_restart_of_the_control_plane() {
    let mut rig = Rig::start().await;
    let mut tail = tokio::process::Command::from(rig.mesh.aip_command(&["audit", "tail", "--output", "json"]));
    tail.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut tail = tail.spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut notes = BufReader::new(tail.stderr.take().unwrap()).lines();
    // What was before it follows, it does not show.
    wait::until("the tail shows a call", async || {
        rig.denied("close_books", 1).await;
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await;
        line.ok()?.unwrap()
    })
    .await;
    rig.mesh.control_plane.kill();
    let said = wait::until("it says that it lost the connection", async || {
        notes.next_line().await.unwrap()
    })
    .await;
    assert!(said.contains("trying again"), "{said}");
    let meanwhile = rig.denied("close_books", 1).await;
    rig.mesh.revive().await;
    wait::until("it shows what was recorded meanwhile", async || {
        let line = lines.next_line().await.unwrap().expect("it goes on");
        let item: Value = serde_json::from_str(&line).unwrap();
        (item["record"]["id"] == meanwhile.as_str()).then_some(())
    })
    .await;
    assert!(tail.try_wait().unwrap().is_none(), "and goes on");
}
