//! 1 Notes what became of every exchange, once: answered, refused, failed, or given up by the client.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::{Arrival, Client, Come, Peer};
use crate::error::Error;
use crate::ledger::{Contact, Ledger};
use crate::matrix::Flow;
use crate::matrix::endpoint::Endpoint;
use crate::message::Body;
use crate::message::request::BodyFlow;
use crate::observe::access::{AccessRecord, Decision, Method, Network, Writer};
use crate::observe::metrics::{Counted, Metrics};

/// Makes [`Record`].
pub struct RecordLayer {
    metrics: Arc<Metrics>,
    access: Arc<Writer>,
    ledger: Arc<Ledger>,
}

/// Begins and ends the record of each exchange.
pub struct Record<S> {
    inner: S,
    books: Rc<Books>,
}

/// Where records and counts go.
struct Books {
    metrics: Arc<Metrics>,
    access: Arc<Writer>,
    ledger: Arc<Ledger>,
    ids: Cell<u64>,
}

/// What is noted of one exchange while it lasts. Written when the last byte is sent, or when nobody waits for it any more.
pub struct Facts {
    record: RefCell<AccessRecord>,
    endpoint: Cell<Endpoint>,
    /// Whom Synapse asks, at the doors of the way out.
    contact: RefCell<Option<Box<Contact>>>,
    body: Rc<BodyFlow>,
    started: Instant,
    peer: Rc<Peer>,
    books: Rc<Books>,
    _in_flight: Counted,
}

impl RecordLayer {
    /// A layer that counts here, writes there, and notes in this ledger whom Synapse asked.
    pub fn new(metrics: Arc<Metrics>, access: Arc<Writer>, ledger: Arc<Ledger>) -> Self {
        Self { metrics, access, ledger }
    }
}

impl<S> Layer<S> for RecordLayer {
    type Service = Record<S>;

    fn layer(&self, inner: S) -> Record<S> {
        // Ids of one process never meet: each worker begins at a place of its own, far from the others.
        let ids = Cell::new(getrandom::u64().unwrap_or_default());
        let (metrics, access, ledger) = (Arc::clone(&self.metrics), Arc::clone(&self.access), Arc::clone(&self.ledger));
        let books = Books { metrics, access, ledger, ids };
        Record { inner, books: Rc::new(books) }
    }
}

impl<'a, S> Service<Come> for &'a Record<S>
where
    &'a S: Service<Arrival<Box<Request<Incoming>>>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<RecordedBody>;
    type Error = Infallible;
    type Future = RecordFuture<<&'a S as Service<Arrival<Box<Request<Incoming>>>>>::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (request, peer, cut_by): Come) -> Self::Future {
        let named = peer.hops.as_ref().map(|hops| Box::new(Client::named_by(&peer.client, hops, request.headers())));
        if let Some(hint) = peer.hint {
            hint.look(request.headers());
        }
        let network = named.as_deref().unwrap_or(&peer.client).network;
        let facts = Rc::new(Facts::begin(&request, network, Rc::clone(&peer), Rc::clone(&self.books)));
        let arrival = Arrival { request: Box::new(request), peer, named, facts: Rc::clone(&facts), cut_by };
        RecordFuture { inner: (&self.inner).call(arrival), facts: Some(facts) }
    }
}

pin_project! {
    /// Waits for the head of the response; dropped earlier, the exchange is recorded as given up.
    pub struct RecordFuture<F> {
        #[pin]
        inner: F,
        facts: Option<Rc<Facts>>,
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for RecordFuture<F> {
    type Output = Result<Response<RecordedBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(cx));
        let facts = this.facts.take();
        if let Some(facts) = &facts {
            facts.note(|record| record.status = response.status().as_u16());
        }
        Poll::Ready(Ok(response.map(|body| RecordedBody { body, facts })))
    }
}

/// A response's body, whose end is the end of the record.
pub struct RecordedBody {
    body: Body,
    facts: Option<Rc<Facts>>,
}

impl http_body::Body for RecordedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(facts) = &self.facts {
            match &frame {
                Some(Ok(frame)) => {
                    facts.note(|record| record.bytes_out += frame.data_ref().map_or(0, |d| d.len() as u64))
                }
                Some(Err(_)) => facts.note(|record| {
                    record.decision = Decision::Error;
                    record.error = Some("cut");
                }),
                None => {}
            }
        }
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.facts = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        // A HEAD's body is never asked for, and an empty one neither; what still had bytes to give was given up.
        if let Some(facts) = self.facts.take()
            && !self.body.is_end_stream()
            && !facts.is_head()
        {
            facts.note(|record| record.decision = Decision::Cancelled);
        }
    }
}

impl Facts {
    fn begin(request: &Request<Incoming>, network: Network, peer: Rc<Peer>, books: Rc<Books>) -> Self {
        let endpoint = Endpoint::Unserved;
        let record = peer.begin_record(books.next_id(), Flow::Client, request.method().into(), endpoint.id());
        let record = AccessRecord { network, ..record };
        peer.pace.begin();
        Self {
            record: RefCell::new(record),
            endpoint: Cell::new(endpoint),
            contact: RefCell::default(),
            body: Rc::default(),
            started: Instant::now(),
            _in_flight: books.metrics.request_in_flight(),
            peer,
            books,
        }
    }

    /// Notes something.
    pub fn note(&self, note: impl FnOnce(&mut AccessRecord)) {
        note(&mut self.record.borrow_mut());
    }

    /// Notes whom Synapse asks.
    pub fn contacts(&self, contact: Contact) {
        self.contact.replace(Some(Box::new(contact)));
    }

    /// Notes something more of it.
    pub fn contact(&self, note: impl FnOnce(Contact) -> Contact) {
        if let Some(contact) = &mut *self.contact.borrow_mut() {
            **contact = note(Contact::clone(contact));
        }
    }

    /// Notes what the request asks for.
    pub fn classified(&self, endpoint: Endpoint, flow: Flow) {
        self.endpoint.set(endpoint);
        self.note(|record| {
            record.endpoint = endpoint.id();
            record.flow = flow;
        });
    }

    /// What the request asks for, once it is known.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint.get()
    }

    /// The request's id.
    pub fn id(&self) -> u64 {
        self.record.borrow().id
    }

    /// What flows of the request's body.
    pub fn body(&self) -> &Rc<BodyFlow> {
        &self.body
    }

    /// How long the exchange lasts so far.
    pub fn elapsed_us(&self) -> u64 {
        us(self.started.elapsed())
    }

    fn is_head(&self) -> bool {
        self.record.borrow().method == Method::Head
    }
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Drop for Facts {
    fn drop(&mut self) {
        let mut record = self.record.borrow().clone();
        if record.status == 0 {
            // Whatever was decided, nobody waited for it.
            record.decision = Decision::Cancelled;
        }
        let took = self.started.elapsed();
        record.duration_us = us(took);
        record.bytes_in = self.body.bytes();
        let metrics = &self.books.metrics;
        self.peer.listener.request(record.flow, record.status);
        if record.flow.is_inbound() {
            metrics.endpoint_request(self.endpoint.get().index(), record.status);
        }
        metrics.request_duration(record.flow, took);
        if self.endpoint.get().is_unknown() {
            metrics.unknown_endpoint(record.flow);
        }
        if let Some(contact) = self.contact.take() {
            self.books.ledger.exchanged(*contact, &record);
        }
        self.books.access.submit(record);
        self.peer.pace.end();
    }
}

impl Books {
    fn next_id(&self) -> u64 {
        // An odd step visits all 2^64 values, and neighbours look nothing alike.
        let id = self.ids.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.ids.set(id);
        id
    }
}
