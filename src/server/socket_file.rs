//! A unix socket's file: private from its first moment, replaced only when it is a leftover.

use std::fs::{Permissions, set_permissions, symlink_metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::problem::Problem;

/// A socket file that we made; dropping it removes the file, unless another has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    made: (u64, u64),
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.made) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens on a socket file of this mode; the listener does not block. `table` is what the operator would change, such as
/// `[admin]`.
///
/// # Errors
/// When somebody listens there, something else is there, or the directory does not permit it.
pub fn bind(path: &Path, mode: u32, backlog: i32, table: &str) -> Result<(UnixListener, SocketFile), Problem> {
    let unusable = |e: io::Error| match missing_directory(path) {
        Some(directory) => {
            let (shown, directory) = (path.display(), directory.display());
            Problem::new(format!("the socket {shown} cannot be made: the directory {directory} does not exist"))
                .help(MAKE_DIRECTORY)
        }
        None => Problem::new(format!("the socket {} cannot be made: {e}", path.display())),
    };
    let address = SockAddr::unix(path).map_err(unusable)?;
    remove_leftover(path, &address, table)?;
    let listen = || -> io::Result<(UnixListener, SocketFile)> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&address)?;
        let file = symlink_metadata(path)?;
        let file = SocketFile { path: path.to_owned(), made: (file.dev(), file.ino()) };
        // Before `listen` nobody can connect, so nobody could before the mode was right.
        set_permissions(path, Permissions::from_mode(mode))?;
        socket.listen(backlog)?;
        socket.set_nonblocking(true)?;
        Ok((UnixListener::from(socket), file))
    };
    listen().map_err(unusable)
}

/// The directory that a socket is to be in, if it is not there.
pub fn missing_directory(path: &Path) -> Option<&Path> {
    path.parent().filter(|directory| matches!(directory.try_exists(), Ok(false)))
}

/// What to do then.
pub const MAKE_DIRECTORY: &str =
    "make it, for the user that Mantlet runs as; in a unit of systemd RuntimeDirectory= does, at each start";

fn remove_leftover(path: &Path, address: &SockAddr, table: &str) -> Result<(), Problem> {
    let shown = path.display();
    match symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Problem::new(format!("the socket {shown} cannot be looked at: {e}"))),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(Problem::new(format!("{shown} is not a socket, so it is not replaced")));
        }
        Ok(_) => {}
    }
    let asked = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| {
        // A full queue must not hold us up; it is somebody's queue.
        socket.set_nonblocking(true)?;
        socket.connect(address)
    });
    match asked {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|e| Problem::new(format!("the leftover socket {shown} cannot be removed: {e}"))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Err(Problem::new(format!("the socket {shown} is another user's; choose another bind for {table}")))
        }
        Ok(()) | Err(_) => Err(Problem::new(format!(
            "the socket {shown} is in use by another process; choose another bind for {table}, or stop it"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn bind(path: &Path) -> Result<(UnixListener, SocketFile), Problem> {
        super::bind(path, 0o600, 64, "[admin]")
    }

    fn mode(path: &Path) -> u32 {
        symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn is_private_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        let (listener, file) = bind(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        UnixStream::connect(&path).unwrap();
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn replaces_a_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_listener, _file) = bind(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn leaves_a_socket_that_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        let (_listener, _file) = bind(&path).unwrap();
        assert_eq!(
            bind(&path).unwrap_err().to_string(),
            format!(
                "the socket {} is in use by another process; choose another bind for [admin], or stop it",
                path.display()
            )
        );
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_full_queue_is_in_use_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        let busy = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        busy.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        busy.listen(0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(bind(&path).unwrap_err().what.contains("is in use"));
        assert!(path.exists());
    }

    #[test]
    fn leaves_what_is_not_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        std::fs::write(&path, "mine").unwrap();
        let problem = bind(&path).unwrap_err();
        assert_eq!(problem.what, format!("{} is not a socket, so it is not replaced", path.display()));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn does_not_remove_the_file_of_a_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        let (_old, old_file) = bind(&path).unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        let (_new, _new_file) = bind(&path).unwrap();
        drop(old_file);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_is_too_long_is_a_problem() {
        let path = PathBuf::from(format!("/tmp/{}", "a".repeat(200)));
        assert!(bind(&path).unwrap_err().what.contains("cannot be made"));
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (run, path) = (dir.path().join("run"), dir.path().join("run/admin"));
        let problem = bind(&path).unwrap_err();
        assert!(problem.what.ends_with(&format!(": the directory {} does not exist", run.display())), "{problem}");
        assert!(problem.help.is_some_and(|help| help.contains("RuntimeDirectory=")));
        std::fs::create_dir(run).unwrap();
        bind(&path).unwrap();
    }
}
