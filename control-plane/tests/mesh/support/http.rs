//! A small HTTP/1.1 client over hyper: to the admin port, or to its Unix socket.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::body::{Body, to_bytes};
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    Port(SocketAddr),
    Socket(PathBuf),
}

#[derive(Clone)]
pub struct Admin {
    pub place: Place,
    pub token: String,
}

async fn exchange<IO>(io: IO, request: Request<Body>) -> http::Response<Body>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap().map(Body::new)
}

impl Admin {
    pub fn new(address: SocketAddr, token: impl Into<String>) -> Self {
        Self {
            place: Place::Port(address),
            token: token.into(),
        }
    }

    pub fn over(socket: &Path, token: impl Into<String>) -> Self {
        Self {
            place: Place::Socket(socket.to_owned()),
            token: token.into(),
        }
    }

    pub fn with(&self, token: impl Into<String>) -> Self {
        Self {
            token: token.into(),
            ..self.clone()
        }
    }

    pub async fn raw(&self, request: Request<Body>) -> http::Response<Body> {
        match &self.place {
            Place::Port(address) => exchange(TcpStream::connect(address).await.unwrap(), request).await,
            Place::Socket(path) => exchange(UnixStream::connect(path).await.unwrap(), request).await,
        }
    }

    fn host(&self) -> String {
        match &self.place {
            Place::Port(address) => address.to_string(),
            Place::Socket(_) => "localhost".into(),
        }
    }

    pub fn request(&self, method: &str, path: &str, body: &Value) -> http::request::Builder {
        let builder = Request::builder().method(method).uri(path).header("host", self.host());
        let builder = if body.is_null() {
            builder
        } else {
            builder.header("content-type", "application/json")
        };
        if self.token.is_empty() {
            builder
        } else {
            builder.header("authorization", format!("Bearer {}", self.token))
        }
    }

    pub async fn send(&self, request: Request<Body>) -> (StatusCode, Value) {
        let response = self.raw(request).await;
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 16 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub async fn call(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let builder = self.request(method, path, &body);
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        self.send(builder.body(body).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ok("GET", path, Value::Null).await
    }

    pub async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.call(method, path, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        answer
    }

    pub async fn refused(&self, method: &str, path: &str, body: Value) -> (u16, String) {
        let (status, answer) = self.call(method, path, body).await;
        assert!(!status.is_success(), "{method} {path} was not refused: {answer}");
        (status.as_u16(), super::reason(&answer).to_owned())
    }
}
