//! `/v1/vrfs`: spaces in which an address is one place.

use axum::{extract::State, http::StatusCode, response::IntoResponse};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App, Error,
    extract::{Json, Page, Query, Window, check_name},
};
use crate::store;

/// A space in which an address is one place.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Vrf {
    /// Its name.
    #[schema(example = "default")]
    name: String,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

impl From<store::Vrf> for Vrf {
    fn from(row: store::Vrf) -> Self {
        Self { name: row.name, created: row.created }
    }
}

/// A VRF to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewVrf {
    /// Its name: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "management")]
    name: String,
}

/// List VRFs
///
/// By name. There is always one, `default`.
#[utoipa::path(get, path = "/v1/vrfs", tag = "addresses", params(Window), responses((status = 200, body = Page<Vrf>)))]
pub(super) async fn list(State(app): State<App>, Query(window): Query<Window>) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rows = app.store.vrfs(window.after.as_deref().unwrap_or_default(), limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.name.clone(), Vrf::from)))
}

/// Create a VRF
///
/// The same addresses can be used once in each.
#[utoipa::path(post, path = "/v1/vrfs", tag = "addresses", request_body = NewVrf,
    responses((status = 201, body = Vrf)))]
pub(super) async fn create(State(app): State<App>, Json(body): Json<NewVrf>) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    let mut tx = app.store.begin().await?;
    let vrf = tx.insert_vrf(app.clock.now().wall, &body.name).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, axum::Json(Vrf::from(vrf))))
}
