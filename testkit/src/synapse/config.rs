//! What the homeserver is told: nothing leaves this machine, nothing is limited, nothing is protected.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::Result;
use crate::synapse::{Options, write};

/// What differs from one start to another beside the options.
pub(super) struct Instance<'a> {
    pub(super) directory: &'a Path,
    pub(super) port: u16,
    pub(super) socket: Option<&'a Path>,
    pub(super) secret: &'a str,
}

impl Instance<'_> {
    /// Writes the configuration as JSON, which is YAML too.
    pub(super) fn configure(&self, options: &Options) -> Result<()> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let mut resources = json!([{"names": ["client", "federation"], "compress": false}]);
        if options.metrics {
            resources[0]["names"] = json!(["client", "federation", "metrics"]);
        }
        let mut listeners = vec![json!({
            "type": "http", "port": self.port, "bind_addresses": ["127.0.0.1"], "tls": false,
            "x_forwarded": true, "request_id_header": "X-Request-ID", "resources": resources,
        })];
        if let Some(path) = self.socket {
            listeners.push(json!({
                "type": "http", "path": path, "mode": 0o660,
                "x_forwarded": true, "request_id_header": "X-Request-ID", "resources": resources,
            }));
        }
        let mut config = json!({
            "server_name": options.server_name,
            "public_baseurl": options.public_baseurl.clone().unwrap_or_else(|| format!("http://127.0.0.1:{}", self.port)),
            "listeners": listeners,
            "pid_file": file("synapse.pid"),
            "log_config": file("log.yaml"),
            "report_stats": false,
            "signing_key_path": file("signing.key"),
            "macaroon_secret_key": self.secret,
            "form_secret": self.secret,
            "registration_shared_secret": self.secret,
            "media_store_path": file("media"),
            "database": {"name": "sqlite3", "args": {"database": file("homeserver.db")}},
            // Nothing leaves this machine, and loopback is where our peers are.
            "trusted_key_servers": [],
            "suppress_key_server_warning": true,
            "ip_range_blacklist": [],
            "federation_ip_range_blacklist": [],
            // Else a destination that failed once stays off for ten minutes.
            "federation": {"destination_min_retry_interval": "1s", "destination_max_retry_interval": "5s"},
            "enable_metrics": options.metrics,
            "enable_registration": options.enable_registration,
            "enable_registration_without_verification": options.enable_registration,
            "allow_guest_access": true,
            "allow_public_rooms_without_auth": true,
            "allow_public_rooms_over_federation": true,
            "require_auth_for_profile_requests": false,
            "room_list_publication_rules": [{"action": "allow"}],
            "bcrypt_rounds": 4,
        });
        if let Some(ca) = &options.federation_ca {
            config["federation_custom_ca_list"] = json!([ca]);
        }
        raise_limits(&mut config);
        let log = json!({
            "version": 1,
            "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(request)s %(message)s"}},
            "filters": {"context": {"()": "synapse.logging.context.LoggingContextFilter", "request": ""}},
            "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["context"]}},
            "root": {"level": "INFO", "handlers": ["out"]},
            "disable_existing_loggers": false,
        });
        write(&self.directory.join("homeserver.yaml"), &config.to_string())?;
        write(&self.directory.join("log.yaml"), &log.to_string())
    }
}

/// Sets every rate limit so high that no test meets a 429.
fn raise_limits(config: &mut Value) {
    let high = json!({"per_second": 10000, "burst_count": 10000});
    for name in [
        "rc_message",
        "rc_registration",
        "rc_registration_token_validity",
        "rc_admin_redaction",
        "rc_joins_per_room",
        "rc_key_requests",
        "rc_third_party_invite",
        "rc_media_create",
        "rc_delayed_event_mgmt",
        "rc_room_creation",
        "rc_reports",
        "rc_user_directory",
        "rc_profile",
    ] {
        config[name] = high.clone();
    }
    for (name, parts) in [
        ("rc_login", &["address", "account", "failed_attempts"][..]),
        ("rc_joins", &["local", "remote"]),
        ("rc_invites", &["per_room", "per_user", "per_issuer"]),
        ("rc_presence", &["per_user"]),
    ] {
        for part in parts {
            config[name][part] = high.clone();
        }
    }
    config["rc_3pid_validation"] = high;
    config["rc_federation"] =
        json!({"window_size": 1000, "sleep_limit": 10000, "sleep_delay": 0, "reject_limit": 10000, "concurrent": 100});
}
