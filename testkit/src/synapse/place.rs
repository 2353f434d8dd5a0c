//! In what surroundings a Synapse runs, and what is seen of it there.

use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::synapse::START;

/// Where a Synapse runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this machine, among all others.
    Here,
    /// Where it reaches nobody but by unix sockets, nor is reached otherwise. What it tries is written down: [`crate::synapse::Synapse::attempts`].
    Alone,
    /// The same in a network in which every address is reached, and nobody is at any. What it tries is not refused, and written
    /// down packet by packet, too: [`crate::synapse::Synapse::packets`].
    Watched(Watch),
}

/// Who is in a network that is watched, beside Synapse.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// A name server outside, which answers what is asked at [`Watch::NAME_SERVER`].
    pub dns: Option<SocketAddr>,
    /// A unix socket outside, to which [`Watch::DOOR`] leads.
    pub door: Option<PathBuf>,
}

impl Watch {
    /// The name server that a system has in such a network.
    pub const NAME_SERVER: &str = "192.0.2.53:53";
    /// The one place where something listens, if anything does.
    pub const DOOR: &str = "127.0.0.1:8118";
}

/// Packets of one kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packets {
    /// `tcp`, `udp`, or the number of another protocol.
    pub protocol: String,
    /// Who sent them: an address, and a port where there is one.
    pub from: String,
    /// To whom.
    pub to: String,
    /// What they ask the DNS, such as `SRV _matrix._tcp.example.org`.
    pub question: Option<String>,
    /// How many there were.
    pub times: u64,
}

impl Packets {
    /// All that who watches at this socket has seen.
    pub(super) fn told_at(path: &Path) -> Result<Vec<Packets>> {
        let mut watch = UnixStream::connect(path).context(|| "ask who watches".into())?;
        watch.set_read_timeout(Some(START)).context(|| "wait for who watches".into())?;
        let mut told = String::new();
        watch.read_to_string(&mut told).context(|| "hear who watches".into())?;
        let told: Value = serde_json::from_str(&told).context(|| format!("read {told:?}"))?;
        let Some(packets) = told["packets"].as_array() else { return Err(Error::new(told.to_string())) };
        let said = |packet: &Value, key: &str| packet[key].as_str().map(str::to_owned);
        let read = |packet: &Value| Packets {
            protocol: said(packet, "protocol").unwrap_or_default(),
            from: said(packet, "from").unwrap_or_default(),
            to: said(packet, "to").unwrap_or_default(),
            question: said(packet, "question"),
            times: packet["times"].as_u64().unwrap_or_default(),
        };
        Ok(packets.iter().map(read).collect())
    }
}
