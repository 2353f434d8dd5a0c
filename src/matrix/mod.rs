//! Matrix vocabulary: endpoints, names, error codes. No I/O.

pub mod classify;
pub mod endpoint;
pub mod segment;
pub mod server_name;
pub mod token;
pub mod x_matrix;

pub use classify::{Classified, classify, flow};
pub use endpoint::{Api, Auth, Endpoint};
pub use server_name::{Host, ServerName};

use std::fmt;

use serde::Deserialize;

/// The direction in which an exchange passes the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flow {
    /// A client asks Synapse: all of ingress but federation.
    Client,
    /// Another server asks Synapse: `/_matrix/federation` and `/_matrix/key`.
    Federation,
    /// Synapse asks somebody else.
    Egress,
}

impl Flow {
    /// All flows, in the order of their index.
    pub const ALL: [Flow; 3] = [Flow::Client, Flow::Federation, Flow::Egress];
    /// The flows that come in from outside.
    pub const INBOUND: [Flow; 2] = [Flow::Client, Flow::Federation];

    /// Whether it comes in from outside: rules for endpoints are for what others ask Synapse.
    pub fn is_inbound(self) -> bool {
        match self {
            Flow::Client | Flow::Federation => true,
            Flow::Egress => false,
        }
    }

    /// The name in logs, metrics and policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Flow::Client => "client",
            Flow::Federation => "federation",
            Flow::Egress => "egress",
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
