//! `/v1/sites`: where racks stand.

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
use crate::store;

/// A place with racks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Site {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::SiteId,
    /// Its name.
    #[schema(example = "fra1")]
    name: String,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

impl From<store::Site> for Site {
    fn from(store::Site { id, name, created, .. }: store::Site) -> Self {
        Self { id, name, created }
    }
}

/// A site to be created, or its new name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSite {
    /// Its name: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "fra1")]
    name: String,
}

/// List sites
///
/// There is always one, `default`, unless it was renamed or removed.
#[utoipa::path(get, path = "/v1/sites", tag = "racks", params(Window),
    responses((status = 200, body = Page<Site>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (window.limit()?, caller.sight(Action::SiteRead)?);
    let rows = app.store.sites(&sight, parse("after", window.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Site::from)))
}

/// Show one site
#[utoipa::path(get, path = "/v1/sites/{site}", tag = "racks",
    params(("site" = String, Path, description = "Id or name.")), responses((status = 200, body = Site)))]
pub(super) async fn show(State(app): State<App>, Path(site): Path<String>) -> Result<impl IntoResponse, Error> {
    let site = app.store.site(&site).await?;
    Ok(tagged(site.version, Site::from(site)))
}

/// Create a site
#[utoipa::path(post, path = "/v1/sites", tag = "racks", request_body = NewSite,
    responses((status = 201, body = Site, headers(("Location" = String, description = "The site.")))))]
pub(super) async fn create(State(app): State<App>, Json(body): Json<NewSite>) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    let mut tx = app.store.begin().await?;
    let made = Site::from(tx.insert_site(app.clock.now().wall, &body.name).await?);
    tx.commit().await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/sites/{}", made.id))], axum::Json(made)))
}

/// Rename a site
#[utoipa::path(patch, path = "/v1/sites/{site}", tag = "racks", request_body = NewSite,
    params(("site" = String, Path, description = "Id or name.")), responses((status = 200, body = Site)))]
pub(super) async fn rename(
    State(app): State<App>,
    Path(site): Path<String>,
    expected: Expected,
    Json(body): Json<NewSite>,
) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    let mut tx = app.store.begin().await?;
    let site = tx.site(&site).await?;
    expected.check(site.version)?;
    let site = tx.rename_site(site, &body.name).await?;
    tx.commit().await?;
    Ok(tagged(site.version, Site::from(site)))
}

/// Remove a site
///
/// With the roles that people have there. Refused while racks stand in it.
#[utoipa::path(delete, path = "/v1/sites/{site}", tag = "racks",
    params(("site" = String, Path, description = "Id or name.")), responses((status = 204)))]
pub(super) async fn delete(
    State(app): State<App>,
    Path(site): Path<String>,
    expected: Expected,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let site = tx.site(&site).await?;
    expected.check(site.version)?;
    if !tx.delete_site(site.id).await? {
        return Err(Error::conflict(format!(
            "racks stand in site {0} or pools are for it; move the racks to another and delete the pools first",
            site.name
        )));
    }
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
