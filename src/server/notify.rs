//! Tells the service manager where the process stands: `sd_notify`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends lines such as `READY=1`, if somebody wants to know. Nobody waits for it, and nothing depends on it.
pub(super) fn notify(state: &str) {
    let Ok(to) = std::env::var("NOTIFY_SOCKET") else { return };
    let told = address(&to).and_then(|to| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &to));
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager cannot be told where the process stands");
    }
}

/// A path, or a name in the kernel that begins with `@`.
fn address(text: &str) -> std::io::Result<SocketAddr> {
    match text.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(text),
    }
}
