use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::*;
use crate::observe::metrics::Metrics;

const PATIENCE: Duration = Duration::from_secs(20);

fn record() -> AccessRecord {
    AccessRecord {
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_000_000_123),
        id: 0xab,
        flow: Flow::Client,
        listener: "public".into(),
        method: Method::Get,
        endpoint: "get_public_rooms",
        protocol: Protocol::H2,
        tls: true,
        status: 401,
        rule: Some("public_rooms"),
        decision: Decision::Deny,
        mode: Mode::Enforce,
        token: Token::Invalid,
        network: Network::Public,
        error: None,
        bytes_in: 0,
        bytes_out: 63,
        duration_us: 215,
        upstream: None,
        upstream_us: None,
        generation: 7,
    }
}

fn metrics() -> Arc<Metrics> {
    Metrics::new(&["get_public_rooms"])
}

/// Shows the test each write, in whole.
struct Told(Sender<Vec<u8>>);

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn told() -> (Box<Told>, Receiver<Vec<u8>>) {
    let (sender, writes) = channel();
    (Box::new(Told(sender)), writes)
}

fn all(writes: &Receiver<Vec<u8>>) -> String {
    String::from_utf8(writes.try_iter().flatten().collect()).unwrap()
}

#[test]
fn writes_these_fields_in_this_order_and_no_others() {
    let mut line = Vec::new();
    json::line(&record(), &mut line);
    let expected = concat!(
        r#"{"time":"2025-11-24T16:00:00.123Z","id":"00000000000000ab","flow":"client","listener":"public","#,
        r#""method":"GET","endpoint":"get_public_rooms","protocol":"h2","tls":true,"status":401,"#,
        r#""rule":"public_rooms","decision":"deny","mode":"enforce","token":"invalid","network":"public","#,
        r#""error":null,"bytes_in":0,"bytes_out":63,"duration_us":215,"upstream":null,"upstream_us":null,"generation":7}"#,
        "\n"
    );
    assert_eq!(String::from_utf8(line).unwrap(), expected);
}

#[test]
fn every_record_is_the_json_that_a_library_reads() {
    let odd = "a\"b\\c\nd\u{e9}\u{1}";
    let record = AccessRecord {
        listener: odd.into(),
        upstream: Some("synapse".into()),
        upstream_us: Some(u64::MAX),
        error: Some("cut"),
        rule: None,
        tls: false,
        id: u64::MAX,
        ..record()
    };
    let mut line = Vec::new();
    json::line(&record, &mut line);
    let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!((&read["listener"], &read["upstream"]), (&odd.into(), &"synapse".into()));
    assert_eq!((&read["upstream_us"], &read["id"]), (&u64::MAX.into(), &"ffffffffffffffff".into()));
    assert_eq!((&read["error"], &read["tls"]), (&"cut".into(), &false.into()));
    assert!(read["rule"].is_null());
}

#[test]
fn text_has_aligned_columns_and_then_pairs() {
    let mut lines = Vec::new();
    text(&record(), &mut lines);
    let long = AccessRecord { flow: Flow::Federation, decision: Decision::Cancelled, status: 0, ..record() };
    text(
        &AccessRecord { upstream: Some("media".into()), upstream_us: Some(12), error: Some("connect"), ..long },
        &mut lines,
    );
    let lines = String::from_utf8(lines).unwrap();
    let (first, second) = lines.trim_end().split_once('\n').unwrap();
    assert_eq!(
        first,
        "2025-11-24T16:00:00.123Z client     deny      401 GET     get_public_rooms                         \
         id=00000000000000ab listener=public protocol=h2 tls=true rule=public_rooms mode=enforce token=invalid \
         network=public error=- bytes_in=0 bytes_out=63 duration_us=215 upstream=- upstream_us=- generation=7"
    );
    assert_eq!(first.find(" id="), second.find(" id="));
    assert!(second.contains(" error=connect ") && second.contains(" upstream=media upstream_us=12 "), "{second}");
}

