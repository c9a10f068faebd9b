//! What the admin API says of orders, revisions and logs, noted as it says it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aip_tests::process::Admin;
use http::Method;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::history::{Fact, Recorder};
use crate::members::member;

/// Between two rounds of questions.
const LOOK: Duration = Duration::from_millis(150);
/// Every so many rounds, which logs there are.
const LOGS: u64 = 10;

/// An order to look after.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) order: String,
    pub(crate) term: u64,
    pub(crate) epoch: u64,
}

/// What is asked about.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) orders: Vec<Given>,
    pub(crate) revisions: Vec<u64>,
}

/// Asks until this is dropped.
pub(crate) struct Watch {
    pub(crate) asked: Arc<Mutex<Asked>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    pub(crate) fn begin(admin: Admin, recorder: Recorder) -> Self {
        let asked: Arc<Mutex<Asked>> = Arc::default();
        let looker = Looker {
            admin,
            recorder,
            known: HashSet::new(),
        };
        let task = tokio::spawn(looker.run(asked.clone()));
        Self { asked, task }
    }
}

struct Looker {
    admin: Admin,
    recorder: Recorder,
    /// What is noted is not noted again: the first time is what counts.
    known: HashSet<String>,
}

impl Looker {
    async fn run(mut self, asked: Arc<Mutex<Asked>>) {
        for round in 0_u64.. {
            let (orders, revisions) = {
                let asked = asked.lock().unwrap();
                (asked.orders.clone(), asked.revisions.clone())
            };
            for given in orders {
                self.progress(&given).await;
            }
            for revision in revisions {
                self.acks(revision).await;
            }
            if round % LOGS == 0 {
                self.logs().await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// None while the control plane is away.
    async fn get(&self, path: &str) -> Option<Value> {
        let answer = self.admin.attempt(Method::GET, path, None).await.ok()?;
        serde_json::from_slice(&answer.body).ok()
    }

    fn note(&mut self, fact: Fact) {
        if self.known.insert(format!("{fact:?}")) {
            self.recorder.note(fact);
        }
    }

    async fn progress(&mut self, given: &Given) {
        let (term, epoch) = (given.term, given.epoch);
        let path = format!("/v1/kills/progress?term={term}&epoch={epoch}&wait_ms=0");
        let Some(progress) = self.get(&path).await else { return };
        let enforced = progress["enforced"].as_array().into_iter().flatten();
        for by in enforced.filter_map(|one| member(one["sidecar"].as_str()?)) {
            let order = given.order.clone();
            self.note(Fact::Enforced { order, by });
        }
    }

    async fn acks(&mut self, revision: u64) {
        let Some(acks) = self.get(&format!("/v1/revisions/{revision}/acks")).await else {
            return;
        };
        let acked = acks["acked"].as_array().into_iter().flatten();
        for by in acked.filter_map(|one| member(one.as_str()?)) {
            self.note(Fact::Holds { revision, by });
        }
    }

    async fn logs(&mut self) {
        let Some(page) = self.get("/v1/audit/logs?limit=500").await else {
            return;
        };
        for shown in page["items"].as_array().into_iter().flatten() {
            let log = shown["log"].as_str().unwrap_or_default().to_owned();
            if let Some(records) = shown["checkpoint"]["size"].as_u64() {
                self.note(Fact::Signed { log, records });
            }
        }
    }
}
