//! `/v1/tokens`: for programs, and for people who work with them.

use std::collections::BTreeSet;

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use jiff::{SignedDuration, Timestamp};
use rackhand_controller_core::access::{self, Action, NoAction, NoRole, Place, Role};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    App, Caller, Error,
    bindings::Scope,
    extract::{Json, Page, Query, Window, check_text, parse},
    fresh_token,
    people::check_manages,
};
use crate::store::{self, NewToken as Kept, Owner, Thing};

/// How many characters of a token are kept to recognise it by: too few to guess the others.
const PREFIX: usize = 9;

/// A token's life when nothing is said of it, in days.
const DAYS: u32 = 90;

/// A token. Its secret is shown once, when it is made.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Token {
    /// Its id.
    id: Uuid,
    /// Its name.
    #[schema(example = "ci")]
    name: String,
    /// Whose it is: a person's name, or a project as ORGANISATION:NAME.
    #[schema(example = "ada")]
    owner: String,
    /// How it begins.
    #[schema(example = "rh_Yx3kQ0")]
    prefix: String,
    /// What a project's token may do there: a role. A person's may what the person may.
    role: Option<&'static str>,
    /// It is only good for these actions; absent for all that its owner may.
    actions: Option<Vec<&'static str>>,
    /// It is only good there, each as KIND and id; absent for everywhere.
    #[schema(example = json!(["project 01931b1e-0000-7000-8000-000000000000"]))]
    scopes: Option<Vec<String>>,
    /// Whether a login made it; it ends when the password is changed.
    login: bool,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
    /// Until when it is good; absent when it does not end by itself.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires: Option<Timestamp>,
    /// When it was last used, to the minute.
    #[schema(value_type = Option<String>, format = DateTime)]
    used: Option<Timestamp>,
}

impl From<store::Token> for Token {
    fn from(row: store::Token) -> Self {
        let role = match row.owner {
            Owner::Person(_) => None,
            Owner::Project(_, role) => Some(role.name()),
        };
        Self {
            id: row.id,
            name: row.name,
            owner: row.owner_name,
            prefix: row.prefix,
            role,
            actions: row.actions.map(|actions| actions.into_iter().map(Action::name).collect()),
            scopes: row.scopes.map(|scopes| scopes.iter().map(ToString::to_string).collect()),
            login: row.is_login,
            created: row.created,
            expires: row.expires,
            used: row.used,
        }
    }
}

/// A token to be made: one's own, or a project's.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// Its name, unique among its owner's: at most 63 characters.
    #[schema(example = "ci")]
    name: String,
    /// Make it this project's, for a program that works for it: id, name or ORGANISATION:NAME.
    project: Option<String>,
    /// With `project`: its role there; `collaborator` when absent.
    role: Option<String>,
    /// Make it good for these actions only.
    #[schema(example = json!(["machine.read", "machine.power"]))]
    actions: Option<Vec<String>>,
    /// Make it good there only.
    scopes: Option<Vec<Scope>>,
    /// Days that it is good; 90 when absent, 0 for a token that does not end by itself.
    #[schema(maximum = 3650, default = 90)]
    days: Option<u32>,
}

/// A token that was made, with its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MadeToken {
    /// The secret. It is shown this once; only its hash is kept.
    #[schema(example = "rh_Yx3kQ0…")]
    secret: String,
    /// What it is.
    token: Token,
}

/// List tokens
///
/// One's own, and those that one may see: of projects, or of everybody.
#[utoipa::path(get, path = "/v1/tokens", tag = "people", params(Window),
    responses((status = 200, body = Page<Token>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let (limit, person) = (window.limit()?, caller.person()?);
    let sight = caller.rights.sight(Action::TokenRead);
    let after = parse("after", window.after.as_deref())?;
    let rows = app.store.tokens(person, sight.as_ref(), after, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Token::from)))
}

/// Make a token
///
/// It may at most what its owner may, and what the token that it is made with may. The secret is in
/// the answer, and nowhere afterwards.
#[utoipa::path(post, path = "/v1/tokens", tag = "people", request_body = NewToken,
    responses((status = 201, body = MadeToken)))]
pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Json(body): Json<NewToken>,
) -> Result<impl IntoResponse, Error> {
    check_text("/name", &body.name, 63)?;
    if body.name.trim().is_empty() {
        return Err(Error::invalid("/name", "say what it is for"));
    }
    let now = app.clock.now().wall;
    let owner = match &body.project {
        Some(name) => {
            let project = caller.project(&app, name).await?;
            caller.check(Action::TokenManage, "project", project.place())?;
            let role = body.role.as_deref().unwrap_or(Role::Collaborator.name());
            let role: Role = role.parse().map_err(|error: NoRole| Error::invalid("/role", error))?;
            caller.check_covers(role, project.place())?;
            Owner::Project(project.id, role)
        }
        None if body.role.is_some() => return Err(Error::invalid("/role", "is for a token of a `project`")),
        None => Owner::Person(caller.person()?),
    };
    let actions = actions(&caller, body.actions)?;
    let scopes = scopes(&app, &caller, body.scopes).await?;
    let expires = match body.days.unwrap_or(DAYS) {
        0 => None,
        days @ 1..=3650 => Some(now + SignedDuration::from_hours(i64::from(days) * 24)),
        _ => return Err(Error::invalid("/days", "at most 3650")),
    };
    let (secret, hash) = fresh_token();
    let mut tx = app.store.begin().await?;
    let made_with = tx.token(caller.token).await?;
    let is_restricted = made_with.actions.is_some() || made_with.scopes.is_some();
    if is_restricted && made_with.expires.is_some_and(|end| expires.is_none_or(|expires| expires > end)) {
        return Err(Error::invalid("/days", "a token cannot outlive the restricted one that it is made with"));
    }
    let prefix: String = secret.chars().take(PREFIX).collect();
    let kept =
        Kept { name: &body.name, owner, hash: &hash, prefix: &prefix, actions, scopes, is_login: false, expires };
    let id = tx.insert_token(now, kept).await?;
    let token = Token::from(tx.token(id).await?);
    tx.commit().await?;
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], axum::Json(MadeToken { secret, token })))
}

fn actions(caller: &Caller, wanted: Option<Vec<String>>) -> Result<Option<BTreeSet<Action>>, Error> {
    let Some(wanted) = wanted else { return Ok(caller.rights.actions.clone()) };
    let mut actions = BTreeSet::new();
    for (number, name) in wanted.iter().enumerate() {
        let field = format!("/actions/{number}");
        let action: Action = name.parse().map_err(|error: NoAction| Error::invalid(&field, error))?;
        if !caller.rights.is_for(action) {
            return Err(Error::forbidden(format!("the token that you use is not good for {action} itself")));
        }
        actions.insert(action);
    }
    Ok(Some(actions))
}

async fn scopes(
    app: &App,
    caller: &Caller,
    wanted: Option<Vec<Scope>>,
) -> Result<Option<BTreeSet<access::Scope>>, Error> {
    let Some(wanted) = wanted else { return Ok(caller.rights.scopes.clone()) };
    let mut scopes = BTreeSet::new();
    for Scope { kind, name } in &wanted {
        let (scope, place) = caller.scope(app, kind, name).await?;
        let is_within = |own: &BTreeSet<access::Scope>| own.iter().any(|own| own.contains(place));
        if caller.rights.scopes.as_ref().is_some_and(|own| !is_within(own)) {
            return Err(Error::forbidden("the token that you use is not good there itself"));
        }
        scopes.insert(scope);
    }
    Ok(Some(scopes))
}

/// Revoke a token
///
/// It is refused from now on. One's own can be revoked always.
#[utoipa::path(delete, path = "/v1/tokens/{token}", tag = "people",
    params(("token" = Uuid, Path, description = "Id.")), responses((status = 204)))]
pub(super) async fn revoke(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(token): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let gone = || Error::not_found("there is no such token");
    let id: Uuid = token.parse().map_err(|_| gone())?;
    let mut tx = app.store.begin().await?;
    let token = tx.token(id).await?;
    match token.owner {
        owner if owner == caller.owner => {}
        Owner::Project(..) => {
            let place = tx.standing(Thing::Token, &id.to_string()).await?.place;
            caller.check(Action::TokenManage, "token", place)?;
        }
        Owner::Person(person) => {
            caller.check(Action::TokenManage, "token", Place::EVERYTHING)?;
            check_manages(&caller, &mut tx, person).await?;
        }
    }
    tx.delete_token(id).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
