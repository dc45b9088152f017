//! Who may do what: one table of all operations. What is not in it is refused.

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{App, Error};
use crate::store::StoreError;

/// Who may use an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anyone: it tells nothing about the racks.
    Anyone,
    /// The holder of a valid token. (Roles come with tenants; a token is an administrator's.)
    Token,
}

/// Every operation there is.
pub const TABLE: &[(Method, &str, Access)] = &[
    (Method::GET, "/v1/openapi.json", Access::Anyone),
    (Method::GET, "/v1/whoami", Access::Token),
    (Method::GET, "/v1/racks", Access::Token),
    (Method::POST, "/v1/racks", Access::Token),
    (Method::GET, "/v1/racks/{rack}", Access::Token),
    (Method::POST, "/v1/racks/{rack}/enrolment-codes", Access::Token),
    (Method::GET, "/v1/agents", Access::Token),
    (Method::POST, "/v1/agents/{agent}/revoke", Access::Token),
    (Method::POST, "/v1/agents/{agent}/replace", Access::Token),
    (Method::GET, "/v1/machines", Access::Token),
    (Method::GET, "/v1/machines/{machine}", Access::Token),
    (Method::PATCH, "/v1/machines/{machine}", Access::Token),
    (Method::POST, "/v1/machines/{machine}/adopt", Access::Token),
    (Method::DELETE, "/v1/machines/{machine}", Access::Token),
    (Method::POST, "/v1/machines/{machine}/replace-part", Access::Token),
    (Method::POST, "/v1/machines/{machine}/merge", Access::Token),
    (Method::POST, "/v1/machines/{machine}/deploy", Access::Token),
    (Method::POST, "/v1/machines/{machine}/release", Access::Token),
    (Method::POST, "/v1/machines/{machine}/power", Access::Token),
    (Method::GET, "/v1/images", Access::Token),
    (Method::POST, "/v1/images", Access::Token),
    (Method::GET, "/v1/images/{image}", Access::Token),
    (Method::PUT, "/v1/images/{image}", Access::Token),
    (Method::PATCH, "/v1/images/{image}", Access::Token),
    (Method::DELETE, "/v1/images/{image}", Access::Token),
    (Method::POST, "/v1/images/{image}/check", Access::Token),
    (Method::GET, "/v1/plans", Access::Token),
    (Method::POST, "/v1/plans", Access::Token),
    (Method::GET, "/v1/plans/{plan}", Access::Token),
    (Method::PATCH, "/v1/plans/{plan}", Access::Token),
    (Method::DELETE, "/v1/plans/{plan}", Access::Token),
    (Method::GET, "/v1/plans/{plan}/machines", Access::Token),
    (Method::GET, "/v1/machines/{machine}/plans", Access::Token),
    (Method::GET, "/v1/machines/{machine}/suggested-plan", Access::Token),
    (Method::GET, "/v1/operating-systems", Access::Token),
    (Method::GET, "/v1/operating-systems/{os}", Access::Token),
    (Method::GET, "/v1/runs", Access::Token),
    (Method::GET, "/v1/runs/{run}", Access::Token),
    (Method::POST, "/v1/runs/{run}/cancel", Access::Token),
    (Method::GET, "/v1/vrfs", Access::Token),
    (Method::POST, "/v1/vrfs", Access::Token),
    (Method::GET, "/v1/aggregates", Access::Token),
    (Method::POST, "/v1/aggregates", Access::Token),
    (Method::DELETE, "/v1/aggregates/{aggregate}", Access::Token),
    (Method::POST, "/v1/aggregates/{aggregate}/proof", Access::Token),
    (Method::GET, "/v1/pools", Access::Token),
    (Method::POST, "/v1/pools", Access::Token),
    (Method::GET, "/v1/pools/{pool}", Access::Token),
    (Method::DELETE, "/v1/pools/{pool}", Access::Token),
    (Method::POST, "/v1/pools/{pool}/prefixes", Access::Token),
    (Method::GET, "/v1/utilisation", Access::Token),
    (Method::GET, "/v1/claims", Access::Token),
    (Method::POST, "/v1/claims", Access::Token),
    (Method::GET, "/v1/claims/{claim}", Access::Token),
    (Method::DELETE, "/v1/claims/{claim}", Access::Token),
    (Method::GET, "/v1/addresses/{address}/history", Access::Token),
    (Method::GET, "/v1/events", Access::Token),
    (Method::GET, "/v1/events/stream", Access::Token),
    (Method::GET, "/v1/audit", Access::Token),
    (Method::GET, "/v1/audit/end", Access::Token),
];

/// The holder of a token that was found valid; put into the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token's row.
    pub token: Uuid,
    /// The token's name: who did it, in the record.
    pub name: String,
}

/// Lets a request through when the table says so. It looks at the head of the request alone:
/// nothing of the body is read before the caller is known.
pub(super) async fn decide(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()).unwrap_or_default();
    // HEAD is answered by what answers GET.
    let method = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
    let access = TABLE.iter().find(|(known, pattern, _)| *known == method && *pattern == path);
    if !matches!(access, Some((.., Access::Anyone))) {
        match authenticate(&app, request.headers()).await {
            Ok(caller) => request.extensions_mut().insert(caller),
            Err(error) => return error.into_response(),
        };
    }
    // A known path with another method goes on to be answered with 405.
    let known_path = TABLE.iter().any(|(_, pattern, _)| *pattern == path);
    if access.is_none() && !known_path {
        return Error::not_found("there is nothing at this path; /v1/openapi.json lists what there is").into_response();
    }
    next.run(request).await
}

/// A fresh token and the hash to keep of it: `rh_` and 32 random bytes in base64url.
pub fn fresh_token() -> (String, [u8; 32]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0u8; 32];
    rand::fill(&mut bytes);
    let mut token = String::from("rh_");
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..=group.len() {
            token.push(ALPHABET[(bits >> (18 - 6 * digit)) as usize & 63].into());
        }
    }
    let hash = Sha256::digest(&token).into();
    (token, hash)
}

async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Caller, Error> {
    const HOW: &str = "send `Authorization: Bearer rh_…` with a token of this controller";
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| Error::unauthenticated(HOW))?;
    match app.store.token(app.clock.now().wall, &Sha256::digest(token).into()).await {
        Ok(token) => Ok(Caller { token: token.id, name: token.name }),
        Err(StoreError::NotFound(_)) => Err(Error::unauthenticated("this token is not known here, or has expired")),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_prefix_and_43_digits_never_the_same() {
        let (one, hash) = fresh_token();
        assert_eq!(one.len(), 46);
        assert!(one.starts_with("rh_"));
        assert_eq!(hash, <[u8; 32]>::from(Sha256::digest(&one)));
        assert_ne!(one, fresh_token().0);
    }
}
