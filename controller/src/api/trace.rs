//! Names every request: in the log, in its answer, in problems and in the audit record.
//!
//! A client that has a trace of its own (W3C Trace Context) finds its id in all of them.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tracing::Instrument as _;
use uuid::Uuid;

/// Names the request in its answer.
const REQUEST: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    /// That of the request this task answers.
    static CURRENT: Trace;
}

/// The names of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trace {
    /// Its own; no other request has it.
    pub(super) request: Uuid,
    /// That of all that its client did with it; the request's own when the client named none.
    pub(super) trace: Uuid,
}

impl Trace {
    fn of(headers: &HeaderMap) -> Self {
        let request = Uuid::now_v7();
        let given = headers.get("traceparent").and_then(|value| value.to_str().ok()).and_then(trace_id);
        Self { request, trace: given.unwrap_or(request) }
    }

    /// That of the request this task answers; a fresh one outside of requests.
    pub(super) fn present() -> Self {
        CURRENT.try_with(|trace| *trace).unwrap_or_else(|_| Self::of(&HeaderMap::new()))
    }

    /// Has `work` done under these names, on whatever task.
    pub(super) async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    /// The trace's id as its standard writes it: 32 hexadecimal digits.
    pub(super) fn id(&self) -> String {
        self.trace.simple().to_string()
    }
}

/// The trace's id in a `traceparent` (W3C Trace Context, 3.2): `00-TRACE-PARENT-FLAGS`, and
/// whatever later versions add behind.
fn trace_id(traceparent: &str) -> Option<Uuid> {
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let mut parts = traceparent.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let sound = hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && hex(parent, 16)
        && hex(flags, 2)
        && (version != "00" || parts.next().is_none());
    Uuid::try_parse(trace).ok().filter(|id| sound && !id.is_nil())
}

/// Names a request for all that answers it.
pub(super) async fn named(request: Request, next: Next) -> Response {
    let trace = Trace::of(request.headers());
    let span = tracing::info_span!(
        "request",
        id = %trace.request,
        trace = %trace.id(),
        method = %request.method(),
        path = request.uri().path(),
    );
    let mut response = trace.scope(next.run(request).instrument(span)).await;
    let name = HeaderValue::from_str(&trace.request.to_string()).expect("a UUID is a header's value");
    response.headers_mut().insert(REQUEST, name);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_taken_over_when_it_is_one() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let known = |text: &str| trace_id(text).map(|id| id.simple().to_string());
        assert_eq!(known(&format!("00-{trace}-00f067aa0ba902b7-01")).as_deref(), Some(trace));
        assert_eq!(known(&format!("cc-{trace}-00f067aa0ba902b7-01-what-comes")).as_deref(), Some(trace));
        for wrong in [
            "",
            "00",
            &format!("ff-{trace}-00f067aa0ba902b7-01"),
            &format!("00-{trace}-00f067aa0ba902b7-01-more"),
            &format!("00-{trace}-00f067aa0ba902b7"),
            &format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-{4bf92f35-77b3-4da6-a3ce-929d0e0e}-00f067aa0ba902b7-01",
        ] {
            assert_eq!(known(wrong), None, "{wrong}");
        }
    }
}
