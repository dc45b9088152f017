//! `/v1/projects`: what machines and addresses are given to.

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
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    extract::{Expected, Json, Page, Query, check_name, limit, parse, tagged},
};
use crate::store::{self, Thing};

/// What machines and addresses are given to.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Project {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::ProjectId,
    /// Its name, unique in its organisation. Where several have the name, `ORGANISATION:NAME` says which.
    #[schema(example = "shop")]
    name: String,
    /// Its organisation's name.
    #[schema(example = "acme")]
    organisation: String,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

impl From<store::Project> for Project {
    fn from(row: store::Project) -> Self {
        Self { id: row.id, name: row.name, organisation: row.organisation_name, created: row.created }
    }
}

/// A project to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewProject {
    /// Its name: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "shop")]
    name: String,
    /// Whose it is: an organisation's id or name.
    #[schema(example = "acme")]
    organisation: String,
}

/// What may be changed about a project.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RenamedProject {
    /// Another name.
    #[schema(example = "webshop")]
    name: String,
}

/// Which projects.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only those of this organisation (id or name).
    organisation: Option<String>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// List projects
#[utoipa::path(get, path = "/v1/projects", tag = "projects", params(Which),
    responses((status = 200, body = Page<Project>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (limit(which.limit)?, caller.sight(Action::ProjectRead)?);
    let organisation = match which.organisation {
        Some(name) => {
            let found = caller.find(&app, Action::OrganisationRead, Thing::Organisation, &name).await?;
            Some(found.id.parse().map_err(Error::internal)?)
        }
        None => None,
    };
    let after = parse("after", which.after.as_deref())?;
    let rows = app.store.projects(&sight, organisation, after, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Project::from)))
}

/// Show one project
#[utoipa::path(get, path = "/v1/projects/{project}", tag = "projects",
    params(("project" = String, Path, description = "Id, name, or ORGANISATION:NAME.")),
    responses((status = 200, body = Project)))]
pub(super) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let project = caller.project(&app, &name).await?;
    Ok(tagged(project.version, Project::from(project)))
}

/// Create a project
#[utoipa::path(post, path = "/v1/projects", tag = "projects", request_body = NewProject,
    responses((status = 201, body = Project, headers(("Location" = String, description = "The project.")))))]
pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Json(body): Json<NewProject>,
) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    let mut tx = app.store.begin().await?;
    let organisation = tx.standing(Thing::Organisation, &body.organisation).await?;
    caller.check(Action::ProjectManage, "organisation", organisation.place)?;
    let organisation = tx.organisation(&organisation.id).await?;
    let made = Project::from(tx.insert_project(app.clock.now().wall, &organisation, &body.name).await?);
    tx.commit().await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/projects/{}", made.id))], axum::Json(made)))
}

/// Rename a project
#[utoipa::path(patch, path = "/v1/projects/{project}", tag = "projects", request_body = RenamedProject,
    params(("project" = String, Path, description = "Id, name, or ORGANISATION:NAME.")),
    responses((status = 200, body = Project)))]
pub(super) async fn rename(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    expected: Expected,
    Json(body): Json<RenamedProject>,
) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    let project = caller.project(&app, &name).await?;
    let mut tx = app.store.begin().await?;
    let project = tx.project(project.id).await?;
    expected.check(project.version)?;
    let project = tx.rename_project(project, &body.name).await?;
    tx.commit().await?;
    Ok(tagged(project.version, Project::from(project)))
}

/// Remove a project
///
/// With its tokens, its blocks of pools, and the roles that people have in it. Refused while it has
/// machines or addresses, or addresses in quarantine: release them first. What it had stays in their history.
#[utoipa::path(delete, path = "/v1/projects/{project}", tag = "projects",
    params(("project" = String, Path, description = "Id, name, or ORGANISATION:NAME.")),
    responses((status = 204)))]
pub(super) async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    expected: Expected,
) -> Result<impl IntoResponse, Error> {
    let project = caller.project(&app, &name).await?;
    let mut tx = app.store.begin().await?;
    let project = tx.project(project.id).await?;
    expected.check(project.version)?;
    for pool in tx.pools_of(project.id).await? {
        tx.remove_pool(app.clock.now().wall, &pool).await?;
    }
    if !tx.delete_project(project.id).await? {
        let name = project.name;
        return Err(Error::conflict(format!("project {name} has machines or addresses; release them first")));
    }
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
