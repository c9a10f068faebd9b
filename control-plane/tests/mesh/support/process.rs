//! The control plane as a process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use serde_json::Value;

use super::{Admin, eventually};

/// A running process; it ends with the test.
pub struct Process {
    child: Child,
    data: PathBuf,
    run: Value,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program with free ports on `data`.
pub fn command(data: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aip-control-plane"));
    command.env_remove("AIP_DATA_KEY");
    command.args(["--mesh-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.arg("--data").arg(data).args(flags);
    command.stdin(Stdio::null());
    command
}

/// Runs something that ends by itself.
pub async fn ended(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap()
}

impl Process {
    pub async fn start(data: &Path, flags: &[&str]) -> Self {
        let run_file = data.join("run.json");
        let _ = std::fs::remove_file(&run_file);
        let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let child = quiet(&mut command(data, flags));
        let mut process = Self {
            child,
            data: data.to_owned(),
            run: Value::Null,
        };
        process.run = eventually("run.json", async || {
            serde_json::from_slice(&std::fs::read(&run_file).ok()?).ok()
        })
        .await;
        assert_eq!(process.run["pid"].as_u64().unwrap(), u64::from(process.child.id()));
        process
    }

    fn address(&self, field: &str) -> SocketAddr {
        self.run[field].as_str().unwrap().parse().unwrap()
    }

    pub fn mesh(&self) -> SocketAddr {
        self.address("mesh")
    }

    pub fn socket(&self) -> PathBuf {
        self.run["socket"].as_str().unwrap().into()
    }

    /// The first admin token.
    pub fn token(&self) -> String {
        std::fs::read_to_string(self.data.join("admin.jwt")).unwrap()
    }

    /// The first admin, at the TCP port.
    pub fn admin(&self) -> Admin {
        Admin::new(self.address("admin"), self.token())
    }

    /// Bytes of memory that it has.
    pub fn resident(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    /// Asks it to stop.
    pub async fn end(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        eventually("the end", async || self.child.try_wait().unwrap()).await
    }
}
