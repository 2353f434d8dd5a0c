//! Other servers as a test plays them: names, certificates, and what answers behind both. All of it on this machine.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use mantlet_testkit::certificate::{Authority, Leaf};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::LazyConfigAcceptor;

/// A name server that knows what it is told, and remembers what it was asked.
pub struct Dns {
    addr: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
    stop: Arc<UdpSocket>,
}

/// What a name server knows.
#[derive(Default)]
struct Zone {
    records: HashMap<String, Vec<RData>>,
    /// Names that are something else each time; what is said last is said again.
    turning: HashMap<String, VecDeque<RData>>,
}

impl Dns {
    /// Listens on a free port.
    pub fn start() -> Dns {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let addr = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (zone_here, asked_here, weak) = (Arc::clone(&zone), Arc::clone(&asked), Arc::downgrade(&socket));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // It ends with the test that holds the socket.
            while let Some(socket) = weak.upgrade() {
                let Ok((read, from)) = socket.recv_from(&mut buffer) else { continue };
                let Ok(query) = Message::from_vec(&buffer[..read]) else { continue };
                let answer = answer(&query, &mut zone_here.lock().unwrap(), &mut asked_here.lock().unwrap());
                let _ = socket.send_to(&answer.to_vec().unwrap(), from);
            }
        });
        Dns { addr, zone, asked, stop: socket }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        let _still_open = &self.stop;
        self.addr
    }

    /// A name has this address, too.
    pub fn address(&self, name: &str, address: &str) {
        let data = match address.parse().unwrap() {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        self.add(name, data);
    }

    /// A name is the first of these IPv4 addresses when it is asked for first, then the next.
    pub fn turns(&self, name: &str, addresses: &[&str]) {
        let all = addresses.iter().map(|address| RData::A(A(address.parse().unwrap()))).collect();
        self.zone.lock().unwrap().turning.insert(name.to_ascii_lowercase(), all);
    }

    /// A name is another name.
    pub fn alias(&self, name: &str, other: &str) {
        self.add(name, RData::CNAME(CNAME(fqdn(other))));
    }

    /// A service is there, too.
    pub fn service(&self, name: &str, priority: u16, target: &str, port: u16) {
        self.add(name, RData::SRV(SRV::new(priority, 10, port, fqdn(target))));
    }

    fn add(&self, name: &str, data: RData) {
        self.zone.lock().unwrap().records.entry(name.to_ascii_lowercase()).or_default().push(data);
    }

    /// Forgets all that a name is.
    pub fn remove(&self, name: &str) {
        self.zone.lock().unwrap().records.remove(name);
    }

    /// The names that were asked for, each with what of it.
    pub fn asked(&self) -> Vec<(String, RecordType)> {
        self.asked.lock().unwrap().clone()
    }
}

fn fqdn(name: &str) -> Name {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    name
}

