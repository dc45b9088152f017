//! `Dry-Run: true`: a request is carried out in full, and what it did is taken back.
//!
//! Checks, refusals and answers are those of the request itself, since it is carried out by the
//! same code; ids, codes and addresses in the answer are nobody's.

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue, Method},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{App, Error};
use crate::store;

pub(super) const DRY_RUN: HeaderName = HeaderName::from_static("dry-run");

/// What cannot be tried, since it is more than what a transaction takes back; and why.
const NEVER: &[(Method, &str, &str)] = &[
    (Method::PUT, "/v1/images/{image}", "an upload cannot be tried: its bytes would have to be sent and kept"),
    (
        Method::PUT,
        "/v1/firmware/{firmware}/file",
        "an upload cannot be tried: its bytes would have to be sent and kept",
    ),
    (Method::POST, "/v1/login", ITSELF),
    (Method::POST, "/v1/login/oidc", BROWSER),
    (Method::POST, "/v1/login/oidc/finish", BROWSER),
    (Method::PUT, "/v1/password", ITSELF),
    (Method::POST, "/v1/totp", ITSELF),
    (Method::POST, "/v1/totp/confirm", ITSELF),
    (Method::POST, "/v1/totp/remove", ITSELF),
];

const ITSELF: &str = "a password or code cannot be tried: whether it is right is what would be learnt";

const BROWSER: &str = "a login by OpenID Connect cannot be tried: a code is good for once";

/// Whether this operation can be tried.
pub(super) fn can_be_tried(method: &Method, path: &str) -> bool {
    *method != Method::GET && !NEVER.iter().any(|(never, at, _)| never == method && *at == path)
}

/// Carries a request out without anything of it being kept, if that is what it asks for.
pub(super) async fn tried(request: Request, next: Next) -> Response {
    match wanted(&request) {
        Ok(false) => next.run(request).await,
        Ok(true) => {
            let mut response = store::dry_run(next.run(request)).await;
            response.headers_mut().insert(DRY_RUN, HeaderValue::from_static("true"));
            response
        }
        Err(error) => error.into_response(),
    }
}

fn wanted(request: &Request) -> Result<bool, Error> {
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let mut values = request.headers().get_all(DRY_RUN).iter().filter(|_| !reads);
    let wanted = match (values.next().map(HeaderValue::as_bytes), values.next()) {
        (None, _) | (Some(b"false"), None) => false,
        (Some(b"true"), None) => true,
        _ => return Err(Error::invalid("Dry-Run", "is `true` or `false`")),
    };
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str).unwrap_or_default();
    match NEVER.iter().find(|(method, at, _)| wanted && method == request.method() && *at == path) {
        Some((.., why)) => Err(Error::invalid("Dry-Run", why)),
        None => Ok(wanted),
    }
}

/// The same application, which wakes and cuts nobody for what is only tried.
pub(super) fn careful(app: App) -> App {
    let (changed, cut) = (app.changed, app.cut);
    App {
        changed: std::sync::Arc::new(move |rack| {
            if !store::is_dry_run() {
                changed(rack);
            }
        }),
        cut: std::sync::Arc::new(move |agent| {
            if !store::is_dry_run() {
                cut(agent);
            }
        }),
        ..app
    }
}
