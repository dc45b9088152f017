//! `/v1/login`, and what belongs to one's own: password and second factor.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    Extension,
    extract::{ConnectInfo, FromRequestParts, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::IntoResponse,
};
use jiff::{SignedDuration, Timestamp};
use rackhand_common::{audit::Record, time::Now};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{App, Caller, Error, extract::Json, fresh_token};
use crate::{
    passwords::{LONGEST, SHORTEST},
    store::{Asked, Factor, NewToken, Owner, Person, StoreError},
    totp,
};

/// How long a login is good: a working day.
const LOGIN: SignedDuration = SignedDuration::from_hours(12);

/// A failure is answered no sooner: whoever guesses waits, and learns nothing from the time.
const SLOW: Duration = Duration::from_secs(1);

/// The only thing that a failure tells.
const WRONG: &str = "name, password or code is wrong";

/// A login.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    /// The person's name.
    #[schema(example = "ada")]
    name: String,
    /// Their password.
    password: String,
    /// A code of their second factor, when they have one.
    #[schema(example = "287082")]
    code: Option<String>,
}

/// A token for a working day.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LoggedIn {
    /// The token, to be sent as `Authorization: Bearer`.
    token: String,
    /// The person's name.
    #[schema(example = "ada")]
    name: String,
    /// Until when it is good.
    #[schema(value_type = String, format = DateTime)]
    expires: Timestamp,
}

/// From where a request comes, and through what.
pub(super) struct From(Option<SocketAddr>, String);

impl<S: Send + Sync> FromRequestParts<S> for From {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let through = parts.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let from = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|from| from.0);
        Ok(Self(from, through.chars().take(200).collect()))
    }
}

impl From {
    /// The address it comes from.
    pub(super) fn source(&self) -> Option<IpAddr> {
        self.0.map(|from| from.ip())
    }

    /// A record of what was asked for without a token.
    pub(super) fn record(&self, now: Now, by: &str, token: Uuid, action: &str) -> Asked {
        let record = Record {
            id: Uuid::nil(),
            at: now.wall,
            by: by.to_owned(),
            token,
            from: self.0.map(|from| from.ip().to_canonical()),
            through: self.1.clone(),
            action: action.to_owned(),
            request: Uuid::now_v7(),
            changes: Vec::new(),
        };
        Asked { record }
    }
}

/// Log in
///
/// With name and password, and a code where the person has a second factor. Whatever is wrong is
/// told in the same words after the same time, and written into the audit record. An account can be
/// tried five times, and then twice a minute; a source thirty times, and then twelve times a minute.
#[utoipa::path(post, path = "/v1/login", tag = "access", request_body = Login, security(()),
    responses((status = 200, body = LoggedIn)))]
pub(super) async fn login(
    State(app): State<App>,
    from: From,
    Json(body): Json<Login>,
) -> Result<impl IntoResponse, Error> {
    let now = app.clock.now();
    if body.name.len() > 63 || body.password.len() > LONGEST {
        return Err(Error::unauthenticated(WRONG));
    }
    app.passwords.may_try(now.mono, &body.name, from.source()).map_err(|wait| Error::too_many("logins", wait))?;
    let slow = tokio::time::sleep(SLOW);
    match try_login(&app, now, &from, &body).await {
        Ok(logged_in) => {
            app.passwords.was_right(&body.name);
            Ok(([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], axum::Json(logged_in)))
        }
        Err(Some(error)) => Err(error),
        Err(None) => {
            let refused = from.record(now, &body.name, Uuid::nil(), "POST /v1/login (refused)");
            refused.scope(async { app.store.begin().await?.commit().await }).await?;
            slow.await;
            Err(Error::unauthenticated(WRONG))
        }
    }
}

