//! What goes past both doors by its nature, and where Synapse has such a thing.

use super::file::Homeserver;
use super::finding::Report;
use super::hosts;
use super::yaml::Node;

/// Notes what of it is set up.
pub(super) fn examine(homeserver: &Homeserver, report: &mut Report) {
    for (key, what) in PAST {
        if let Some((key, _)) = homeserver.entry(key).filter(|(_, value)| value.is_true()) {
            report.note(&key.location, format!("goes past both doors: {what}"), "");
        }
    }
    let enabled = |key: &str| {
        homeserver
            .entry(key)
            .filter(|(_, value)| value.as_map().and_then(|map| map.get("enabled")).is_some_and(Node::is_true))
    };
    for (key, what) in
        [("opentracing", "traces, to the Jaeger agent"), ("redis", "what workers tell each other, to Redis")]
    {
        if let Some((key, _)) = enabled(key) {
            report.note(&key.location, format!("goes past both doors: {what}"), "");
        }
    }
    if let Some(service) = hosts::authentication(homeserver) {
        let what = "goes past the proxy door, unless Synapse's environment sets a proxy: questions about tokens to the \
                    authentication service";
        let host = service.host().unwrap_or_default();
        report.note(
            &service.at,
            what,
            format!("where its unit sets HTTP_PROXY or HTTPS_PROXY: NO_PROXY={host} as well"),
        );
    }
    // Beside the first process's, a worker's own file tells of its listeners.
    if let Some((key, _)) = homeserver.entry("worker_app").filter(|(key, _)| key.location.file == homeserver.name()) {
        let what = "this is a worker's configuration: what the first process says counts here";
        report.note(&key.location, what, "name homeserver.yaml before it");
    }
}

const PAST: [(&str, &str); 5] = [
    ("sentry", "errors with what stood around them, to Sentry"),
    ("email", "mail, to the server in `smtp_host`"),
    ("modules", "whatever these modules ask by themselves"),
    ("media_storage_providers", "media, to where these providers keep them"),
    ("saml2_config", "metadata of identity providers, by SAML's own client"),
];
