//! Gives uploads a length: Synapse refuses one without Content-Length, and a client that speaks HTTP/2 need not send any.

use std::sync::Arc;

use http::Request;
use http_body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Kind};
use crate::matrix::{Classified, Endpoint};
use crate::message::{BoxRequest, RequestBody};

/// Collects the bodies of uploads that declare no length, and nothing else.
#[derive(Clone)]
pub struct Collector {
    most: usize,
    places: Arc<Semaphore>,
}

/// The room that a collected body takes.
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Collector {
    /// Collects bodies of at most this many bytes.
    pub fn new(most: u64) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Self { most, places: Arc::new(Semaphore::new(PLACES)) }
    }

    /// The request as it is, or with its whole body if it is an upload without a length. The place is to be kept while the body
    /// is in memory.
    ///
    /// # Errors
    /// [`Kind::LengthRequired`] if the body is too large to be collected, or too many are being collected; and whatever is wrong
    /// with the body itself.
    pub async fn with_length(&self, request: BoxRequest, classified: Classified) -> Result<(BoxRequest, Place), Error> {
        if !is_upload(classified.raw) || request.body().size_hint().exact().is_some() {
            return Ok((request, Place { _permit: None }));
        }
        let too_much = || Error::new(Kind::LengthRequired);
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| too_much())?;
        let (head, body) = request.into_parts();
        let collected = body.whole_within(self.most).await?.ok_or_else(too_much)?;
        let request = Request::from_parts(head, RequestBody::whole(collected));
        Ok((Box::new(request), Place { _permit: Some(place) }))
    }
}

/// Endpoints where Synapse asks for a length (`synapse/rest/media/upload_resource.py`).
fn is_upload(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::MediaCreateContent | Endpoint::MediaCreateContentAsync)
}

/// Bodies that one worker collects at once.
const PLACES: usize = 64;
