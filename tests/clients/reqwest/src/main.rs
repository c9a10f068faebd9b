//! reqwest as its documentation says, in one session; no proxy anywhere but in what the environment says. Prints one line
//! of what each step observed.
//!
//!     aip-reqwest-client get|session|h2 URL

use std::env;
use std::error::Error;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, Version};
use serde_json::{Value, json};

type Observed = Result<Value, Box<dyn Error>>;

/// Marks step `step` of `stream` as heard, as `witness.py` does.
fn heard(stream: &str, step: &str) -> std::io::Result<()> {
    match env::var_os("STEPS") {
        Some(steps) => std::fs::write(std::path::Path::new(&steps).join(format!("{stream}.{step}")), []),
        None => Ok(()),
    }
}

fn builder() -> ClientBuilder {
    Client::builder().timeout(Duration::from_secs(30))
}

async fn get(client: &Client, url: &str) -> Observed {
    let got = client.get(url).send().await?;
    let (status, version) = (got.status().as_u16(), format!("{:?}", got.version()));
    let echo: Value = got.error_for_status()?.json().await?;
    Ok(json!({"status": status, "version": version, "path": echo["path"]}))
}

async fn post(client: &Client, base: &str) -> Observed {
    let body = json!({"message": "hello ✓", "parts": [1, 2]});
    let echo: Value = client
        .post(format!("{base}/echo?q=a%20b"))
        .json(&body)
        .send()
        .await?
        .json()
        .await?;
    let sent: Value = serde_json::from_str(echo["body"].as_str().unwrap_or_default())?;
    Ok(json!({"method": echo["method"], "path": echo["path"], "same": sent == body}))
}

/// Event by event, in lockstep with who sends them.
async fn stream(client: &Client, base: &str) -> Observed {
    let mut answer = client
        .get(format!("{base}/events?stream=reqwest&steps=3"))
        .send()
        .await?;
    let (mut text, mut steps) = (String::new(), Vec::new());
    while let Some(bytes) = answer.chunk().await? {
        text.push_str(std::str::from_utf8(&bytes)?);
        while let Some((event, rest)) = text.split_once("\n\n") {
            let step = event.trim_start_matches("data: ").to_owned();
            heard("reqwest", step.trim_start_matches("step "))?;
            text = rest.to_owned();
            steps.push(step);
        }
    }
    Ok(json!(steps))
}

/// A refusal, as a program reads it.
async fn denied(client: &Client, base: &str) -> Observed {
    let answer = client
        .post(format!("{base}/forbidden/x"))
        .json(&json!({}))
        .send()
        .await?;
    let status = answer.status().as_u16();
    let kind = answer.headers()["content-type"].to_str()?.to_owned();
    let problem: Value = answer.json().await?;
    Ok(json!([
        status,
        kind,
        problem["reason"],
        problem["rule"],
        problem["decision_id"]
    ]))
}

async fn session(client: &Client, base: &str) -> Observed {
    Ok(json!({
        "get": get(client, &format!("{base}/one")).await?,
        "post": post(client, base).await?,
        "stream": stream(client, base).await?,
        "denied": denied(client, base).await?,
        "after": get(client, &format!("{base}/two")).await?,
    }))
}

async fn run(what: &str, url: &str) -> Observed {
    match what {
        "get" => get(&builder().build()?, url).await,
        "session" => session(&builder().build()?, url).await,
        // HTTP/2 without TLS, which a client has to be told.
        "h2" => {
            let client = builder().http2_prior_knowledge().build()?;
            let got = get(&client, url).await?;
            assert_eq!(got["version"], format!("{:?}", Version::HTTP_2));
            Ok(got)
        }
        _ => Err(format!("no {what}").into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [what, url] = &args[..] else {
        return Err("aip-reqwest-client get|session|h2 URL".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let observed = runtime
        .block_on(run(what, url))
        .unwrap_or_else(|e| json!({"error": format!("{e:?}")}));
    println!("{observed}");
    Ok(())
}
