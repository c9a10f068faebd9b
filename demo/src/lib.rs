//! Three small agents, as a team might have written them before it had heard of AIP: plain HTTP/1.1, MCP-shaped
//! JSON-RPC, the usual proxy variables, and nothing else. Std only, and no AIP code.
//!
//! | module | what |
//! |---|---|
//! | [`json`] | a JSON value, its parser and printer |
//! | [`http`] | a threaded HTTP/1.1 server and a client that honours `HTTP_PROXY` |
//! | [`mcp`] | `initialize`, `tools/list`, `tools/call` over an agent's declared tools |
//! | [`agent`] | what the three programs share: the declared file, the access count, start-up |

pub mod agent;
pub mod http;
pub mod json;
pub mod mcp;
