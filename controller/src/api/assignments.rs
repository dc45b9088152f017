//! `/v1/assignments`: which blocks that the world routes are given to which project, as registries ask.

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use rackhand_controller_core::{
    access::Action,
    ipam::{Prefix, rpsl},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    extract::{Page, Query, limit, parse, text_page},
};

/// A block that is given to a project.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Assignment {
    /// The addresses: a block, or one of length 32 or 128.
    #[schema(example = "198.51.100.128/25")]
    prefix: String,
    /// The first of them.
    #[schema(example = "198.51.100.128")]
    first: String,
    /// The last of them.
    #[schema(example = "198.51.100.255")]
    last: String,
    /// The project, as ORGANISATION:NAME.
    #[schema(example = "acme:shop")]
    project: String,
    /// The name that the project's networks have in a registry's database.
    #[schema(example = "ACME-SHOP")]
    netname: String,
    /// Name of the pool they are from.
    #[schema(example = "public-4.shop")]
    pool: String,
}

/// In which VRF, and in what form. The form `rpsl` needs the rest, which nobody here knows.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// In this VRF; `default` when absent.
    vrf: Option<String>,
    /// `rpsl` for objects of a registry's database, `csv` for a file (RFC 4180); JSON when absent. Pages are
    /// the same: `next` is in the header `Rackhand-Next` then.
    format: Option<Form>,
    /// Of objects, `country`: where the addresses are used, by two letters.
    #[param(example = "NL")]
    country: Option<String>,
    /// Of objects, `admin-c`: who is asked about the networks.
    #[param(example = "EX1-RIPE")]
    admin_c: Option<String>,
    /// Of objects, `tech-c`: who is asked about how they work.
    #[param(example = "EX1-RIPE")]
    tech_c: Option<String>,
    /// Of objects, `mnt-by`: who may change them.
    #[param(example = "EXAMPLE-MNT")]
    mnt_by: Option<String>,
    /// Of objects, `source`: the registry's database.
    #[param(example = "RIPE")]
    source: Option<String>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// The form of the report.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Form {
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
    /// For a registry's database.
    Rpsl,
}

impl Which {
    /// What is the same in all objects.
    fn registry(&self) -> Result<rpsl::Registry, Error> {
        Ok(rpsl::Registry {
            country: said("country", self.country.as_deref())?,
            admin: said("admin_c", self.admin_c.as_deref())?,
            tech: said("tech_c", self.tech_c.as_deref())?,
            maintainer: said("mnt_by", self.mnt_by.as_deref())?,
            source: said("source", self.source.as_deref())?,
        })
    }
}

/// A parameter that objects need.
fn said<T: std::str::FromStr<Err: std::fmt::Display>>(field: &str, text: Option<&str>) -> Result<T, Error> {
    let text = text.ok_or_else(|| Error::invalid(field, "objects of a registry's database need it"))?;
    text.parse().map_err(|error: T::Err| Error::invalid(field, error))
}

const CSV_HEADER: &str = "prefix,first,last,project,netname,pool\r\n";

impl Assignment {
    /// As a line of CSV. Nothing in it needs quotes: names have no comma.
    fn line(&self) -> String {
        let Self { prefix, first, last, project, netname, pool } = self;
        format!("{prefix},{first},{last},{project},{netname},{pool}\r\n")
    }
}

/// Report which blocks are given to which project
///
/// Of public and global pools, out of what a registry gave us: the blocks that are a project's own, and what
/// projects claim outside of those, by address. What a customer brought is the customer's to register. In the
/// form `rpsl` each is an `inetnum` or an `inet6num`, to be sent to a registry's database.
#[utoipa::path(get, path = "/v1/assignments", tag = "addresses", params(Which),
    responses((status = 200, content((Page<Assignment> = "application/json"), (String = "text/csv"),
        (String = "text/plain")))))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(which): Query<Which>,
) -> Result<Response, Error> {
    let (limit, sight) = (limit(which.limit)?, caller.sight(Action::AddressRead)?);
    let registry = (which.format == Some(Form::Rpsl)).then(|| which.registry()).transpose()?;
    let vrf = app.store.vrf(which.vrf.as_deref().unwrap_or("default")).await?;
    let after: Option<Prefix> = parse("after", which.after.as_deref())?;
    let rows = app.store.assignments(&sight, &vrf, after, limit + 1).await?;
    let names = app.store.project_names(rows.iter().map(|row| row.project)).await?;
    let project = |id| names.get(&id).cloned().unwrap_or_else(|| id.to_string());
    let page = Page::of(rows, limit, |row| row.prefix.to_string(), |row| (project(row.project), row));
    let Page { items, next } = page;
    if let Some(registry) = registry {
        let objects = items.iter().map(|(project, row)| rpsl::assignment(row.prefix, project, &registry));
        return Ok(text_page("text/plain; charset=utf-8", objects.collect(), next));
    }
    let view = |(project, row): (String, crate::store::Assignment)| Assignment {
        prefix: row.prefix.to_string(),
        first: row.prefix.first().to_string(),
        last: row.prefix.last().to_string(),
        netname: rpsl::netname(&project).to_string(),
        project,
        pool: row.pool,
    };
    let items: Vec<_> = items.into_iter().map(view).collect();
    if which.format == Some(Form::Csv) {
        let lines = items.iter().map(Assignment::line);
        let text = std::iter::once(CSV_HEADER.to_owned()).chain(lines).collect();
        return Ok(text_page("text/csv; charset=utf-8; header=present", text, next));
    }
    Ok(axum::Json(Page { items, next }).into_response())
}
