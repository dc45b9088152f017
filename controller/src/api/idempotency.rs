//! `Idempotency-Key`: a POST that is asked again with its key does nothing again and is answered
//! as it was the first time (draft-ietf-httpapi-idempotency-key-header).

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::Instrument as _;

use super::{
    App, Caller, Error, TIMEOUT,
    extract::{MAX_BODY, too_long},
    trace::Trace,
};
use crate::store::{KeyedRequest, Known, is_dry_run};

pub(super) const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Says that an answer is the one that was given before.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The longest key, in bytes.
pub(super) const MAX_KEY: usize = 255;

/// The longest answer that is kept, in bytes.
const MAX_ANSWER: usize = 256 << 10;

/// An answer as it is kept.
#[derive(Serialize, Deserialize)]
struct Answer {
    status: u16,
    content_type: Option<String>,
    location: Option<String>,
    body: String,
}

/// Carries out a POST with a key unless that was done before.
pub(super) async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    let key = match key(request.headers()) {
        // Nothing is done for what is only tried: asked for again it is tried again.
        Ok(Some(key)) if request.method() == Method::POST && !is_dry_run() => key,
        Ok(_) => return next.run(request).await,
        Err(error) => return error.into_response(),
    };
    keyed(app, key, request, next).await.unwrap_or_else(Error::into_response)
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut keys = headers.get_all(KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let text = key.to_str().ok().filter(|key| (1..=MAX_KEY).contains(&key.len()) && keys.next().is_none());
    let text = text.ok_or_else(|| Error::invalid("Idempotency-Key", "is one text of 1 to 255 ASCII letters"))?;
    Ok(Some(text.to_owned()))
}

async fn keyed(app: App, key: String, request: Request, next: Next) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    // Its bounds are those of the bodies that are read without a key.
    let body = tokio::time::timeout(TIMEOUT, to_bytes(body, MAX_BODY)).await.map_err(|_| Error::timeout())?;
    let body = body.map_err(|error| match std::error::Error::source(&error) {
        Some(source) if source.is::<http_body_util::LengthLimitError>() => too_long(),
        _ => Error::malformed(error),
    })?;
    let caller = parts.extensions.get::<Caller>().ok_or_else(|| Error::unauthenticated("a key needs a token"))?;
    let digest = Sha256::new()
        .chain_update(parts.method.as_str())
        .chain_update([0])
        .chain_update(parts.uri.to_string())
        .chain_update([0])
        .chain_update(&body);
    let asked = KeyedRequest { token: caller.token, key, request: digest.finalize().into() };
    let under_way = match app.store.begin_request(app.clock.now().wall, &asked).await? {
        Known::No(under_way) => under_way,
        Known::Begun => return Err(Error::in_progress("this request is being carried out; ask again in a moment")),
        Known::Other => {
            let why = "this key came with another request before; make a fresh one for each thing you want";
            return Err(Error::invalid("Idempotency-Key", why));
        }
        Known::AnswerLost => {
            let why = "this was carried out, and its answer could not be kept: \
                look at what it was about, and use a fresh key to ask for it again";
            return Err(Error::answer_lost(why));
        }
        Known::Answered(answer) => return replay(&answer),
    };
    // A client that goes away, or a request that takes too long, does not stop it half-way.
    let trace = Trace::present();
    let carried_out = async move {
        let work = trace.scope(asked.clone().scope(next.run(Request::from_parts(parts, body.into()))));
        // On a task of its own: one that panics has ended like any other.
        let (response, answer) = match tokio::spawn(work.in_current_span()).await {
            Ok(response) => keep(response).await,
            Err(panicked) => (Error::internal(panicked).into_response(), None),
        };
        if let Err(error) = app.store.end_request(&asked, answer.as_deref()).await {
            // Whoever asks again finds by the mark whether it was carried out.
            tracing::error!(error = &error as &dyn std::error::Error, "cannot keep the answer of a request with a key");
        }
        drop(under_way);
        response
    };
    tokio::spawn(trace.scope(carried_out).in_current_span()).await.map_err(Error::internal)
}

/// The response, and what is to be kept of it: nothing of one that says that it may be asked again.
async fn keep(response: Response) -> (Response, Option<String>) {
    let again = response.status().is_server_error() || response.status() == StatusCode::REQUEST_TIMEOUT;
    let (parts, body) = response.into_parts();
    let body = match to_bytes(body, usize::MAX).await {
        Ok(body) => body,
        Err(error) => return (Error::internal(error).into_response(), None),
    };
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
    let text = String::from_utf8(body.to_vec()).ok().filter(|text| !again && text.len() <= MAX_ANSWER);
    let answer = text.map(|body| Answer {
        status: parts.status.as_u16(),
        content_type: header(header::CONTENT_TYPE),
        location: header(header::LOCATION),
        body,
    });
    let answer = answer.map(|answer| serde_json::to_string(&answer).expect("answers always serialize"));
    (Response::from_parts(parts, body.into()), answer)
}

fn replay(answer: &str) -> Result<Response, Error> {
    let answer: Answer = serde_json::from_str(answer).map_err(Error::internal)?;
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).map_err(Error::internal)?;
    let kept = [(header::CONTENT_TYPE, answer.content_type), (header::LOCATION, answer.location)];
    for (name, value) in kept.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        response.headers_mut().insert(name, HeaderValue::from_str(&value).map_err(Error::internal)?);
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}