#[test]
fn a_listener_name_cannot_look_like_a_field_or_a_line() {
    let mut line = Vec::new();
    text(&AccessRecord { listener: "a\nb tls=false".into(), ..record() }, &mut line);
    let line = String::from_utf8(line).unwrap();
    assert!(line.contains(r#" listener="a\nb tls=false" protocol=h2 tls=true "#), "{line}");
    assert_eq!(line.matches('\n').count(), 1);
}

#[test]
fn writes_what_was_submitted_in_order() {
    let (destination, writes) = told();
    let metrics = metrics();
    let writer = Writer::start(Format::Json, destination, 100, &metrics).unwrap();
    for id in 0..50 {
        writer.submit(AccessRecord { id, ..record() });
    }
    writer.flush(PATIENCE).unwrap();
    let text = all(&writes);
    let ids: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, (0..50).map(|id| format!("{id:016x}")).collect::<Vec<_>>());
}

#[test]
fn many_records_are_one_write() {
    let (destination, writes) = told();
    let (gate, destination) = gated(destination);
    let writer = Writer::start(Format::Text, destination, 100, &metrics()).unwrap();
    writer.submit(record());
    gate.wait_until_writing();
    for _ in 0..20 {
        writer.submit(record());
    }
    gate.open();
    writer.flush(PATIENCE).unwrap();
    let lines: Vec<_> = writes.try_iter().map(|write| write.iter().filter(|b| **b == b'\n').count()).collect();
    assert_eq!(lines, [1, 20]);
}

#[test]
fn dropping_the_writer_writes_the_rest() {
    let (destination, writes) = told();
    let writer = Writer::start(Format::Json, destination, 100, &metrics()).unwrap();
    writer.submit(record());
    drop(writer);
    assert_eq!(all(&writes).lines().count(), 1);
}

#[test]
fn off_writes_nothing() {
    let (destination, writes) = told();
    let metrics = metrics();
    let writer = Writer::start(Format::Off, destination, 1, &metrics).unwrap();
    writer.submit(record());
    writer.submit(record());
    writer.flush(Duration::ZERO).unwrap();
    assert_eq!(all(&writes), "");
    assert_eq!(metrics.access_records_dropped.get(), 0);
}

#[test]
fn a_hanging_destination_costs_records_and_not_requests() {
    let (destination, writes) = told();
    let (gate, destination) = gated(destination);
    let metrics = metrics();
    let writer = Writer::start(Format::Json, destination, 4, &metrics).unwrap();
    writer.submit(record());
    gate.wait_until_writing();
    for _ in 0..10 {
        writer.submit(record());
    }
    assert_eq!(metrics.access_records_dropped.get(), 6);
    assert_eq!(writer.flush(Duration::ZERO).unwrap_err().kind(), io::ErrorKind::TimedOut);
    gate.open();
    writer.flush(PATIENCE).unwrap();
    assert_eq!(all(&writes).lines().count(), 5);
}

#[test]
fn a_full_disk_is_counted_and_its_records_are_written_later_whole() {
    let (destination, writes) = told();
    let room = Arc::new(Mutex::new(10));
    let metrics = metrics();
    let full = Full { room: room.clone(), then: destination };
    let writer = Writer::start(Format::Json, Box::new(full), 100, &metrics).unwrap();
    writer.submit(record());
    assert_eq!(writer.flush(PATIENCE).unwrap_err().kind(), io::ErrorKind::WriteZero);
    assert!(metrics.access_write_errors.get() >= 1);
    assert_eq!(all(&writes), r#"{"time":"2"#);
    *room.lock().unwrap() = usize::MAX;
    writer.submit(AccessRecord { id: 0xcd, ..record() });
    writer.flush(PATIENCE).unwrap();
    let rest = all(&writes);
    assert!(rest.starts_with("025-11-24T"), "{rest}");
    assert_eq!(rest.lines().count(), 2);
    assert_eq!(metrics.access_records_dropped.get(), 0);
}

#[test]
fn a_disk_that_stays_full_does_not_fill_the_memory() {
    let (destination, writes) = told();
    let metrics = metrics();
    let full = Full { room: Arc::default(), then: destination };
    let writer = Writer::start(Format::Json, Box::new(full), 10_000, &metrics).unwrap();
    let listener: Arc<str> = "l".repeat(1000).into();
    for _ in 0..2_000 {
        writer.submit(AccessRecord { listener: listener.clone(), ..record() });
    }
    writer.flush(PATIENCE).unwrap_err();
    let dropped = metrics.access_records_dropped.get();
    assert!((1_000..1_500).contains(&dropped), "{dropped}");
    // Refused once a round, however many records.
    assert!(metrics.access_write_errors.get() < 50);
    assert_eq!(all(&writes), "");
}

#[test]
fn a_method_that_a_client_invents_is_other() {
    assert_eq!(Method::from(&http::Method::PUT), Method::Put);
    assert_eq!(Method::from(&http::Method::from_bytes(b"SECRET").unwrap()), Method::Other);
    assert_eq!(Method::from(&http::Method::from_bytes(b"other").unwrap()), Method::Other);
    assert_eq!(Method::from(&http::Method::CONNECT), Method::Connect);
}

#[test]
fn an_address_is_written_as_its_class() {
    let class = |address: &str| Network::from(address.parse::<IpAddr>().unwrap());
    for loopback in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(class(loopback), Network::Loopback, "{loopback}");
    }
    for private in ["10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.1.1", "100.64.0.1", "fd00::1", "fe80::1"] {
        assert_eq!(class(private), Network::Private, "{private}");
    }
    assert_eq!(class("::ffff:10.0.0.1"), Network::Private);
    for public in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:4860::1", "::ffff:8.8.8.8"] {
        assert_eq!(class(public), Network::Public, "{public}");
    }
}

/// A destination that hangs in its first write until the test opens it.
struct Gated {
    gate: Arc<Gate>,
    then: Box<Told>,
}

#[derive(Default)]
struct Gate {
    /// Whether a write has begun, and whether it may go on.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn wait_until_writing(&self) {
        drop(self.changed.wait_while(self.state.lock().unwrap(), |(writing, _)| !*writing).unwrap());
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

fn gated(then: Box<Told>) -> (Arc<Gate>, Box<Gated>) {
    let gate = Arc::new(Gate::default());
    (gate.clone(), Box::new(Gated { gate, then }))
}

impl Write for Gated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.gate.state.lock().unwrap();
        state.0 = true;
        self.gate.changed.notify_all();
        drop(self.gate.changed.wait_while(state, |(_, open)| !*open).unwrap());
        self.then.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk with so much room.
struct Full {
    room: Arc<Mutex<usize>>,
    then: Box<Told>,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.room.lock().unwrap();
        if *room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let taken = bytes.len().min(*room);
        *room -= taken;
        self.then.write(&bytes[..taken])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
