//! `mantlet ca`

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::Common;
use super::output::Output;
use crate::config::compiled::Compiled;
use crate::config::egress::Ca as Files;
use crate::config::gateway::Gateway;
use crate::homeserver::{self, Homeserver};
use crate::policy::egress::UNBINDING;
use crate::problem::{Problem, Problems};
use crate::tls::ca::{self, Authority, Stated};

#[derive(Debug, clap::Args)]
pub(super) struct Ca {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make the authority that [egress.ca] names, for the hosts that the policy wants to be looked into
    Init(Init),
    /// Say what the authority may vouch for, and until when
    Show,
    /// Print what Synapse has to be told of the doors of the way out
    Synapse(Synapse),
}

#[derive(Debug, clap::Args)]
struct Init {
    /// More hosts, so that a policy can want them later without a new authority
    hosts: Vec<String>,
    /// Put it in the place of one that is there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
struct Synapse {
    /// Write the roots of this system and the authority here, for Synapse's SSL_CERT_FILE
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// What Synapse is told now, which is not to be lost: its file, more of them, or a directory of them
    #[arg(long, value_name = "FILE", num_args = 1..)]
    homeserver: Vec<PathBuf>,
}

impl Ca {
    pub(super) fn run(self, common: &Common, output: &Output) -> Result<ExitCode, Problems> {
        common.needed_file()?;
        let gateway = common.gateway_alone()?;
        match self.verb {
            Verb::Init(init) => init.run(&gateway, output)?,
            Verb::Show => show(&gateway, output)?,
            Verb::Synapse(synapse) => synapse.run(&gateway, output)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Init {
    fn run(self, gateway: &Gateway, output: &Output) -> Result<(), Problems> {
        let Files { certificate, key, .. } = files(gateway)?;
        let policy = Compiled::read(&gateway.policy)?.policy;
        let unbinding = policy.unbinding().map(|_| UNBINDING.to_owned());
        let mut names: BTreeSet<_> = policy.egress().intercepted().map(|(name, _)| name.to_owned()).collect();
        for host in self.hosts {
            if !crate::addresses::is_web_name(&host) {
                return Err(Problem::new(format!("{host:?} is not the name of a host")).into());
            }
            names.insert(host.to_ascii_lowercase());
        }
        names.extend(unbinding);
        if names.is_empty() {
            return Err(Problem::new("the policy wants no host to be looked into, so there is nobody to vouch for")
                .help(
                    "[[egress.destination]] host = \"matrix.org\", action = \"intercept\"; or name hosts behind `init`",
                )
                .into());
        }
        if let Some(name) = names.iter().find(|name| !name.contains('.')) {
            let what =
                format!("{name} has one label only: beside a name that ends so, the authority could be all that do");
            return Err(Problem::new(what).help("name the host whole, as matrix.example.org").into());
        }
        // It is in every authority, so that a rule can be turned on later.
        names.insert(UNBINDING.to_owned());
        // Neither is written if one cannot be: a key beside another's certificate helps nobody, and takes the place of the right one.
        if !self.force
            && let Some(taken) = [certificate, key].into_iter().find(|path| path.symlink_metadata().is_ok())
        {
            return Err(is_there(taken).into());
        }
        let made = ca::make(&names)?;
        // The key first: a certificate without one is seen at once.
        write(key, &made.key, 0o600, self.force)?;
        write(certificate, &made.certificate, 0o644, self.force)?;
        let authority = Authority::read(certificate, key)?;
        let open = left_open(authority.stated());
        let list: Vec<_> = names.iter().map(String::as_str).collect();
        output.print(
            || {
                format!(
                    "made an authority for {}\n  certificate  {}\n  key          {} (mode 0600)\n{open}\
                     Synapse has to believe it: mantlet ca synapse --bundle FILE",
                    list.join(", "),
                    certificate.display(),
                    key.display()
                )
            },
            || {
                json!({
                    "names": list, "open": authority.stated().open().collect::<Vec<_>>(),
                    "certificate": certificate.display().to_string(), "key": key.display().to_string(),
                })
            },
        );
        Ok(())
    }
}

fn show(gateway: &Gateway, output: &Output) -> Result<(), Problems> {
    let Files { certificate, key, .. } = files(gateway)?;
    let authority = Authority::read(certificate, key)?;
    let stated = authority.stated();
    let ends = humantime::format_rfc3339_seconds(stated.not_after).to_string();
    output.print(
        || {
            let mut page = format!("authority  {}\nends       {ends}\n", certificate.display());
            for name in &stated.names {
                let _ = writeln!(page, "may be     {name}");
            }
            page.push_str(&left_open(stated));
            page.push_str("never      any other name");
            page.push_str(if stated.has_no_addresses { ", any address" } else { "" });
            page
        },
        || {
            let open: Vec<_> = stated.open().collect();
            json!({ "names": stated.names, "open": open, "addresses": !stated.has_no_addresses, "ends": ends })
        },
    );
    Ok(())
}

/// A line for each thing that the names of an authority do not close.
fn left_open(stated: &Stated) -> String {
    let mut page = String::new();
    for name in stated.open() {
        let _ =
            writeln!(page, "left open  {name}: whoever gets the key could be it, Mantlet makes no certificate for it");
    }
    if !stated.has_no_addresses {
        page.push_str("left open  addresses: whoever gets the key could be any of them\n");
    }
    page
}

impl Synapse {
    fn run(self, gateway: &Gateway, output: &Output) -> Result<(), Problems> {
        let authority = match &gateway.egress.ca {
            Some(files) => Some(std::fs::read_to_string(&files.certificate).map_err(|error| {
                let what = format!("the authority {} cannot be read: {error}", files.certificate.display());
                Problem::new(what).help("make it: mantlet ca init")
            })?),
            None => None,
        };
        let mut unread = String::new();
        if let Some(file) = &self.bundle {
            let Some(authority) = &authority else { return Err(no_authority().into()) };
            let (roots, errors) = roots()?;
            write(file, &format!("{authority}{roots}"), 0o644, true)?;
            for error in errors {
                let _ = write!(unread, "\n# not in it: {error}");
            }
        }
        let homeserver = (!self.homeserver.is_empty()).then(|| Homeserver::load(&self.homeserver)).transpose()?;
        let settings = match homeserver::settings(gateway, homeserver.as_ref()) {
            nothing if nothing.is_empty() => "# nothing: the gateway has no door of the way out".to_owned(),
            settings => settings,
        };
        let yaml = format!("# homeserver.yaml\n{settings}");
        let mut environment = String::new();
        if authority.is_some() {
            // Synapse reads it from a directory of its own, and says nothing where there is no such file.
            let bundle = self.bundle.as_deref().map(std::path::absolute).transpose();
            let bundle = bundle.map_err(|error| Problem::new(format!("the bundle's place cannot be told: {error}")))?;
            let bundle = bundle.map_or("FILE".to_owned(), |path| path.display().to_string());
            let hint = if self.bundle.is_none() { "   # mantlet ca synapse --bundle FILE writes it" } else { "" };
            let _ = write!(environment, "\n\n# Synapse's environment\nSSL_CERT_FILE={bundle}{hint}{unread}");
        }
        let page = format!("{}{environment}", yaml.trim_end());
        output.print(|| page.clone(), || json!({ "settings": page }));
        Ok(())
    }
}

/// The roots of this system in PEM, and what of them could not be read. They may be an earlier bundle (`SSL_CERT_FILE`), so
/// authorities of ours are left out: who believes a new one is to believe the old one no longer.
fn roots() -> Result<(String, Vec<String>), Problem> {
    let found = rustls_native_certs::load_native_certs();
    let roots: String = found.certs.iter().filter(|root| !ca::is_ours(root)).map(|root| pem(root)).collect();
    let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
    if roots.is_empty() {
        let why = if errors.is_empty() { String::new() } else { format!(" ({})", errors.join("; ")) };
        let what = format!("this machine has no root certificates{why}: with such a bundle Synapse could know nobody");
        return Err(Problem::new(what).help("install ca-certificates, or point SSL_CERT_FILE at a bundle of them"));
    }
    Ok((roots, errors))
}

fn files(gateway: &Gateway) -> Result<&Files, Problem> {
    gateway.egress.ca.as_ref().ok_or_else(no_authority)
}

fn no_authority() -> Problem {
    Problem::new("the gateway file names no authority").help("[egress.ca] certificate = \"ca.crt\", key = \"ca.key\"")
}

/// Writes a file that was not there, or all of it at once in the place of one that was.
fn write(path: &Path, text: &str, mode: u32, force: bool) -> Result<(), Problem> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => is_there(path),
        _ => Problem::new(format!("{} cannot be written: {error}", path.display())),
    };
    let mut place = path.as_os_str().to_owned();
    if force {
        place.push(".new");
    }
    if force {
        // Left by one that was interrupted.
        let _ = std::fs::remove_file(Path::new(&place));
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&place).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    if force { std::fs::rename(&place, path).map_err(failed) } else { Ok(()) }
}

fn is_there(path: &Path) -> Problem {
    Problem::new(format!("{} is there already", path.display()))
        .help("if it is an authority of Mantlet's, --force makes a new one in its place; Synapse then has to believe that one")
}

fn pem(certificate: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(certificate);
    let mut page = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        page.push_str(&String::from_utf8_lossy(line));
        page.push('\n');
    }
    page + "-----END CERTIFICATE-----\n"
}
