//! What is run, what of it is measured, and where its files lie.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Component, Path, PathBuf};

use aip_runtime::files::{DirLock, lock_dir};

use super::Run;
use crate::exit::{Exit, Failure};
use crate::home::{Home, private_dir};
use crate::{process, secret};

/// Random bytes in the name of a run.
const RUN_BYTES: usize = 16;

/// Everything that is known before anything is started.
#[derive(Debug)]
pub(super) struct Plan {
    /// Held for as long as the agent runs: one `aip run` per name and home.
    pub(super) _lock: DirLock,
    /// The agent's directory below the home.
    pub(super) dir: PathBuf,
    /// Where the command serves, if it does.
    pub(super) agent: Option<SocketAddr>,
    /// Directory below which everything measured lies.
    pub(super) root: PathBuf,
    /// Code, relative to the root.
    pub(super) code: Vec<String>,
    /// Configuration, relative to the root.
    pub(super) config: Vec<String>,
    /// The program that runs.
    pub(super) executable: PathBuf,
    /// Which run of the agent this is: another one each time.
    pub(super) id: String,
}

/// Where the agent listens, if it does.
fn address_of_agent(run: &Run) -> Result<Option<SocketAddr>, Failure> {
    if run.no_serve {
        return Ok(None);
    }
    let port = run.port.map_or_else(free_port, untaken)?;
    Ok(Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)))
}

impl Plan {
    pub(super) fn make(run: &Run, home: &Home) -> Result<Self, Failure> {
        let dir = home.agent(&run.name);
        private_dir(home.path())?;
        private_dir(&dir)?;
        let lock = lock_dir(&dir).map_err(|e| {
            Failure::new(Exit::Failed, format!("agent {} can't be run from here", run.name))
                .why(e.to_string())
                .next("is another `aip run` of this name running? Use another --name or another --home")
        })?;
        for sub in ["data", "runtime"] {
            private_dir(&dir.join(sub))?;
        }
        let here = std::env::current_dir()
            .and_then(std::fs::canonicalize)
            .map_err(|e| Failure::new(Exit::Failed, "the working directory can't be read").why(e.to_string()))?;
        let (program, arguments) = run
            .command
            .split_first()
            .ok_or_else(|| Failure::new(Exit::Usage, "there is no command").next("aip run --name NAME -- CMD…"))?;
        let executable = executable(program)?;
        let files = file_arguments(&here, arguments);
        let root = match &run.root {
            Some(root) => std::fs::canonicalize(root).map_err(|e| {
                Failure::new(Exit::Usage, format!("--root {} can't be used", root.display())).why(e.to_string())
            })?,
            None => files.iter().fold(here.clone(), |root, file| common(&root, file)),
        };
        let below = |path: &Path| {
            path.strip_prefix(&root)
                .map(|p| p.to_string_lossy().into_owned())
                .map_err(|_| {
                    Failure::new(
                        Exit::Usage,
                        format!("{} lies outside the measured root", path.display()),
                    )
                    .next(format!("pass a --root that holds it; it is {} now", root.display()))
                })
        };
        let mut code = files.iter().map(|f| below(f)).collect::<Result<Vec<_>, _>>()?;
        for glob in &run.code {
            code.push(below(&here.join(glob))?);
        }
        let config = run
            .config_file
            .iter()
            .map(|f| below(&here.join(f)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            _lock: lock,
            dir,
            agent: address_of_agent(run)?,
            root,
            code,
            config,
            executable,
            id: secret::fresh::<RUN_BYTES>()?,
        })
    }

    /// Whether nothing is measured but a program from elsewhere, as an interpreter is, and its command line.
    pub(super) fn measures_no_code(&self) -> bool {
        self.code.is_empty() && !self.executable.starts_with(&self.root)
    }

    /// What changed, where the sidecar has suspended itself, and what would have to be approved.
    pub(super) fn drifted(&self, name: &aip_api::AgentName) -> Option<(String, Option<String>)> {
        crate::drift::marker(&self.dir.join("data"), name)
    }

    /// The sidecar's log.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("sidecar.log")
    }

    /// The file with what the command must show at its sidecar's outbound port.
    pub(super) fn proxy_secret(&self) -> PathBuf {
        self.dir.join("proxy-secret")
    }

    /// The file with the join token.
    pub(super) fn join_token(&self) -> PathBuf {
        self.dir.join("join-token")
    }
}

