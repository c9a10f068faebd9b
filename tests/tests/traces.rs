//! Traces: one over three hops at a real OTLP receiver, and a receiver that is no hindrance when it is none.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aip_audit::log::{Reader, name_of};
use aip_audit::record::{Decision, Event};
use aip_tests::agent::Agent;
use aip_tests::collector::{Collector, Received};
use aip_tests::process::{Mesh, Record, Sidecar, SidecarSpec};
use aip_tests::{http as wire, wait};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::Signal;
use serde_json::json;

const CARRIED: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// An agent that, while it answers, calls the next one through its own sidecar, and hands the trace on as instrumented
/// agents do.
#[derive(Clone)]
struct Relay {
    address: SocketAddr,
    /// Its sidecar's outbound port, once that listens.
    outbound: Arc<OnceLock<SocketAddr>>,
}

impl Relay {
    async fn to(next: &'static str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self {
            address: listener.local_addr().unwrap(),
            outbound: Arc::default(),
        };
        let serving = relay.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let relay = serving.clone();
                let service = hyper::service::service_fn(move |request| {
                    let relay = relay.clone();
                    async move { Ok::<_, Infallible>(relay.answer(next, request).await) }
                });
                tokio::spawn(async move {
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(tcp), service)
                        .await;
                });
            }
        });
        relay
    }

    async fn answer(&self, next: &str, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path_and_query().unwrap();
        let mut onwards = Request::get(format!("http://{next}.aip.internal{path}"));
        onwards = onwards.header("host", format!("{next}.aip.internal"));
        for name in ["traceparent", "tracestate"] {
            if let Some(value) = request.headers().get(name) {
                onwards = onwards.header(name, value);
            }
        }
        let outbound = *self
            .outbound
            .get()
            .expect("its sidecar listens before anybody calls it");
        let answer = wire::send(outbound, onwards.body(Full::default()).unwrap()).await;
        let (status, body) = match answer {
            Ok(answer) => (answer.status, answer.body),
            Err(why) => (StatusCode::BAD_GATEWAY, why.into()),
        };
        Response::builder().status(status).body(Full::new(body)).unwrap()
    }
}

/// The settings that a sidecar takes from the variables of every instrumented program.
async fn start(mesh: &Mesh, name: &str, agent: SocketAddr, variables: &[(&str, String)]) -> Sidecar {
    let spec: SidecarSpec = mesh.spec(json!({"name": name}), agent).await;
    let dir = mesh.dir(name);
    let mut command = Sidecar::command(&spec, &dir);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let sidecar = Sidecar::start_as(spec, &dir, &command).await;
    sidecar.ready().await;
    sidecar
}

/// planner → researcher → ledger → bank: three hops.
struct Chain {
    planner: Sidecar,
    sidecars: Vec<Sidecar>,
    bank: Agent,
    _mesh: Mesh,
}

