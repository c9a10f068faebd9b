//! The agent and the peers, from the configurations in `bench/peers`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::SetUp;
use crate::children::{Child, free_ports, run};
use crate::load::Target;
use crate::meter::Group;

const AGENT: &str = include_str!("../../peers/agent.conf");
const NGINX_OUT: &str = include_str!("../../peers/nginx-out.conf");
const NGINX_IN: &str = include_str!("../../peers/nginx-in.conf");
const ENVOY_OUT: &str = include_str!("../../peers/envoy-out.yaml");
const ENVOY_IN: &str = include_str!("../../peers/envoy-in.yaml");
const CERTS: &str = include_str!("../../peers/certs.sh");
/// Worker threads of an Envoy; the nginx configurations name the same number.
const WORKERS: &str = "2";

/// The agent that all stand in front of.
pub(super) async fn agent(dir: &Path, nginx: &Path) -> anyhow::Result<(Child, SocketAddr)> {
    std::fs::create_dir_all(dir.join("tmp"))?;
    let [port] = free_ports()?;
    let config = write(dir, "agent.conf", AGENT, &[("AGENT", port)])?;
    let mut child = Child::start("agent", &mut nginx_with(nginx, dir, &config), dir)?;
    let addr = local(port);
    child.listening(addr).await?;
    Ok((child, addr))
}

pub(super) fn direct(agent: SocketAddr, group: &Group) -> SetUp {
    SetUp {
        target: target(agent),
        children: Vec::new(),
        groups: vec![group.clone()],
        admin: None,
    }
}

pub(super) async fn nginx(dir: &Path, nginx: &Path, agent: SocketAddr) -> anyhow::Result<SetUp> {
    certificates(dir)?;
    let [outer, inner] = free_ports()?;
    let ports = [("AGENT", agent.port()), ("INNER", inner), ("OUTER", outer)];
    let mut children = Vec::new();
    for (name, text, port) in [("nginx-in", NGINX_IN, inner), ("nginx-out", NGINX_OUT, outer)] {
        let config = write(dir, &format!("{name}.conf"), text, &ports)?;
        let mut child = Child::start(name, &mut nginx_with(nginx, dir, &config), dir)?;
        child.listening(local(port)).await?;
        children.push(child);
    }
    pair(local(outer), children)
}

pub(super) async fn envoy(dir: &Path, envoy: &Path, agent: SocketAddr) -> anyhow::Result<SetUp> {
    certificates(dir)?;
    let envoy = envoy.canonicalize()?;
    let [outer, inner] = free_ports()?;
    let ports = [("AGENT", agent.port()), ("INNER", inner), ("OUTER", outer)];
    let mut children = Vec::new();
    for (name, text, port) in [("envoy-in", ENVOY_IN, inner), ("envoy-out", ENVOY_OUT, outer)] {
        let config = write(dir, &format!("{name}.yaml"), text, &ports)?;
        let mut command = Command::new(&envoy);
        command
            .arg("-c")
            .arg(config)
            .args(["--concurrency", WORKERS, "--disable-hot-restart", "-l", "warning"]);
        let mut child = Child::start(name, &mut command, dir)?;
        child.listening(local(port)).await?;
        children.push(child);
    }
    pair(local(outer), children)
}

fn pair(outer: SocketAddr, children: Vec<Child>) -> anyhow::Result<SetUp> {
    let roots: Vec<u32> = children.iter().map(Child::pid).collect();
    let group = Group::of("pair", &roots)?;
    Ok(SetUp {
        target: target(outer),
        children,
        groups: vec![group],
        admin: None,
    })
}

fn target(addr: SocketAddr) -> Target {
    Target {
        addr,
        path: "/mcp".to_owned(),
        host: "localhost".to_owned(),
        headers: Vec::new(),
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn nginx_with(nginx: &Path, dir: &Path, config: &Path) -> Command {
    let mut command = Command::new(nginx);
    command.arg("-p").arg(dir).arg("-c").arg(config).args(["-e", "stderr"]);
    command
}

/// Both pairs use the same certificates; they are made once.
fn certificates(dir: &Path) -> anyhow::Result<()> {
    if dir.join("b.pem").exists() {
        return Ok(());
    }
    let script = dir.join("certs.sh");
    std::fs::write(&script, CERTS)?;
    run(Command::new("sh").arg(&script).current_dir(dir)).context("certificates for the peers (needs openssl)")
}

/// Writes a configuration with its `@NAME@`s filled in.
fn write(dir: &Path, name: &str, text: &str, ports: &[(&str, u16)]) -> anyhow::Result<PathBuf> {
    let mut text = text.replace("@DIR@", &dir.to_string_lossy());
    for (key, port) in ports {
        text = text.replace(&format!("@{key}@"), &port.to_string());
    }
    let path = dir.join(name);
    std::fs::write(&path, text)?;
    Ok(path)
}
