//! What is left of a request that was answered before it was whole (HTTP/1).
//!
//! The next request stands behind it, and a connection that is closed upon it may take the answer with it: a client that still
//! writes is told of a reset, and one that keeps connections, as nginx and Synapse do, may have sent another request by then.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use http_body::Body as _;
use hyper::body::Incoming;

/// Where a connection, which brings one request at a time, finds what nobody wants of it.
#[derive(Debug, Default)]
pub struct Rest {
    is_coming: Cell<bool>,
    left: RefCell<Option<Incoming>>,
    /// Who reads it, once there is something.
    reader: RefCell<Option<Waker>>,
}

impl Rest {
    /// A body begins to come.
    pub fn begin(&self) {
        self.is_coming.set(true);
    }

    /// All of it has come, or nothing more will.
    pub fn end(&self) {
        self.is_coming.set(false);
    }

    /// Nobody wants the rest of it.
    pub fn leave(&self, body: Incoming) {
        self.left.replace(Some(body));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Whether a body is on its way, wanted or not.
    pub fn is_coming(&self) -> bool {
        self.is_coming.get()
    }

    /// Reads what was left. Ready once: when it is over.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_coming() {
            return Poll::Pending;
        }
        let mut left = self.left.borrow_mut();
        let Some(body) = &mut *left else {
            self.reader.replace(Some(cx.waker().clone()));
            return Poll::Pending;
        };
        while let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
            if !matches!(frame, Some(Ok(_))) {
                *left = None;
                self.end();
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}
