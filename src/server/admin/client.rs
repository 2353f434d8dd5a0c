//! Asks a running gateway, for `mantlet reload` and health checks.

use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};

use super::Stream;
use crate::config::address::AdminAddress;
use crate::problem::Problem;

/// Sends one request without a body to a gateway's admin listener; gives the status and the body.
///
/// # Errors
/// When nobody answers there within a minute, or not as a gateway would.
pub async fn call(address: &AdminAddress, method: Method, path: &str) -> Result<(u16, Vec<u8>), Problem> {
    let silent = |what: &str| {
        Problem::new(format!("no gateway answers at {address}: {what}"))
            .help("is it running, and is this the address in its [admin]?")
    };
    match tokio::time::timeout(PATIENCE, exchange(address, method, path)).await {
        Ok(outcome) => outcome.map_err(|e| silent(&innermost(&*e))),
        Err(_) => Err(silent("it took too long")),
    }
}

/// A reload compiles a policy and runs its tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// More than all metrics.
const BODY_BYTES: usize = 16 * 1024 * 1024;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(address: &AdminAddress, method: Method, path: &str) -> Result<(u16, Vec<u8>), AnyError> {
    let (stream, host): (Box<dyn Stream>, String) = match address {
        AdminAddress::Tcp(tcp) => (Box::new(TcpStream::connect(tcp).await?), tcp.to_string()),
        AdminAddress::Unix(path) => (Box::new(UnixStream::connect(path).await?), "localhost".to_owned()),
    };
    let request = Request::builder().method(method).uri(path).header(HOST, host).body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), BODY_BYTES).collect().await?.to_bytes();
        Ok((status, body.into()))
    };
    tokio::pin!(answer, connection);
    let ended = tokio::select! {
        answered = &mut answer => return answered,
        ended = &mut connection => ended,
    };
    // Whatever arrived before the connection ended is in the response already.
    match (ended, answer.await) {
        (Err(e), Err(_)) => Err(e.into()),
        (_, answered) => answered,
    }
}

/// The cause that says most: `hyper` wraps it in sentences about itself.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
