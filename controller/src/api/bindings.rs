//! `/v1/bindings` and `/v1/roles`: who has which role where, and what each role may.

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::id;
use rackhand_controller_core::access::{self, Action, NoRole, Role};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    extract::{Json, Page, Query, limit, parse},
    people::check_owned,
};
use crate::store::{self, BindingFilter};

/// A role that a person has at a scope.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Binding {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::BindingId,
    /// The person's name.
    #[schema(example = "ada")]
    person: String,
    /// The role's name.
    #[schema(example = "collaborator")]
    role: &'static str,
    /// Where it counts.
    scope: Scope,
    /// Who granted it; absent when it follows from a group of who vouches for the person.
    #[schema(example = "admin")]
    granted_by: Option<String>,
    /// When it was granted.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

/// Where a role counts, or a token is good.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Scope {
    /// `everything`, `organisation`, `project`, `site` or `rack`.
    #[schema(example = "project")]
    pub(super) kind: String,
    /// Which one, by id or name; nothing for everything.
    #[serde(default)]
    #[schema(example = "acme:shop")]
    pub(super) name: String,
}

impl From<store::Binding> for Binding {
    fn from(row: store::Binding) -> Self {
        Self {
            id: row.id,
            person: row.person_name,
            role: row.role.name(),
            scope: Scope { kind: row.scope.kind().into(), name: row.scope_name },
            granted_by: row.granted_by,
            created: row.created,
        }
    }
}

/// A role to be granted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBinding {
    /// To whom: a person's id or name.
    #[schema(example = "ada")]
    person: String,
    /// Which: `owner`, `admin`, `operator`, `technician`, `collaborator`, `billing`, `viewer`.
    #[schema(example = "collaborator")]
    role: String,
    /// Where it shall count.
    scope: Scope,
}

/// Which bindings.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only those of this person (id or name).
    person: Option<String>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// List bindings
#[utoipa::path(get, path = "/v1/bindings", tag = "people", params(Which),
    responses((status = 200, body = Page<Binding>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Error> {
    let limit = limit(which.limit)?;
    let mut filter = BindingFilter { sight: caller.sight(Action::RoleRead)?, person: None };
    if let Some(person) = which.person {
        filter.person = Some(app.store.person(&person).await?.id);
    }
    let rows = app.store.bindings(&filter, parse("after", which.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Binding::from)))
}

/// Grant a role
///
/// Nobody can grant what they may not do themselves at the same scope.
#[utoipa::path(post, path = "/v1/bindings", tag = "people", request_body = NewBinding,
    responses((status = 201, body = Binding, headers(("Location" = String, description = "The binding.")))))]
pub(super) async fn grant(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Json(body): Json<NewBinding>,
) -> Result<impl IntoResponse, Error> {
    let role: Role = body.role.parse().map_err(|error: NoRole| Error::invalid("/role", error))?;
    let (scope, place) = caller.scope(&app, &body.scope.kind, &body.scope.name).await?;
    caller.require(Action::RoleGrant, place)?;
    caller.check_covers(role, place)?;
    let mut tx = app.store.begin().await?;
    let person = tx.person(&body.person).await?.id;
    let binding = access::Binding { role, scope };
    let made = tx.insert_binding(app.clock.now().wall, person, binding, Some(&caller.name)).await?;
    tx.commit().await?;
    let made = Binding::from(made);
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/bindings/{}", made.id))], axum::Json(made)))
}

/// Take a role away
///
/// Nobody can take away what they could not grant, and somebody always owns everything.
#[utoipa::path(delete, path = "/v1/bindings/{binding}", tag = "people",
    params(("binding" = String, Path, description = "Id.")), responses((status = 204)))]
pub(super) async fn revoke(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(binding): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let id = binding.parse().map_err(|_| Error::not_found("there is no such binding"))?;
    let mut tx = app.store.begin().await?;
    let binding = tx.binding(id).await?;
    let place = tx.place_of(binding.scope).await?;
    caller.check(Action::RoleGrant, "binding", place)?;
    caller.check_covers(binding.role, place)?;
    tx.delete_binding(binding.id).await?;
    check_owned(&mut tx).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A role, and what it may.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RoleView {
    /// Its name.
    #[schema(example = "viewer")]
    name: &'static str,
    /// What may be done with it.
    #[schema(example = json!(["machine.read"]))]
    actions: Vec<&'static str>,
}

/// All roles and actions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Roles {
    /// The roles.
    roles: Vec<RoleView>,
    /// The actions, with what each is.
    actions: Vec<ActionView>,
}

/// An action.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ActionView {
    /// Its name.
    #[schema(example = "machine.read")]
    name: &'static str,
    /// What it is.
    #[schema(example = "See machines.")]
    description: &'static str,
}

/// List roles
///
/// What each may do, wherever it was granted.
#[utoipa::path(get, path = "/v1/roles", tag = "people", responses((status = 200, body = Roles)))]
pub(super) async fn roles() -> impl IntoResponse {
    let actions = |role: Role| Action::ALL.iter().filter(move |action| role.may(**action)).map(|action| action.name());
    let roles = Role::ALL.map(|role| RoleView { name: role.name(), actions: actions(role).collect() });
    let views = Action::ALL.iter().map(|action| ActionView { name: action.name(), description: action.words() });
    axum::Json(Roles { roles: roles.into(), actions: views.collect() })
}
