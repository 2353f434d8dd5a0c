//! What is written down of somebody who asked for a tunnel: once, when it is over. Not where to.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::Proxy;
use super::tunnel::Flowed;
use crate::events::Event;
use crate::ledger::Contact;
use crate::matrix::{Flow, Host};
use crate::message::Answer;
use crate::message::respond::RULE;
use crate::observe::access::{AccessRecord, Decision, Method, Mode};
use crate::observe::metrics::{Counted, Direction, Tunnel};
use crate::stack::Peer;

/// One who asked for a tunnel; the record is written when this is dropped.
pub(super) struct Asked<'a> {
    proxy: &'a Proxy,
    peer: &'a Peer,
    id: u64,
    /// None once the requests inside speak for themselves.
    record: RefCell<Option<AccessRecord>>,
    /// Where to, once it may be known.
    contact: RefCell<Option<Contact>>,
    flowed: Flowed,
    started: Instant,
    _open: Counted,
}

impl<'a> Asked<'a> {
    pub fn begin(proxy: &'a Proxy, peer: &'a Peer) -> Self {
        let id = getrandom::u64().unwrap_or_default();
        let record = peer.begin_record(id, Flow::Egress, Method::Connect, ENDPOINT);
        let (record, contact) = (RefCell::new(Some(record)), RefCell::default());
        let started = Instant::now();
        Self { proxy, peer, id, record, contact, flowed: Flowed::new(), started, _open: proxy.metrics.open() }
    }

    /// Notes something.
    pub fn note(&self, note: impl FnOnce(&mut AccessRecord)) {
        if let Some(record) = &mut *self.record.borrow_mut() {
            note(record);
        }
    }

    /// Notes where to.
    pub fn contacts(&self, contact: Contact) {
        self.contact.replace(Some(contact));
    }

    /// Notes what came of it.
    pub fn came_to(&self, outcome: Tunnel, decision: Decision, rule: Option<&'static str>) {
        self.proxy.metrics.outcome(outcome);
        self.note(|record| {
            record.decision = decision;
            record.rule = rule;
        });
    }

    /// That this rule leaves no way to this host.
    pub fn event(&self, rule: &'static str, host: &Host) -> Event {
        Event {
            rule,
            action: "deny",
            mode: Mode::Enforce,
            flow: Flow::Egress,
            endpoint: ENDPOINT,
            id: self.id,
            client: None,
            user: None,
            host: Some(host.clone()),
        }
    }

    /// Notes that the tunnel carries from now on, whose other end was connected to after so long.
    pub fn carries(&self, connected_us: u64) {
        self.came_to(Tunnel::Open, Decision::Permit, None);
        self.note(|record| {
            record.upstream = Some(Arc::clone(&self.proxy.upstream));
            record.upstream_us = Some(connected_us);
        });
        let contact = self.contact.take();
        self.contact.replace(contact.map(|contact| self.proxy.ledger.opened(contact)));
    }

    /// Leaves the record to those who ask inside.
    pub fn goes_on(&self, outcome: Tunnel) {
        self.proxy.metrics.outcome(outcome);
        self.record.take();
    }

    /// What moves in the tunnel.
    pub fn flowed(&self) -> &Flowed {
        &self.flowed
    }

    /// Says that there is a tunnel now.
    pub async fn open(&self, io: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        self.note(|record| record.status = 200);
        timeout(LAST_WORD, io.write_all(OPEN)).await?
    }

    /// Says that there is none. Whether it arrives is the client's affair.
    pub async fn answer(&self, io: &mut (impl AsyncWrite + Unpin), answer: &Answer, rule: Option<&'static str>) {
        self.note(|record| record.status = answer.status().as_u16());
        let _ = write(io, answer, rule).await;
    }

    /// Since it was asked for.
    pub fn elapsed_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        record.duration_us = self.elapsed_us();
        // What nobody noted a decision of came to nothing, wherever it was left.
        if record.decision == Decision::Cancelled {
            self.proxy.metrics.outcome(Tunnel::Cancelled);
        }
        (record.bytes_in, record.bytes_out) = (self.flowed.out(), self.flowed.back());
        self.proxy.metrics.bytes(Direction::Out, record.bytes_in);
        self.proxy.metrics.bytes(Direction::In, record.bytes_out);
        self.peer.listener.request(record.flow, record.status);
        if let Some(contact) = self.contact.take() {
            self.proxy.ledger.exchanged(contact, &record);
        }
        self.proxy.access.submit(record);
    }
}

/// Writes an answer past the HTTP library, which knows of no request, and ends the connection.
pub(super) async fn write(
    io: &mut (impl AsyncWrite + Unpin),
    answer: &Answer,
    rule: Option<&'static str>,
) -> io::Result<()> {
    let mut bytes = BytesMut::new();
    let status = answer.status();
    let line = format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("Other"));
    bytes.put_slice(line.as_bytes());
    let mut field = |name: &str, value: &[u8]| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            bytes.put_slice(part);
        }
    };
    for (name, value) in answer.headers() {
        field(name.as_str(), value.as_bytes());
    }
    if let Some(rule) = rule {
        field(RULE.as_str(), rule.as_bytes());
    }
    field("content-length", answer.body().len().to_string().as_bytes());
    field("connection", b"close");
    bytes.put_slice(b"\r\n");
    bytes.put_slice(answer.body());
    timeout(LAST_WORD, async {
        io.write_all(&bytes).await?;
        io.shutdown().await
    })
    .await?
}

/// What records call a tunnel, which is no endpoint.
const ENDPOINT: &str = crate::policy::egress::TUNNEL;
/// Synapse wants this status and no other.
const OPEN: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
const LAST_WORD: Duration = Duration::from_secs(1);
