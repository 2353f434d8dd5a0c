//! Reads the bodies of requests that a rule has to see, and no other: small ones, bounded, and only of what is permitted.

use http::Request;
use http::header::{CONTENT_LENGTH, HeaderValue};
use http_body::Body as _;

use super::Facts;
use crate::error::{Error, Kind};
use crate::message::RequestBody;
use crate::observe::access;
use crate::policy::{BodyAction, Denial, Mode, Reading};
use crate::snapshot::Generation;

/// Does with the body what these readings say; it is whole in the request then. Gives the refusal, if one of them refuses it.
///
/// What only tells looks at a body that declares its length and is not too large, and leaves every other to flow.
///
/// # Errors
/// [`Kind::TooLarge`], and whatever is wrong with the body.
pub async fn read(
    request: &mut Request<RequestBody>,
    readings: &[&Reading],
    generation: &Generation,
    facts: &Facts,
) -> Result<Option<Denial>, Error> {
    let is_made = |reading: &&Reading| match reading.action {
        BodyAction::UnbindNowhere => generation.leaves.answer_for_unbinding(),
        BodyAction::OnlyIdentityServers(..)
        | BodyAction::OnlyEventIds
        | BodyAction::OnlyPushGateways(_)
        | BodyAction::ReduceNotification
        | BodyAction::WithoutRemoteAddress => true,
    };
    let readings = || readings.iter().copied().filter(is_made);
    let Some(most) = readings().map(|reading| reading.most).max() else { return Ok(None) };
    let fits = |length: u64| usize::try_from(length).is_ok_and(|length| length <= most);
    let has_to = readings().any(|reading| reading.mode == Mode::Enforce);
    if !has_to && !request.body().size_hint().exact().is_some_and(fits) {
        return Ok(None);
    }
    let body = std::mem::replace(request.body_mut(), RequestBody::empty());
    let mut bytes = body.whole_within(most).await?.ok_or_else(|| Error::new(Kind::TooLarge))?;
    for reading in readings() {
        let counters = generation.counters(reading.rule);
        match (reading.action.apply(&bytes), reading.mode) {
            (Ok(None), _) | (_, Mode::Off) => {}
            (Ok(Some(edited)), Mode::Enforce) => {
                request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(edited.len()));
                bytes = edited;
            }
            (Err(why), Mode::Enforce) => return Ok(Some(reading.denial(why))),
            (Ok(Some(_)), Mode::Report) => counters.edit.inc(),
            (Err(_), Mode::Report) => {
                counters.deny.inc();
                facts.note(|record| {
                    record.rule = Some(generation.policy.rule(reading.rule).name);
                    record.mode = access::Mode::Report;
                });
            }
        }
    }
    *request.body_mut() = RequestBody::whole(bytes);
    Ok(None)
}
