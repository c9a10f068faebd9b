//! The agents over real sockets, driven as any HTTP client would.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use demo_agents::http::Client;
use demo_agents::json::Json;

struct Running {
    child: Child,
    address: SocketAddr,
}

impl Running {
    fn start(program: &str, file: &str, env: &[(&str, &str)]) -> Self {
        let declared = format!("{}/agents/{file}", env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(program)
            .arg(declared)
            .env("PORT", "0")
            .env_remove("http_proxy")
            .env_remove("no_proxy")
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        Self { child, address }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Json) {
        let client = Client::default();
        let reply = client
            .send(method, &format!("http://{}{path}", self.address), &[], body.as_bytes())
            .unwrap();
        (
            reply.status,
            Json::parse(&String::from_utf8(reply.body).unwrap()).unwrap(),
        )
    }

    fn call(&self, tool: &str, arguments: &str) -> Json {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}"#
        );
        self.ask("POST", "/mcp", &body).1.get("result").clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn researcher() -> Running {
    Running::start(env!("CARGO_BIN_EXE_demo-researcher"), "researcher.json", &[])
}

#[test]
fn tools_are_those_of_the_declared_file() {
    let agent = researcher();
    let (status, answer) = agent.ask("POST", "/mcp", r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#);
    assert_eq!((status, answer.get("id")), (200, &Json::Number(7.0)));
    let names: Vec<_> = answer
        .get("result")
        .get("tools")
        .items()
        .iter()
        .map(|t| t.get("name").as_str())
        .collect();
    assert_eq!(names, [Some("search"), Some("read")]);
    let found = agent.call("search", r#"{"query":"shore"}"#);
    assert_eq!(found.get("structuredContent").get("results").items().len(), 2);
    let unknown = agent.ask(
        "POST",
        "/mcp",
        r#"{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"x"}}"#,
    );
    assert_eq!(unknown.1.get("error").get("code").as_f64(), Some(-32602.0));
}

#[test]
fn the_access_count_says_what_arrived() {
    let agent = Running::start(env!("CARGO_BIN_EXE_demo-ledger"), "ledger.json", &[]);
    assert_eq!(agent.ask("GET", "/healthz", "").0, 200);
    agent.call("transfer", r#"{"from":"operations","to":"research","amount":100}"#);
    let balance = agent.call("balance", r#"{"account":"research"}"#);
    assert_eq!(balance.get("structuredContent").get("balance").as_f64(), Some(350.0));
    assert_eq!(
        agent
            .call("transfer", r#"{"from":"research","to":"x","amount":351}"#)
            .get("isError"),
        &Json::Bool(true)
    );
    let (_, stats) = agent.ask("GET", "/stats", "");
    assert_eq!(stats.get("requests").get("POST /mcp").as_f64(), Some(3.0));
    assert_eq!(stats.get("tools").get("transfer").as_f64(), Some(2.0));
}

#[test]
fn events_arrive_one_by_one() {
    let agent = researcher();
    let mut parts = Vec::new();
    let url = format!("http://{}/events?count=3", agent.address);
    let reply = Client::default().stream("GET", &url, &[], b"", &mut |part| {
        parts.push(String::from_utf8(part.to_vec()).unwrap());
        true
    });
    assert_eq!(reply.unwrap().header("content-type"), Some("text/event-stream"));
    assert_eq!(parts.len(), 3, "one chunk per event: {parts:?}");
    assert!(parts[2].starts_with("id: 3\n"));
}

#[test]
fn keep_alive_chunked_requests_and_broken_ones_are_served() {
    let agent = researcher();
    let mut stream = TcpStream::connect(agent.address).unwrap();
    let message = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let (first, second) = message.split_at(10);
    for _ in 0..2 {
        let head = "POST /mcp HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        let body = format!(
            "{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
            first.len(),
            second.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        let mut length = 0;
        while reader.read_line(&mut line).unwrap() > 2 {
            if let Some(n) = line.strip_prefix("content-length: ") {
                length = n.trim().parse().unwrap();
            }
            line.clear();
        }
        reader.read_exact(&mut vec![0; length]).unwrap();
    }
    let mut broken = TcpStream::connect(agent.address).unwrap();
    broken.write_all(b"nonsense\r\n\r\n").unwrap();
    let mut answer = String::new();
    broken.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(agent.ask("GET", "/healthz", "").0, 200);
}

#[test]
fn the_planner_goes_through_its_proxy_like_any_client() {
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://aip:secret@{}", proxy.local_addr().unwrap());
    let env = [("HTTP_PROXY", url.as_str()), ("NO_PROXY", "127.0.0.1,localhost")];
    let agent = Running::start(env!("CARGO_BIN_EXE_demo-planner"), "planner.json", &env);
    let seen = std::thread::spawn(move || {
        let (mut stream, _) = proxy.accept().unwrap();
        let mut head = String::new();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).unwrap();
        }
        let body = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}";
        let answer = format!(
            "HTTP/1.1 200 OK\r\nx-seen: yes\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).unwrap();
        head
    });
    let (status, plan) = agent.ask("POST", "/plan", r#"{"goal":"tides"}"#);
    let head = seen.join().unwrap();
    assert!(
        head.starts_with("POST http://researcher.aip.internal/mcp HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("host: researcher.aip.internal\r\n"), "{head}");
    assert!(
        head.contains("proxy-authorization: Basic YWlwOnNlY3JldA==\r\n"),
        "{head}"
    );
    let result = &plan.get("results").items()[0];
    assert_eq!(status, 200);
    let seen = Json::Array(vec!["x-seen".into(), "yes".into()]);
    assert!(result.get("headers").items().contains(&seen), "{result}");
}
