//! What the three agents share: the declared file, the access count, start-up.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use crate::http::{Request, Response, serve};
use crate::json::Json;
use crate::mcp;

/// Distinct keys of an access count; what comes after is counted as `other`.
const MAX_COUNTED: usize = 256;

/// A running agent.
pub struct Agent {
    /// Its name, from the declared file.
    pub name: String,
    /// The declared file: its tools, prompts and whatever else it works with.
    pub declared: Json,
    paths: Mutex<BTreeMap<String, u64>>,
    tools: Mutex<BTreeMap<String, u64>>,
}

fn count(counts: &Mutex<BTreeMap<String, u64>>, key: String) {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let known = counts.len() < MAX_COUNTED || counts.contains_key(&key);
    *counts.entry(if known { key } else { "other".into() }).or_default() += 1;
}

fn counted(counts: &Mutex<BTreeMap<String, u64>>) -> Json {
    let counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    // Exact up to 2^53, far past what a demo counts.
    Json::Object(
        counts
            .iter()
            .map(|(k, n)| (k.clone(), Json::Number(*n as f64)))
            .collect(),
    )
}

impl Agent {
    /// An agent with this declared file.
    ///
    /// # Errors
    /// The file is not JSON, or names no agent.
    pub fn new(declared: &str) -> Result<Self, String> {
        let declared = Json::parse(declared)?;
        let name = declared
            .get("name")
            .as_str()
            .ok_or("the file has no \"name\"")?
            .to_owned();
        Ok(Self {
            name,
            declared,
            paths: Mutex::default(),
            tools: Mutex::default(),
        })
    }

    /// Whether the declared file lists this tool.
    pub fn declares_tool(&self, name: &str) -> bool {
        self.declared
            .get("tools")
            .items()
            .iter()
            .any(|t| t.get("name").as_str() == Some(name))
    }

    pub(crate) fn count_tool(&self, name: &str) {
        count(&self.tools, name.to_owned());
    }

    /// Counts a request and answers what all agents answer; `None` for what only this agent knows.
    pub fn common(&self, request: &Request) -> Option<Response> {
        count(&self.paths, format!("{} {}", request.method, request.path));
        let body = match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/healthz") => Json::object([("status", "ok".into()), ("agent", self.name.as_str().into())]),
            ("GET", "/stats") => Json::object([("requests", counted(&self.paths)), ("tools", counted(&self.tools))]),
            _ => return None,
        };
        Some(Response::json(200, &body))
    }
}

/// What one agent adds to the common part.
pub trait Work: Send + Sync + 'static {
    /// Runs one of the declared tools.
    ///
    /// # Errors
    /// What the caller did wrong.
    fn tool(&self, agent: &Agent, name: &str, arguments: &Json) -> Result<Json, String>;

    /// Answers a request to a path of its own.
    fn route(&self, _agent: &Agent, _request: &Request) -> Option<Response> {
        None
    }
}

/// Runs an agent: `PORT` says where, the first argument names the declared file.
pub fn run(work: impl Work) -> ExitCode {
    match start(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn start(work: impl Work) -> Result<(), String> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: PORT=<port> <program> <tools-and-prompts.json>")?;
    let declared = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let agent = Arc::new(Agent::new(&declared).map_err(|e| format!("{path}: {e}"))?);
    let port = std::env::var("PORT").unwrap_or_else(|_| "0".into());
    let port: u16 = port.parse().map_err(|_| format!("PORT={port} is not a port"))?;
    let listener = TcpListener::bind(("127.0.0.1", port)).map_err(|e| format!("port {port}: {e}"))?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    println!("{} listens on {address}", agent.name);
    serve(listener, move |request| {
        if let Some(response) = agent.common(request) {
            return response;
        }
        if request.path == "/mcp" {
            return mcp::answer(&agent, request, |name, arguments| work.tool(&agent, name, arguments));
        }
        work.route(&agent, request)
            .unwrap_or_else(|| Response::error(404, "there is nothing at this path"))
    })
    .map_err(|e| e.to_string())
}
