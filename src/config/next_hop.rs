//! `[egress] next_hop`: the proxy through which a network is left, where there is no other way.

use std::path::PathBuf;

use serde::{Deserialize, Serialize, Serializer};
use serde_spanned::Spanned;

use super::gateway::{Check, Files, lossy_option};
use crate::addresses::Allowed;
use crate::config::secret::Basic;
use crate::matrix::{Host, ServerName};
use crate::problem::Problem;

/// The proxy through which both doors connect to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextHop {
    /// Where it is.
    pub url: NextHopUrl,
    /// The file with `user:password` that it is shown; without it, it is shown nothing.
    #[serde(serialize_with = "lossy_option")]
    pub credentials_file: Option<PathBuf>,
    /// What is connected to directly; where nothing is said, all that is not public.
    pub except: Option<Vec<Allowed>>,
}

/// `http://host:port`, or `https://host:port`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NextHopUrl {
    /// A name or an address.
    pub host: Host,
    /// Never 0.
    pub port: u16,
    /// Whether it is spoken to in TLS, and known by its certificate.
    pub is_encrypted: bool,
}

impl TryFrom<String> for NextHopUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        const HELP: &str = "write \"http://proxy.corp:3128\" or \"https://proxy.corp:3129\", and its credentials into a file: next_hop_credentials";
        // Not echoed: what stands before an @ is a secret.
        if text.contains('@') {
            return Err(format!("the URL of the next hop takes no user or password\n{HELP}"));
        }
        let read = || {
            let (scheme, rest) = text.split_once("://")?;
            let is_encrypted = match scheme {
                "http" => false,
                "https" => true,
                _ => return None,
            };
            let place = ServerName::parse(rest.strip_suffix('/').unwrap_or(rest))?;
            Some(Self { host: place.host().clone(), port: place.port()?, is_encrypted })
        };
        read().ok_or_else(|| format!("{text:?} is not the URL of a proxy that is asked in HTTP\n{HELP}"))
    }
}

impl Serialize for NextHopUrl {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        to.collect_str(&format_args!("{scheme}://{}:{}", self.host, self.port))
    }
}

impl Check<'_> {
    pub(super) fn next_hop(
        &mut self,
        url: Option<NextHopUrl>,
        credentials: Option<Spanned<PathBuf>>,
        except: Option<Spanned<Vec<Allowed>>>,
    ) -> Option<NextHop> {
        let Some(url) = url else {
            let keys = [
                ("next_hop_credentials", credentials.map(|path| path.span())),
                ("next_hop_except", except.map(|list| list.span())),
            ];
            for (key, span) in keys.into_iter().filter_map(|(key, span)| Some((key, span?))) {
                let what = format!("`{key}` belongs to a next hop, and there is none");
                self.problem(Problem::new(what).help("next_hop = \"http://proxy.corp:3128\""), span);
            }
            return None;
        };
        let credentials_file = credentials.map(|path| {
            let span = path.span();
            let path = self.base_dir.join(path.into_inner());
            if self.files == Files::MustBeThere
                && let Err(problem) = Basic::read(&path)
            {
                self.problem(problem, span);
            }
            path
        });
        Some(NextHop { url, credentials_file, except: except.map(Spanned::into_inner) })
    }
}