/// A login; `Err(None)` when something that was told is wrong.
async fn try_login(app: &App, now: Now, from: &From, body: &Login) -> Result<LoggedIn, Option<Error>> {
    let person = match app.store.person(&body.name).await {
        Ok(person) => Some(person).filter(|person| person.name == body.name),
        Err(StoreError::NotFound(_)) => None,
        Err(error) => return Err(Some(error.into())),
    };
    let hash = person.as_ref().and_then(|person| person.password.as_deref());
    let is_right = app.passwords.verify(&body.password, hash).await;
    let Some(person) = person.filter(|_| is_right) else { return Err(None) };
    let asked = from.record(now, &person.name, Uuid::nil(), "POST /v1/login");
    asked.scope(token(app, now, person, body.code.as_deref())).await
}

async fn token(app: &App, now: Now, person: Person, code: Option<&str>) -> Result<LoggedIn, Option<Error>> {
    let failed = |error: StoreError| Some(Error::from(error));
    let mut tx = app.store.begin().await.map_err(failed)?;
    // Read again: a code is taken once, also when it comes twice at the same moment.
    let known = tx.person(&person.id.to_string()).await.map_err(failed)?;
    if known.password != person.password {
        return Err(None);
    }
    let mut person = known;
    if let Some(factor) = person.totp.as_mut().filter(|factor| factor.is_confirmed) {
        let step = totp::check(&factor.secret, now.wall, factor.step, code.unwrap_or_default());
        factor.step = step.ok_or(None)?;
        tx.take_code(person.id, factor.step).await.map_err(failed)?;
    }
    tx.sweep_logins(now.wall, person.id).await.map_err(failed)?;
    let logged_in = begin(&mut tx, now.wall, &person).await.map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    Ok(logged_in)
}

/// Makes the token of a login.
pub(super) async fn begin(tx: &mut crate::store::Tx, now: Timestamp, person: &Person) -> Result<LoggedIn, StoreError> {
    let (token, hash) = fresh_token();
    let expires = now + LOGIN;
    let new = NewToken {
        name: &format!("login {}", Uuid::now_v7()),
        owner: Owner::Person(person.id),
        hash: &hash,
        prefix: &token[..9],
        actions: None,
        scopes: None,
        is_login: true,
        expires: Some(expires),
    };
    tx.insert_token(now, new).await?;
    Ok(LoggedIn { token, name: person.name.clone(), expires })
}

/// Whether this can be a password.
pub(super) fn check_password(field: &str, password: &str) -> Result<(), Error> {
    if password.chars().count() < SHORTEST || password.len() > LONGEST {
        return Err(Error::invalid(field, format!("at least {SHORTEST} characters, and at most {LONGEST} bytes")));
    }
    Ok(())
}

/// The person who asks, and that they know their password: a token that was found lying about is
/// not enough to lock its owner out.
async fn proven(app: &App, caller: &Caller, password: Option<&str>) -> Result<Person, Error> {
    let person = app.store.person(&caller.person()?.to_string()).await?;
    if person.password.is_none() {
        return Ok(person);
    }
    let now = app.clock.now().mono;
    app.passwords.may_try(now, &person.name, None).map_err(|wait| Error::too_many("passwords", wait))?;
    let slow = tokio::time::sleep(SLOW);
    if !app.passwords.verify(password.unwrap_or_default(), person.password.as_deref()).await {
        slow.await;
        return Err(Error::forbidden("the present password is wrong"));
    }
    app.passwords.was_right(&person.name);
    Ok(person)
}

/// A new password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPassword {
    /// The present one, when there is one.
    present: Option<String>,
    /// The new one, of at least 12 characters.
    new: String,
}