impl Chain {
    async fn start(variables: &[(&str, String)]) -> Self {
        let (mesh, bank) = (Mesh::start().await, Agent::start());
        let (researcher, ledger) = (Relay::to("ledger").await, Relay::to("bank").await);
        let mut sidecars = Vec::new();
        for (name, agent) in [
            ("researcher", researcher.address),
            ("ledger", ledger.address),
            ("bank", bank.address),
        ] {
            sidecars.push(start(&mesh, name, agent, variables).await);
        }
        researcher.outbound.set(sidecars[0].outbound).unwrap();
        ledger.outbound.set(sidecars[1].outbound).unwrap();
        let chain = Self {
            planner: start(&mesh, "planner", bank.address, variables).await,
            sidecars,
            bank,
            _mesh: mesh,
        };
        // Every sidecar knows the next one by now; unsampled, so that nobody hears of it.
        wait::until_ok("a call gets through all hops", async || {
            let trace = format!("00-{}-00f067aa0ba902b7-00", "f".repeat(32));
            let answer = chain.call("/first", &[("traceparent", trace)]).await;
            (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
        })
        .await;
        chain
    }

    async fn call(&self, path: &str, headers: &[(&str, String)]) -> wire::Answer {
        let mut request = Request::get(format!("http://researcher.aip.internal{path}"));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        self.planner.call(request, "").await
    }

    fn all(&self) -> impl Iterator<Item = &Sidecar> {
        [&self.planner].into_iter().chain(&self.sidecars)
    }

    /// The lines of all access logs about this path, by decision.
    fn lines(&self, path: &str) -> BTreeMap<String, Record> {
        let lines = self.all().flat_map(|sidecar| sidecar.records().0);
        let of = lines.filter(|line| line.path() == path);
        of.map(|line| (line.text("decision").to_owned(), line)).collect()
    }

    /// The decisions in all audit logs about this path.
    fn decisions(&self, path: &str) -> BTreeMap<String, Decision> {
        let dirs = self
            .all()
            .flat_map(|sidecar| std::fs::read_dir(sidecar.dir.join("data/audit")).unwrap());
        let logs = dirs
            .map(|entry| entry.unwrap().path())
            .filter(|path| name_of(path).is_ok());
        let entries = logs.flat_map(|log| Reader::open(&log).unwrap());
        let decisions = entries.filter_map(|entry| match entry.unwrap().record.event {
            Event::Decision(decision) if decision.path == path => Some(*decision),
            _ => None,
        });
        decisions.map(|decision| (decision.id.to_string(), decision)).collect()
    }
}

/// The spans in the order in which each is the parent of the next.
fn in_order(mut spans: Vec<Received>, first_parent: &str) -> Vec<Received> {
    let (mut parent, mut ordered) = (first_parent.to_owned(), Vec::new());
    while let Some(next) = spans.iter().position(|span| span.parent() == parent) {
        ordered.push(spans.swap_remove(next));
        parent = ordered.last().unwrap().id();
    }
    assert!(spans.is_empty(), "not of the one chain: {spans:#?}");
    ordered
}

async fn six_spans(collector: &Collector, path: &str) -> Vec<Received> {
    let of = |span: &Received| span.text("url.path") == path || span.text("url.full").ends_with(path);
    wait::until_ok("six spans arrive", async || {
        let spans: Vec<_> = collector.received().into_iter().filter(of).collect();
        if spans.len() == 6 {
            Ok(spans)
        } else {
            Err(format!("{spans:#?}"))
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hops_are_one_trace_of_six_spans_whose_ids_are_in_every_record() {
    let collector = Collector::start().await;
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address)),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush".to_owned()),
    ];
    let chain = Chain::start(&variables).await;

    assert_eq!(chain.call("/begun?secret=hunter2", &[]).await.status, 200);
    let spans = in_order(six_spans(&collector, "/begun").await, "");
    assert_eq!(
        spans.iter().map(Received::trace).collect::<BTreeSet<_>>().len(),
        1,
        "one trace"
    );
    let ends: Vec<_> = spans
        .iter()
        .map(|s| (s.service.as_str(), s.text("aip.direction")))
        .collect();
    let expected = [
        ("planner", "outbound"),
        ("researcher", "inbound"),
        ("researcher", "outbound"),
        ("ledger", "inbound"),
        ("ledger", "outbound"),
        ("bank", "inbound"),
    ];
    assert_eq!(ends, expected.map(|(service, end)| (service, end.to_owned())));
    say_what_the_records_say(&chain, &spans);
    // The last agent sees the last span as its parent.
    let seen = chain.bank.only("/begun");
    let (trace, parent) = (spans[5].trace(), spans[5].id());
    assert_eq!(seen.header("traceparent"), format!("00-{trace}-{parent}-01"));
    let config = chain.planner.look("/config").await.text();
    assert!(
        config.contains("parentbased_always_on") && !config.contains("hush"),
        "{config}"
    );
    let sent = wait::until("it is counted", async || {
        let sent = chain.planner.metric("aip_spans_exported_total", &[]).await;
        (sent > 0.0).then_some(sent)
    });
    assert_eq!(sent.await, 1.0);

    a_trace_that_comes_in_goes_on(&chain, &collector).await;
    what_others_choose_makes_no_long_span(&chain, &collector).await;
}

/// A host may be as long as a head; a span of it is not.
async fn what_others_choose_makes_no_long_span(chain: &Chain, collector: &Collector) {
    let host = format!("{}.example", "a".repeat(20_000));
    let asked = Request::get(format!("http://{host}/long"));
    assert_ne!(chain.planner.call(asked, "").await.status, 200);
    let span = wait::until("its span arrives", async || {
        let of = |span: &Received| span.text("url.full").ends_with("/long");
        collector.received().into_iter().find(of)
    })
    .await;
    for name in ["aip.destination", "server.address"] {
        assert_eq!(span.text(name), host[..255], "{name}");
    }
    assert!(span.text("url.full").len() < 512);
}

/// Each span has the ids of one line of the access log and of one decision in the audit, and no more of the request.
fn say_what_the_records_say(chain: &Chain, spans: &[Received]) {
    let (lines, decisions) = (chain.lines("/begun"), chain.decisions("/begun"));
    assert_eq!((lines.len(), decisions.len()), (6, 6));
    for span in spans {
        let (line, decision) = (
            &lines[&span.text("aip.decision")],
            &decisions[&span.text("aip.decision")],
        );
        assert_eq!((line.text("trace"), line.text("span")), (&*span.trace(), &*span.id()));
        assert_eq!(line.text("parent"), span.parent());
        assert_eq!((&decision.trace, line.hop()), (&span.trace(), &*span.text("aip.hop")));
        assert_eq!(decision.hop.unwrap().to_string(), span.text("aip.hop"));
        let said = [
            "aip.verdict",
            "http.request.method",
            "http.response.status_code",
            "aip.end",
            "error.type",
        ];
        assert_eq!(
            said.map(|name| span.text(name)),
            ["allow", "GET", "200", "complete", ""]
        );
        assert!(span.span.end_time_unix_nano >= span.span.start_time_unix_nano);
        assert_eq!(span.authorization, "Bearer hush");
        assert!(!format!("{:?}", span.span).contains("hunter2"), "no query goes out");
    }
}

/// A caller's own trace: its state reaches the last agent, and whoever asked not to be sent is not.
async fn a_trace_that_comes_in_goes_on(chain: &Chain, collector: &Collector) {
    let state = ("tracestate", "vendor=opaque".to_owned());
    let unsampled = format!("00-{CARRIED}-00f067aa0ba902b7-00");
    let headers = [("traceparent", unsampled), state.clone()];
    assert_eq!(chain.call("/unsampled", &headers).await.status, 200);
    assert!(chain.bank.only("/unsampled").header("traceparent").ends_with("-00"));
    let sampled = format!("00-{CARRIED}-00f067aa0ba902b7-01");
    let headers = [("traceparent", sampled), state];
    assert_eq!(chain.call("/carried", &headers).await.status, 200);
    let spans = in_order(six_spans(collector, "/carried").await, "00f067aa0ba902b7");
    assert!(spans.iter().all(|span| span.trace() == CARRIED));
    assert_eq!(chain.bank.only("/carried").header("tracestate"), "vendor=opaque");
    // Sidecars send in order: what was not sent before these will not come.
    assert_eq!(collector.received().len(), 12, "{:#?}", collector.received());
    let lines = chain.lines("/unsampled");
    assert_eq!(lines.len(), 6, "the log has it all the same");
    assert!(lines.values().all(|line| line.text("trace") == CARRIED));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_changes_nothing_and_what_it_does_not_take_is_counted() {
    // Takes connections, by the system's queue, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let variables = [
        ("AIP_SIDECAR_OTLP_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "200".to_owned()),
    ];
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let mut caller = start(&mesh, "caller", agent.address, &variables).await;
    let callee = start(&mesh, "callee", agent.address, &variables).await;
    wait::until_ok("a call gets through", async || {
        let answer = caller.get("http://callee.aip.internal/work").await;
        (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
    })
    .await;
    for sidecar in [&caller, &callee] {
        wait::until("what was not taken is counted", async || {
            let dropped = sidecar.metric("aip_spans_dropped_total", &["collector"]).await;
            (dropped > 0.0).then_some(())
        })
        .await;
        assert_eq!(sidecar.metric("aip_spans_exported_total", &[]).await, 0.0);
    }
    for _ in 0..20 {
        assert_eq!(caller.get("http://callee.aip.internal/work").await.status, 200);
    }
    // A drain waits for what is in flight up to its deadline, and for a collector for two seconds at most.
    caller.process.signal(Signal::TERM);
    let ended = tokio::time::timeout(Duration::from_secs(30), caller.process.end()).await;
    assert!(ended.expect("it ends").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_would_be_spoken_to_in_plain_text_elsewhere_is_refused_at_the_start() {
    let mesh = Mesh::start().await;
    let spec = mesh
        .spec(json!({"name": "caller"}), "127.0.0.1:1".parse().unwrap())
        .await;
    let mut command = Sidecar::command(&spec, &mesh.dir("caller"));
    command.args(["--otlp-endpoint", "http://collector.example:4317"]);
    let (said, code) = aip_tests::process::ended_badly(command).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("--otlp-endpoint") && said.contains("--otlp-insecure"),
        "{said}"
    );
}
