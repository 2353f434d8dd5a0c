//! Sockets that systemd opened for us: they outlive the process, so nothing is refused while it is replaced.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;

use crate::problem::{Problem, Problems};

/// What was passed and is not taken yet.
pub(super) struct Inherited {
    sockets: ListenFd,
    /// By number; a taken one has none.
    names: Vec<Option<String>>,
}

/// A listening socket of either kind.
#[derive(Debug)]
pub(super) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Inherited {
    /// Takes over what the environment tells of. Only for a process that asks for such sockets: they are ours from then on.
    pub(super) fn receive() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let sockets = ListenFd::from_env();
        Self { names: named(&names, sockets.len()), sockets }
    }

    /// No sockets.
    pub(super) fn none() -> Self {
        Self { sockets: ListenFd::empty(), names: Vec::new() }
    }

    /// The next socket of this name, without blocking.
    pub(super) fn take(&mut self, name: &str) -> Result<Listening, Problem> {
        let Some(index) = self.names.iter().position(|known| known.as_deref() == Some(name)) else {
            return Err(Problem::new(format!("systemd passed no socket named {name}"))
                .help(format!("put FileDescriptorName={name} into a .socket unit, and start that unit first")));
        };
        self.names[index] = None;
        let taken = self.listening(index).map_err(|e| {
            Problem::new(format!("the socket {name} that systemd passed cannot be listened on: {e}"))
                .help("it must be ListenStream=, with Accept=no")
        });
        // Numbered by the same list.
        taken?.ok_or_else(|| Problem::new(format!("the socket {name} was taken already")))
    }

    /// Whether nothing is left: nobody would look at its queue.
    pub(super) fn all_taken(&self) -> Result<(), Problems> {
        let left: Vec<_> = self.names.iter().flatten().map(String::as_str).collect();
        if left.is_empty() {
            return Ok(());
        }
        let what = format!("systemd passed sockets that no listener takes: {}", left.join(", "));
        Err(Problem::new(what).help("bind = \"systemd:NAME\" takes one").into())
    }

    fn listening(&mut self, index: usize) -> io::Result<Option<Listening>> {
        let taken = match self.sockets.take_tcp_listener(index) {
            Ok(socket) => socket.map(Listening::Tcp),
            // It stays where it is if it is of another kind.
            Err(_) => self.sockets.take_unix_listener(index)?.map(Listening::Unix),
        };
        match &taken {
            Some(Listening::Tcp(socket)) => socket.set_nonblocking(true)?,
            Some(Listening::Unix(socket)) => socket.set_nonblocking(true)?,
            None => {}
        }
        Ok(taken)
    }
}

/// The names of so many sockets; systemd calls one without a name so.
fn named(names: &str, count: usize) -> Vec<Option<String>> {
    let names = names.split(':').filter(|name| !name.is_empty()).chain(std::iter::repeat("unknown"));
    names.take(count).map(|name| Some(name.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_numbered_by_their_names() {
        let names = |text: &str, count| named(text, count).into_iter().flatten().collect::<Vec<_>>().join(" ");
        assert_eq!(names("a:b", 2), "a b");
        assert_eq!(names("a:b", 3), "a b unknown");
        assert_eq!(names("a:b:c", 1), "a");
        assert_eq!(names("", 1), "unknown");
    }

    #[test]
    fn what_was_not_passed_is_told_with_what_to_do() {
        let problem = Inherited::none().take("public").unwrap_err();
        assert_eq!(
            problem.to_string(),
            "systemd passed no socket named public\n    help: put FileDescriptorName=public into a .socket unit, and start that unit first"
        );
        assert_eq!(Inherited::none().all_taken(), Ok(()));
    }
}
