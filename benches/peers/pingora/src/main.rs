//! A proxy of Pingora that does the work of the policy `balanced`: `pingora PLAIN TLS ORIGIN DIRECTORY strip|keep`.
//!
//! Records go to standard output, from a thread of their own and in batches, as Mantlet's do.

use std::io::Write;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

struct Gateway {
    origin: String,
    strip: bool,
    records: SyncSender<String>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [plain, tls, origin, directory, fields] = &arguments[..] else {
        panic!("wanted: PLAIN TLS ORIGIN DIRECTORY strip|keep, and not {arguments:?}");
    };
    let (sender, records) = mpsc::sync_channel(8192);
    std::thread::spawn(move || write(&records));
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 256, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let gateway = Gateway { origin: origin.clone(), strip: fields == "strip", records: sender };
    let mut service = http_proxy_service(&server.configuration, gateway);
    service.add_tcp(&format!("127.0.0.1:{plain}"));
    let (certificate, key) = (format!("{directory}/server.crt"), format!("{directory}/server.key"));
    let mut settings = TlsSettings::intermediate(&certificate, &key).expect("the certificate is good");
    settings.enable_h2();
    service.add_tls_with_settings(&format!("127.0.0.1:{tls}"), None, settings);
    server.add_service(service);
    server.run_forever();
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Instant;

    fn new_ctx(&self) -> Instant {
        Instant::now()
    }

    async fn request_filter(&self, session: &mut Session, _: &mut Instant) -> Result<bool> {
        let request = session.req_header();
        let refusal = refusal(request.uri.path(), request.headers.contains_key("authorization"));
        let Some((status, body)) = refusal else { return Ok(false) };
        session.respond_error_with_body(status, Bytes::from_static(body)).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut Instant) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(&self.origin, false, String::new())))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        started: &mut Instant,
    ) -> Result<()> {
        if self.strip {
            for name in STRIPPED {
                request.remove_header(name);
            }
        }
        let client = session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip().to_string());
        let is_tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
        request.insert_header("X-Forwarded-For", client.unwrap_or_default())?;
        request.insert_header("X-Forwarded-Proto", if is_tls { "https" } else { "http" })?;
        request.insert_header("X-Request-ID", format!("{:016x}", started.elapsed().as_nanos()))?;
        Ok(())
    }

    async fn response_filter(&self, _: &mut Session, response: &mut ResponseHeader, _: &mut Instant) -> Result<()> {
        response.remove_header("server");
        Ok(())
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, started: &mut Instant) {
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        let record = format!(
            "{{\"method\":\"{}\",\"status\":{status},\"bytes\":{},\"duration_us\":{},\"error\":{}}}\n",
            session.req_header().method,
            session.body_bytes_sent(),
            started.elapsed().as_micros(),
            error.is_some(),
        );
        // A full queue drops it.
        let _ = self.records.try_send(record);
    }
}

fn refusal(path: &str, has_token: bool) -> Option<(u16, &'static [u8])> {
    let rest = path.strip_prefix("/_matrix/client/")?.split_once('/')?.1;
    match rest {
        "account/3pid/unbind" => Some((404, br#"{"errcode":"M_UNRECOGNIZED"}"#)),
        "publicRooms" if !has_token => Some((401, br#"{"errcode":"M_MISSING_TOKEN"}"#)),
        profile if !has_token && profile.starts_with("profile/") => Some((401, br#"{"errcode":"M_MISSING_TOKEN"}"#)),
        _ => None,
    }
}

fn write(records: &Receiver<String>) {
    let mut out = std::io::stdout();
    while let Ok(first) = records.recv() {
        std::thread::sleep(Duration::from_millis(5));
        let batch: String = std::iter::once(first).chain(records.try_iter()).collect();
        if out.write_all(batch.as_bytes()).and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

const STRIPPED: [&str; 9] = [
    "origin",
    "referer",
    "user-agent",
    "accept-language",
    "sec-ch-ua",
    "sec-ch-ua-mobile",
    "sec-ch-ua-platform",
    "sec-fetch-site",
    "sec-fetch-mode",
];