fn executable(program: &str) -> Result<PathBuf, Failure> {
    let found = if program.contains('/') {
        Some(PathBuf::from(program))
    } else {
        process::in_path(program)
    };
    let real = found
        .and_then(|p| std::fs::canonicalize(p).ok())
        .filter(|p| p.is_file());
    real.ok_or_else(|| {
        Failure::new(Exit::Usage, format!("{program} is no program"))
            .why("it is neither a path nor in PATH")
            .next("the command comes after --, as you would type it without aip")
    })
}

/// The arguments that are files, where a file is meant: by their own name or after an option's `=`.
fn file_arguments(here: &Path, arguments: &[String]) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    for argument in arguments {
        let value = match argument.strip_prefix('-') {
            Some(option) => option.split_once('=').map(|(_, value)| value),
            None => Some(argument.as_str()),
        };
        let path = value.filter(|v| !v.is_empty()).map(|v| normal(&here.join(v)));
        files.extend(path.filter(|p| p.is_file()));
    }
    files.sort();
    files.dedup();
    files
}

/// `a/../b` as `b`, by its text: the sidecar refuses paths that lead upwards.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// The closest directory that holds both.
fn common(dir: &Path, file: &Path) -> PathBuf {
    dir.components()
        .zip(file.components())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a)
        .collect()
}

/// The kernel's range of ports for outgoing connections (ip(7)).
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// The lowest port that is chosen: above those that programs are known by, this one's (15000 to 15021) among them.
const LOWEST: u16 = 20_000;
/// Ports that are tried. Nearly all are free.
const TRIES: u64 = 64;

/// A port that nobody listens on now, and that the kernel gives to no outgoing connection meanwhile. The command binds it
/// a moment later; on a collision it says so itself.
pub(super) fn free_port() -> Result<u16, Failure> {
    let range = std::fs::read_to_string(EPHEMERAL).unwrap_or_default();
    let ports = LOWEST..first_ephemeral(&range);
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|l| l.local_addr());
    let start = RandomState::new().build_hasher().finish() % u64::from(u16::MAX);
    let size = u64::try_from(ports.len()).unwrap_or_default();
    let tried = (0..TRIES.min(size)).filter_map(|i| u16::try_from((start + i) % size).ok());
    if let Some(address) = tried.map(|i| LOWEST + i).find_map(|port| free(port).ok()) {
        return Ok(address.port());
    }
    // No such ports here: any.
    free(0)
        .map(|address| address.port())
        .map_err(|e| Failure::new(Exit::Failed, "no port is free").why(e.to_string()))
}

/// The first of the kernel's ports; 0 where it does not say.
fn first_ephemeral(range: &str) -> u16 {
    let first = range.split_whitespace().next();
    first.and_then(|first| first.parse().ok()).unwrap_or_default()
}

/// The port that was asked for, if nobody listens there: else whoever does would be taken for the command.
fn untaken(port: u16) -> Result<u16, Failure> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(port),
        Err(error) => Err(
            Failure::new(Exit::Failed, format!("port {port} (--port) can't be used"))
                .why(error.to_string())
                .next("end what listens there, or choose another --port"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_chosen_that_no_outgoing_connection_takes() {
        assert_eq!(first_ephemeral("32768\t60999\n"), 32_768);
        assert_eq!(first_ephemeral(""), 0);
        let first = first_ephemeral(&std::fs::read_to_string(EPHEMERAL).unwrap_or_default());
        if first > LOWEST {
            for _ in 0..100 {
                assert!((LOWEST..first).contains(&free_port().unwrap()));
            }
        }
    }

    #[test]
    fn arguments_that_are_files_are_code_and_the_root_holds_them() {
        let dir = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir_all(base.join("app")).unwrap();
        std::fs::create_dir_all(base.join("lib")).unwrap();
        for file in ["app/main.py", "lib/tools.json"] {
            std::fs::write(base.join(file), "").unwrap();
        }
        let here = base.join("app");
        let arguments = [
            "main.py",
            "--tools=../lib/tools.json",
            "-v",
            "not-a-file",
            "main.py",
            "",
        ]
        .map(str::to_owned);
        let files = file_arguments(&here, &arguments);
        assert_eq!(files, [base.join("app/main.py"), base.join("lib/tools.json")]);
        assert_eq!(files.iter().fold(here, |root, file| common(&root, file)), base);
    }

    #[test]
    fn a_program_is_found_as_the_shell_finds_it() {
        assert!(executable("sh").unwrap().is_absolute());
        assert_eq!(executable("no-such-program-here").unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_taken_port_is_refused_before_anything_starts() {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        assert!(untaken(port).unwrap_err().to_string().contains("--port"));
    }
}
