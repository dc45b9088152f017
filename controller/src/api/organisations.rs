//! `/v1/organisations`.

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::id;
use rackhand_controller_core::access::Action;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App, Caller, Error,
    extract::{Expected, Json, Page, Query, Window, check_name, parse, tagged},
};
use crate::store::{self, Thing};

/// A customer, or the provider itself: projects are somebody's.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Organisation {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::OrganisationId,
    /// Its name.
    #[schema(example = "acme")]
    name: String,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

impl From<store::Organisation> for Organisation {
    fn from(store::Organisation { id, name, created, .. }: store::Organisation) -> Self {
        Self { id, name, created }
    }
}

/// An organisation to be created, or its new name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewOrganisation {
    /// Its name: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "acme")]
    name: String,
}

/// List organisations
#[utoipa::path(get, path = "/v1/organisations", tag = "projects", params(Window),
    responses((status = 200, body = Page<Organisation>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (window.limit()?, caller.sight(Action::OrganisationRead)?);
    let rows = app.store.organisations(&sight, parse("after", window.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Organisation::from)))
}

/// Show one organisation
#[utoipa::path(get, path = "/v1/organisations/{organisation}", tag = "projects",
    params(("organisation" = String, Path, description = "Id or name.")),
    responses((status = 200, body = Organisation)))]
pub(super) async fn show(State(app): State<App>, Path(name): Path<String>) -> Result<impl IntoResponse, Error> {
    let known = app.store.organisation(&name).await?;
    Ok(tagged(known.version, Organisation::from(known)))
}

/// Create an organisation
#[utoipa::path(post, path = "/v1/organisations", tag = "projects", request_body = NewOrganisation,
    responses((status = 201, body = Organisation,
        headers(("Location" = String, description = "The organisation.")))))]
pub(super) async fn create(
    State(app): State<App>,
    Json(body): Json<NewOrganisation>,
) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    let mut tx = app.store.begin().await?;
    let made = Organisation::from(tx.insert_organisation(app.clock.now().wall, &body.name).await?);
    tx.commit().await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/organisations/{}", made.id))], axum::Json(made)))
}

/// Rename an organisation
#[utoipa::path(patch, path = "/v1/organisations/{organisation}", tag = "projects", request_body = NewOrganisation,
    params(("organisation" = String, Path, description = "Id or name.")),
    responses((status = 200, body = Organisation)))]
pub(super) async fn rename(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    expected: Expected,
    Json(body): Json<NewOrganisation>,
) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    let mut tx = app.store.begin().await?;
    let known = caller.check_in(&mut tx, Action::OrganisationManage, Thing::Organisation, &name).await?;
    let known = tx.organisation(&known.id).await?;
    expected.check(known.version)?;
    let renamed = tx.rename_organisation(known, &body.name).await?;
    tx.commit().await?;
    Ok(tagged(renamed.version, Organisation::from(renamed)))
}

/// Remove an organisation
///
/// Refused while it has projects.
#[utoipa::path(delete, path = "/v1/organisations/{organisation}", tag = "projects",
    params(("organisation" = String, Path, description = "Id or name.")), responses((status = 204)))]
pub(super) async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    expected: Expected,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let known = caller.check_in(&mut tx, Action::OrganisationManage, Thing::Organisation, &name).await?;
    let known = tx.organisation(&known.id).await?;
    expected.check(known.version)?;
    if !tx.delete_organisation(known.id).await? {
        return Err(Error::conflict(format!("organisation {} has projects; remove them first", known.name)));
    }
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