/// Change one's password
///
/// One's other logins end; tokens that were made do not.
#[utoipa::path(put, path = "/v1/password", tag = "access", request_body = NewPassword, responses((status = 204)))]
pub(super) async fn password(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Json(body): Json<NewPassword>,
) -> Result<impl IntoResponse, Error> {
    check_password("/new", &body.new)?;
    let person = proven(&app, &caller, body.present.as_deref()).await?;
    let hash = app.passwords.hash(&body.new).await;
    let mut tx = app.store.begin().await?;
    let mut person = tx.person(&person.id.to_string()).await?;
    person.password = Some(hash);
    tx.update_person(&mut person).await?;
    for login in tx.tokens_of_person(person.id, true).await? {
        if login != caller.token {
            tx.delete_token(login).await?;
        }
    }
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One's password, to show that it is oneself.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Proof {
    /// The present password, when there is one.
    password: Option<String>,
}

/// A second factor to be told to an authenticator.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NewFactor {
    /// The secret, in base 32, to be typed.
    #[schema(example = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")]
    secret: String,
    /// The same as an address, to be shown as a QR code.
    #[schema(example = "otpauth://totp/Rackhand:ada?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Rackhand")]
    address: String,
}

/// Begin with a second factor
///
/// Makes the secret of one-time codes (TOTP, RFC 6238: SHA-1, six digits, 30 seconds). It counts once
/// it is confirmed by a code. The secret is shown this once.
#[utoipa::path(post, path = "/v1/totp", tag = "access", request_body = Proof,
    responses((status = 201, body = NewFactor)))]
pub(super) async fn enrol_factor(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Json(body): Json<Proof>,
) -> Result<impl IntoResponse, Error> {
    let person = proven(&app, &caller, body.password.as_deref()).await?;
    let secret = totp::fresh_secret();
    let mut tx = app.store.begin().await?;
    let mut person = tx.person(&person.id.to_string()).await?;
    if person.totp.as_ref().is_some_and(|factor| factor.is_confirmed) {
        return Err(Error::conflict("there is a second factor already; remove it first"));
    }
    person.totp = Some(Factor { secret: secret.clone(), is_confirmed: false, step: 0 });
    tx.update_person(&mut person).await?;
    tx.commit().await?;
    let factor = NewFactor { secret: totp::base32(&secret), address: totp::address(&person.name, &secret) };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], axum::Json(factor)))
}

/// A code of one's second factor.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Code {
    /// Six digits.
    #[schema(example = "287082")]
    code: String,
}

/// Confirm one's second factor
///
/// From now on a login asks for a code.
#[utoipa::path(post, path = "/v1/totp/confirm", tag = "access", request_body = Code, responses((status = 204)))]
pub(super) async fn confirm_factor(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Json(body): Json<Code>,
) -> Result<impl IntoResponse, Error> {
    take_code(&app, &caller, &body.code, false).await
}

/// Remove one's second factor
#[utoipa::path(post, path = "/v1/totp/remove", tag = "access", request_body = Code, responses((status = 204)))]
pub(super) async fn remove_factor(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Json(body): Json<Code>,
) -> Result<impl IntoResponse, Error> {
    take_code(&app, &caller, &body.code, true).await
}

async fn take_code(app: &App, caller: &Caller, code: &str, remove: bool) -> Result<StatusCode, Error> {
    let (now, id) = (app.clock.now(), caller.person()?.to_string());
    // A code has a million values: it is guessed no faster than a password.
    app.passwords.may_try(now.mono, &caller.name, None).map_err(|wait| Error::too_many("codes", wait))?;
    let mut tx = app.store.begin().await?;
    let mut person = tx.person(&id).await?;
    let Some(factor) = &mut person.totp else {
        return Err(Error::conflict("there is no second factor; begin with one first"));
    };
    let step = totp::check(&factor.secret, now.wall, factor.step, code);
    factor.step = step.ok_or_else(|| Error::invalid("/code", "is not the present code, or was used already"))?;
    factor.is_confirmed = true;
    if remove {
        person.totp = None;
    }
    tx.update_person(&mut person).await?;
    tx.commit().await?;
    app.passwords.was_right(&person.name);
    Ok(StatusCode::NO_CONTENT)
}
