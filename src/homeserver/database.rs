//! What the database remembers: whom Synapse will ask without being told to.

use serde::Serialize;

use super::file::Homeserver;
use super::yaml::Node;

/// Questions for Synapse's database. They change nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remembered {
    /// What to run them with.
    pub with: &'static str,
    /// The identity servers that are told when a user removes an address or an account.
    pub identity_servers: &'static str,
    /// The push gateways that are told of messages.
    pub push_gateways: &'static str,
}

impl Remembered {
    /// For the database that Synapse has: SQLite where it names none.
    pub fn of(homeserver: &Homeserver) -> Self {
        let name = homeserver.get("database").and_then(|node| node.as_map()?.get("name")?.as_str());
        match name {
            Some("psycopg2") => Self { with: "psql", identity_servers: IDENTITY_SERVERS, push_gateways: POSTGRES },
            Some(_) | None => Self { with: "sqlite3", identity_servers: IDENTITY_SERVERS, push_gateways: SQLITE },
        }
    }

    /// Where the file is, if it is one.
    pub fn file(homeserver: &Homeserver) -> Option<&str> {
        let args = homeserver.get("database")?.as_map()?.get("args")?.as_map()?;
        args.get("database").and_then(Node::as_str).filter(|_| Self::of(homeserver).with == "sqlite3")
    }
}

const IDENTITY_SERVERS: &str = "SELECT DISTINCT id_server FROM user_threepid_id_server ORDER BY id_server;";
const POSTGRES: &str = "SELECT DISTINCT substring(data::json->>'url' FROM '://([^/]+)') AS push_gateway FROM pushers \
                        WHERE kind = 'http' ORDER BY push_gateway;";
const SQLITE: &str = "SELECT DISTINCT substr(rest, 1, instr(rest || '/', '/') - 1) AS push_gateway FROM \
                      (SELECT substr(url, instr(url, '://') + 3) AS rest FROM \
                      (SELECT json_extract(data, '$.url') AS url FROM pushers WHERE kind = 'http')) ORDER BY push_gateway;";
