//! The admin API's Unix socket. Who can open it is this process's user, or root: the kernel checks that, before any
//! token. A `prod` mesh takes changes nowhere else.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The socket in the data directory.
pub const SOCKET_FILE: &str = "admin.sock";
/// Longest path: what every Unix has room for in a socket's address (`sun_path`), less the terminating NUL.
const MAX_PATH: usize = 103;
/// The socket's mode: read and write for its owner.
const MODE: u32 = 0o600;
/// The bits of a directory that let anybody replace what is in it, and that keep them from it.
const WRITABLE_BY_ALL: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Why the socket can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit into an address.
    #[error("the admin socket's path {} has {} bytes, a socket has room for {MAX_PATH}; choose a shorter one with --admin-socket", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Another process answers there.
    #[error("the admin socket {} is taken by another process; choose another with --admin-socket", .0.display())]
    Taken(PathBuf),
    /// Something else has that name.
    #[error("{} is there and is no socket; choose another path with --admin-socket", .0.display())]
    NotASocket(PathBuf),
    /// Anybody could put another socket in its place.
    #[error("anybody can write to {}, and put a socket of theirs where the admin socket is; take that right away (chmod o-w), or choose another directory with --admin-socket", .0.display())]
    OpenDirectory(PathBuf),
    /// Anything else.
    #[error("can't listen on the admin socket {}: {why}; choose another path with --admin-socket", .path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
}

impl SocketError {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "socket_path_too_long",
            Self::Taken(_) => "socket_taken",
            Self::NotASocket(_) => "not_a_socket",
            Self::OpenDirectory(_) => "socket_directory_open",
            Self::Listen { .. } => "listen_failed",
        }
    }
}

/// A socket that is listened on; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    /// What connections come from.
    pub listener: UnixListener,
    /// Where it is; absolute.
    pub path: SocketPath,
}

/// A socket's file, removed when this is dropped.
#[derive(Debug)]
pub struct SocketPath(PathBuf);

impl std::ops::Deref for SocketPath {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Socket {
    /// Listens on `path`. What a dead process left there is replaced; nobody but its owner can ever open it, also not
    /// between its making and its mode: it is made in a private directory, and moved.
    ///
    /// # Errors
    /// As [`SocketError`] lists.
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        let failed = |why| SocketError::Listen {
            path: path.to_owned(),
            why,
        };
        let path = std::path::absolute(path).map_err(failed)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let private = parent.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        let made = private.join("s");
        if made.as_os_str().len() > MAX_PATH {
            return Err(SocketError::TooLong(path));
        }
        let mode = fs::metadata(parent).map_err(failed)?.permissions().mode();
        if mode & WRITABLE_BY_ALL != 0 && mode & STICKY == 0 {
            return Err(SocketError::OpenDirectory(parent.to_owned()));
        }
        free(&path)?;
        let _ = fs::remove_dir_all(&private);
        let listen = || {
            DirBuilder::new().mode(0o700).create(&private)?;
            let listener = UnixListener::bind(&made)?;
            fs::set_permissions(&made, Permissions::from_mode(MODE))?;
            fs::rename(&made, &path)?;
            Ok(listener)
        };
        let listening = listen();
        let _ = fs::remove_dir_all(&private);
        let listener = listening.map_err(failed)?;
        Ok(Self {
            listener,
            path: SocketPath(path),
        })
    }
}

/// Whether `path` can be taken: nothing is there, or a socket that nobody listens on.
fn free(path: &Path) -> Result<(), SocketError> {
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Taken(path.to_owned())),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_its_owners_alone_and_goes_with_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let socket = Socket::listen(&path).unwrap();
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing else is left there"
        );
        assert_eq!(Socket::listen(&path).unwrap_err().reason(), "socket_taken");
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_a_dead_process_left_is_replaced_and_anything_else_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = Socket::listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(socket);

        fs::write(&path, "precious").unwrap();
        assert_eq!(Socket::listen(&path).unwrap_err().reason(), "not_a_socket");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let long = dir.path().join("x".repeat(100));
        let refused = Socket::listen(&long).unwrap_err();
        assert_eq!(refused.reason(), "socket_path_too_long");
        assert!(refused.to_string().contains("--admin-socket"));
        let absent = Socket::listen(&dir.path().join("absent/admin.sock")).unwrap_err();
        assert_eq!(absent.reason(), "listen_failed");
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        let refused = Socket::listen(&open.join("admin.sock")).unwrap_err();
        assert_eq!(refused.reason(), "socket_directory_open");
        fs::set_permissions(&open, Permissions::from_mode(0o1777)).unwrap();
        Socket::listen(&open.join("admin.sock")).unwrap();
    }
}
