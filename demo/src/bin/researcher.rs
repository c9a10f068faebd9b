//! Looks things up in its documents, and reports its progress as a stream of events.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use demo_agents::agent::{Agent, Work, run};
use demo_agents::http::{Request, Response};
use demo_agents::json::Json;

/// Pause between two events: long enough that a proxy that buffers would show.
const PAUSE: Duration = Duration::from_millis(150);
/// Events of a stream that names no count, and the most that one may ask for (ten minutes).
const EVENTS: (u32, u32) = (20, 4_000);

struct Researcher;

impl Work for Researcher {
    fn tool(&self, agent: &Agent, name: &str, arguments: &Json) -> Result<Json, String> {
        let documents = agent.declared.get("documents").items();
        let text = |d: &Json, key: &str| d.get(key).as_str().unwrap_or_default().to_owned();
        match name {
            "search" => {
                let query = arguments
                    .get("query")
                    .as_str()
                    .ok_or("search needs a query")?
                    .to_lowercase();
                let found = documents.iter().filter(|d| {
                    let all = format!("{} {}", text(d, "title"), text(d, "text")).to_lowercase();
                    query.split_whitespace().any(|word| all.contains(word))
                });
                let titles: Vec<Json> = found.map(|d| d.get("title").clone()).collect();
                Ok(Json::object([("query", query.into()), ("results", titles.into())]))
            }
            "read" => {
                let title = arguments.get("title").as_str().ok_or("read needs a title")?;
                let found = documents.iter().find(|d| d.get("title").as_str() == Some(title));
                found.cloned().ok_or_else(|| format!("no document is titled {title:?}"))
            }
            other => Err(format!("{other} is declared but not built")),
        }
    }

    fn route(&self, _agent: &Agent, request: &Request) -> Option<Response> {
        if request.method != "GET" || request.path != "/events" {
            return None;
        }
        let asked = request.param("count").and_then(|c| c.parse().ok()).unwrap_or(EVENTS.0);
        let count = asked.min(EVENTS.1);
        Some(Response::stream("text/event-stream", move |out| {
            for n in 1..=count {
                write_event(out, n)?;
                if n < count {
                    std::thread::sleep(PAUSE);
                }
            }
            Ok(())
        }))
    }
}

fn write_event(out: &mut dyn Write, n: u32) -> std::io::Result<()> {
    // One write, so that one event is one chunk.
    out.write_all(format!("id: {n}\nevent: progress\ndata: {{\"step\":{n}}}\n\n").as_bytes())
}

fn main() -> ExitCode {
    run(Researcher)
}
