//! A session of matrix-js-sdk, the library below most web clients, against any base URL.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use serde_json::json;

use crate::error::Result;
use crate::nio::{SessionOptions, checks, users};
use crate::tool::Tool;
use crate::venv;

/// Runs a session of two users and returns the names of the checks that passed, in order; the error of a failed one has
/// all its output. The SDK is installed if need be (about 10 s).
///
/// Register or login, sync, profile, public room with alias, directory, join, long poll, message, upload and
/// authenticated download, name of a device, OpenID token of a widget, logout.
pub fn run_session(url: &str, options: &SessionOptions) -> Result<Vec<String>> {
    let programs = Tool::Node.find()?;
    let (node, npm) = (programs[0].as_os_str(), programs[1].as_os_str());
    let sdk = venv::js_sdk(npm)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("js/session.mjs");
    let asked = json!({"sdk": sdk, "homeserver": url, "users": users(options)}).to_string();
    let mut command: Vec<OsString> = vec!["env".into()];
    if let Some(ca) = &options.ca {
        command.push([OsStr::new("NODE_EXTRA_CA_CERTS="), ca.as_os_str()].into_iter().collect());
    }
    command.extend([node.into(), script.into(), asked.into()]);
    checks(&venv::python()?, &command, &format!("matrix-js-sdk with {url}"))
}
