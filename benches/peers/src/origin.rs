//! The homeserver's part: a small origin that is quicker than any proxy before it.
//!
//! It answers every request alike, in one write; sends and takes streams; and holds long polls until it is told to let go.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use mantlet_testkit::sample;
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A path whose answer is a stream of bytes, as many as the origin was told.
pub const DOWN: &str = "/_matrix/media/v3/download/example.org/abcdefghijklmnopqrstuvwx";

/// A path to which a body is sent.
pub const UP: &str = "/_matrix/media/v3/upload";

/// A path whose answer waits for [`Origin::release`].
pub const POLL: &str = "/_matrix/client/v3/sync";

/// An origin that serves for as long as its runtime runs.
pub struct Origin {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    ok: Vec<u8>,
    whoami: Vec<u8>,
    stream: usize,
    held: AtomicUsize,
    release: watch::Sender<u64>,
    last: Mutex<Option<Vec<u8>>>,
    whoamis: AtomicUsize,
}

impl Origin {
    /// Listens on a free port; its streams have so many bytes.
    pub async fn start(stream: usize) -> std::io::Result<Origin> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            ok: sample::answer(b"/"),
            whoami: sample::answer(sample::WHOAMI.as_bytes()),
            stream,
            held: AtomicUsize::new(0),
            release: watch::Sender::new(0),
            last: Mutex::new(None),
            whoamis: AtomicUsize::new(0),
        });
        tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Origin { addr, shared })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many long polls it holds.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// Answers all long polls.
    pub fn release(&self) {
        self.shared.release.send_modify(|times| *times += 1);
    }

    /// How often it was asked whose token it is.
    pub fn whoamis(&self) -> usize {
        self.shared.whoamis.load(Ordering::Relaxed)
    }

    /// The head of the latest request that was the first of its connection, once; byte for byte.
    pub fn take_last(&self) -> Option<String> {
        let last = self.shared.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        last.map(|head| String::from_utf8_lossy(&head).into_owned())
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // A proxy that opens too many connections at once is answered when there is room again.
        let Ok((socket, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let _ = socket.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // A connection that breaks is the proxy's to tell.
            let _ = serve(socket, &shared).await;
        });
    }
}

async fn serve(mut socket: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut buffer = BytesMut::with_capacity(4096);
    let mut is_first = true;
    loop {
        let end = loop {
            if let Some(at) = memmem::find(&buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if socket.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = buffer.split_to(end);
        let is = |path: &str| target(&head).starts_with(path.as_bytes());
        // To be looked at; the first of each connection is enough, and costs the others nothing.
        if std::mem::take(&mut is_first) {
            *shared.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(head.to_vec());
        }
        if is(DOWN) {
            send_stream(&mut socket, shared.stream).await?;
        } else if is(UP) {
            take_stream(&mut socket, &mut buffer, &head).await?;
            socket.write_all(&shared.ok).await?;
        } else if is(POLL) {
            let mut released = shared.release.subscribe();
            shared.held.fetch_add(1, Ordering::Relaxed);
            let changed = released.changed().await;
            shared.held.fetch_sub(1, Ordering::Relaxed);
            if changed.is_ok() {
                socket.write_all(&shared.ok).await?;
            }
        } else if is(sample::WHOAMI) {
            shared.whoamis.fetch_add(1, Ordering::Relaxed);
            socket.write_all(&shared.whoami).await?;
        } else {
            socket.write_all(&shared.ok).await?;
        }
    }
}

fn target(head: &[u8]) -> &[u8] {
    head.split(|&byte| byte == b' ').nth(1).unwrap_or_default()
}

async fn send_stream(socket: &mut TcpStream, length: usize) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n");
    socket.write_all(head.as_bytes()).await?;
    let piece = vec![0x5a; PIECE];
    let mut left = length;
    while left > 0 {
        let now = left.min(PIECE);
        socket.write_all(&piece[..now]).await?;
        left -= now;
    }
    Ok(())
}

/// Reads a body that declares its length.
async fn take_stream(socket: &mut TcpStream, buffer: &mut BytesMut, head: &[u8]) -> std::io::Result<()> {
    let length = super::load::content_length(head).ok_or(std::io::ErrorKind::InvalidData)?;
    let mut left = length.saturating_sub(buffer.len());
    buffer.clear();
    let mut piece = vec![0; PIECE];
    while left > 0 {
        match socket.read(&mut piece).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

/// What a stream is written and read in.
pub const PIECE: usize = 128 * 1024;