fn answer(query: &Message, zone: &mut Zone, asked: &mut Vec<(String, RecordType)>) -> Message {
    let mut answer = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    let Some(question) = query.queries.first() else { return answer };
    answer.add_query(question.clone());
    let mut name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    asked.push((name.clone(), question.query_type()));
    let mut is_known = false;
    if let Some(turning) = zone.turning.get_mut(&name) {
        is_known = true;
        if question.query_type() == RecordType::A
            && let Some(data) = if turning.len() > 1 { turning.pop_front() } else { turning.front().cloned() }
        {
            answer.add_answer(Record::from_rdata(fqdn(&name), 0, data));
        }
    }
    // However long a chain of names is, or if it has no end.
    for _ in 0..16 {
        let Some(all) = zone.records.get(&name) else { break };
        is_known = true;
        for data in all.iter().filter(|data| data.record_type() == question.query_type()) {
            answer.add_answer(Record::from_rdata(fqdn(&name), 0, data.clone()));
        }
        let Some(RData::CNAME(CNAME(other))) = all.iter().find(|data| data.record_type() == RecordType::CNAME) else {
            break;
        };
        answer.add_answer(Record::from_rdata(fqdn(&name), 0, RData::CNAME(CNAME(other.clone()))));
        name = other.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    }
    if !is_known {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    answer
}

/// A client's TLS on this stream, with whoever has a certificate of this authority for this name.
pub fn tls(
    stream: std::net::TcpStream,
    name: &str,
    authority: &str,
) -> StreamOwned<ClientConnection, std::net::TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

/// Ends TLS in front of a plain server, with a certificate for some names.
pub struct TlsFront {
    addr: SocketAddr,
    names: Arc<Mutex<Vec<String>>>,
    _stop: oneshot::Sender<()>,
}

impl TlsFront {
    /// Listens at this address, on a free port where it is 0.
    pub fn start(authority: &Authority, names: &[&str], at: SocketAddr, plain: SocketAddr) -> TlsFront {
        Self::try_start(authority, names, at, plain).unwrap()
    }

    /// The same, where the port may be taken.
    pub fn try_start(
        authority: &Authority,
        names: &[&str],
        at: SocketAddr,
        plain: SocketAddr,
    ) -> std::io::Result<TlsFront> {
        let socket = std::net::TcpListener::bind(at)?;
        socket.set_nonblocking(true)?;
        let addr = socket.local_addr()?;
        let config = Arc::new(config(&authority.issue(names).unwrap()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel::<()>();
        let seen_here = Arc::clone(&seen);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(socket).unwrap();
                let serve = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(splice(stream, Arc::clone(&config), plain, Arc::clone(&seen_here)));
                    }
                };
                tokio::select! { () = serve => {}, _ = stopped => {} }
            });
        });
        Ok(TlsFront { addr, names: seen, _stop: stop })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The names that were asked for in TLS, one a connection; an empty one where there was none.
    pub fn names(&self) -> Vec<String> {
        self.names.lock().unwrap().clone()
    }
}

/// TLS with this certificate.
pub fn config(leaf: &Leaf) -> rustls::ServerConfig {
    let chain = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    builder.with_no_client_auth().with_single_cert(chain, key).unwrap()
}

async fn splice(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    plain: SocketAddr,
    names: Arc<Mutex<Vec<String>>>,
) {
    let Ok(start) = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await else { return };
    names.lock().unwrap().push(start.client_hello().server_name().unwrap_or_default().to_owned());
    let Ok(mut tls) = start.into_stream(config).await else { return };
    let Ok(mut plain) = TcpStream::connect(plain).await else { return };
    let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
}

/// A server of HTTP/2 and nothing else.
pub struct H2Server {
    addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    _stop: oneshot::Sender<()>,
}

/// What a server of HTTP/2 saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How many connections there were.
    pub connections: usize,
    /// Each request: its method and target, its fields, and how long its body was.
    pub requests: Vec<(String, http::HeaderMap, usize)>,
}

impl H2Server {
    /// Listens at this address, and answers everything with `{}`.
    pub fn start(authority: &Authority, names: &[&str], at: SocketAddr) -> H2Server {
        let socket = std::net::TcpListener::bind(at).unwrap();
        socket.set_nonblocking(true).unwrap();
        let addr = socket.local_addr().unwrap();
        let mut config = config(&authority.issue(names).unwrap());
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let here = Arc::clone(&seen);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(socket).unwrap();
                let serve = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(serve_h2(stream, acceptor.clone(), Arc::clone(&here)));
                    }
                };
                tokio::select! { () = serve => {}, _ = stopped => {} }
            });
        });
        H2Server { addr, seen, _stop: stop }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it saw.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve_h2(stream: TcpStream, acceptor: tokio_rustls::TlsAcceptor, seen: Arc<Mutex<Seen>>) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    seen.lock().unwrap().connections += 1;
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            let length = http_body_util::BodyExt::collect(body).await?.to_bytes().len();
            seen.lock().unwrap().requests.push((format!("{} {}", head.method, head.uri), head.headers, length));
            let mut response = http::Response::new(http_body_util::Full::new(bytes::Bytes::from_static(b"{}")));
            response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
            Ok::<_, hyper::Error>(response)
        }
    });
    let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    let _ = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
}
