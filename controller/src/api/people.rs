//! `/v1/people`: who logs in.

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::id;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App, Caller, Error,
    extract::{Expected, Json, Page, Query, Window, check_name, check_text, parse, tagged},
    login::check_password,
};
use crate::store::{self, Tx};

/// Somebody who logs in.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Person {
    /// Their id.
    #[schema(value_type = uuid::Uuid)]
    id: id::PersonId,
    /// The name they log in with.
    #[schema(example = "ada")]
    name: String,
    /// Where mail reaches them; may be empty.
    #[schema(example = "ada@example.net")]
    email: String,
    /// Whether they have a password.
    has_password: bool,
    /// Whether their login asks for a code of their second factor.
    has_second_factor: bool,
    /// Who vouches for them elsewhere: the issuer of OpenID Connect.
    issuer: Option<String>,
    /// When they were added.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

impl From<store::Person> for Person {
    fn from(row: store::Person) -> Self {
        Self {
            id: row.id,
            name: row.name,
            email: row.email,
            has_password: row.password.is_some(),
            has_second_factor: row.totp.is_some_and(|factor| factor.is_confirmed),
            issuer: row.vouched.map(|(issuer, _)| issuer),
            created: row.created,
        }
    }
}

/// A person to be added.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPerson {
    /// The name they log in with: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "ada")]
    name: String,
    /// Where mail reaches them.
    #[serde(default)]
    #[schema(example = "ada@example.net")]
    email: String,
    /// A first password, of at least 12 characters, which they should change; without one they log in
    /// by who vouches for them, or with a token.
    password: Option<String>,
    /// The provider's own name for them (`sub`): they log in by OpenID Connect, also without a group, and
    /// after they were removed.
    #[schema(max_length = 255)]
    subject: Option<String>,
}

/// What may be changed about a person.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangedPerson {
    /// Another name.
    name: Option<String>,
    /// Another address for mail.
    email: Option<String>,
    /// Another password. Their logins end.
    password: Option<String>,
    /// Forget their second factor: the device is lost.
    #[serde(default)]
    remove_second_factor: bool,
    /// The provider's own name for them (`sub`), by which they log in by OpenID Connect.
    #[schema(max_length = 255)]
    subject: Option<String>,
}

/// List people
#[utoipa::path(get, path = "/v1/people", tag = "people", params(Window),
    responses((status = 200, body = Page<Person>)))]
pub(super) async fn list(State(app): State<App>, Query(window): Query<Window>) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rows = app.store.people(parse("after", window.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Person::from)))
}

/// Show one person
#[utoipa::path(get, path = "/v1/people/{person}", tag = "people",
    params(("person" = String, Path, description = "Id or name.")), responses((status = 200, body = Person)))]
pub(super) async fn show(State(app): State<App>, Path(person): Path<String>) -> Result<impl IntoResponse, Error> {
    let person = app.store.person(&person).await?;
    Ok(tagged(person.version, Person::from(person)))
}

/// Add a person
///
/// They can do nothing before they are granted a role.
#[utoipa::path(post, path = "/v1/people", tag = "people", request_body = NewPerson,
    responses((status = 201, body = Person, headers(("Location" = String, description = "The person.")))))]
pub(super) async fn create(State(app): State<App>, Json(body): Json<NewPerson>) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    check_text("/email", &body.email, 254)?;
    let password = hashed(&app, body.password.as_deref()).await?;
    let mut tx = app.store.begin().await?;
    let mut person = tx.insert_person(app.clock.now().wall, &body.name, &body.email).await?;
    if password.is_some() {
        person.password = password;
        tx.update_person(&mut person).await?;
    }
    if let Some(subject) = &body.subject {
        vouch(&app, &mut tx, &mut person, subject).await?;
    }
    tx.commit().await?;
    let person = Person::from(person);
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/people/{}", person.id))], axum::Json(person)))
}

/// Change a person
///
/// Nobody can change a person who may do more than they.
#[utoipa::path(patch, path = "/v1/people/{person}", tag = "people", request_body = ChangedPerson,
    params(("person" = String, Path, description = "Id or name.")), responses((status = 200, body = Person)))]
pub(super) async fn change(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(person): Path<String>,
    expected: Expected,
    Json(body): Json<ChangedPerson>,
) -> Result<impl IntoResponse, Error> {
    if let Some(name) = &body.name {
        check_name("/name", name)?;
    }
    check_text("/email", body.email.as_deref().unwrap_or_default(), 254)?;
    let password = hashed(&app, body.password.as_deref()).await?;
    let mut tx = app.store.begin().await?;
    let mut person = tx.person(&person).await?;
    check_manages(&caller, &mut tx, person.id).await?;
    expected.check(person.version)?;
    if let Some(name) = body.name {
        person.name = name;
    }
    if let Some(email) = body.email {
        person.email = email;
    }
    if password.is_some() {
        person.password = password;
        for login in tx.tokens_of_person(person.id, true).await? {
            tx.delete_token(login).await?;
        }
    }
    if body.remove_second_factor {
        person.totp = None;
    }
    tx.update_person(&mut person).await?;
    if let Some(subject) = &body.subject {
        vouch(&app, &mut tx, &mut person, subject).await?;
    }
    tx.commit().await?;
    Ok(tagged(person.version, Person::from(person)))
}

/// Remove a person
///
/// With their tokens and roles. What they did stays in the audit record. Nobody can remove a person
/// who may do more than they, nor the last owner of everything.
#[utoipa::path(delete, path = "/v1/people/{person}", tag = "people",
    params(("person" = String, Path, description = "Id or name.")), responses((status = 204)))]
pub(super) async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(person): Path<String>,
    expected: Expected,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let person = tx.person(&person).await?;
    check_manages(&caller, &mut tx, person.id).await?;
    expected.check(person.version)?;
    tx.delete_person(person.id).await?;
    check_owned(&mut tx).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has the provider that is configured vouch for a person by this name of its own.
async fn vouch(app: &App, tx: &mut Tx, person: &mut store::Person, subject: &str) -> Result<(), Error> {
    let config = app.oidc.config();
    let config = config.ok_or_else(|| Error::invalid("/subject", "OpenID Connect is not configured here"))?;
    check_text("/subject", subject, 255)?;
    match tx.person_vouched(&config.issuer, subject).await? {
        _ if subject.is_empty() => Err(Error::invalid("/subject", "is empty")),
        Some(other) if other.id != person.id => {
            Err(Error::conflict(format!("{} vouches for `{}` by this name already", config.issuer, other.name)))
        }
        _ => Ok(tx.vouch(person, &config.issuer, subject).await?),
    }
}

/// That somebody owns everything.
pub(super) async fn check_owned(tx: &mut Tx) -> Result<(), Error> {
    match tx.owners().await? {
        0 => Err(Error::conflict("nobody else owns everything; make another person an owner first")),
        _ => Ok(()),
    }
}

/// That a person may do nothing that the caller may not: only then they can be managed.
pub(super) async fn check_manages(caller: &Caller, tx: &mut Tx, person: id::PersonId) -> Result<(), Error> {
    for binding in tx.bindings_of(person).await? {
        let place = tx.place_of(binding.scope).await?;
        caller.check_covers(binding.role, place)?;
    }
    Ok(())
}

async fn hashed(app: &App, password: Option<&str>) -> Result<Option<String>, Error> {
    match password {
        Some(password) => {
            check_password("/password", password)?;
            Ok(Some(app.passwords.hash(password).await))
        }
        None => Ok(None),
    }
}
