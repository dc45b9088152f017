//! `/v1/aggregates`: address space, whose it is, and by what right.

use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::id;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App, Error,
    claims::prefix,
    extract::{Json, Page, Query, Window, check_text, parse},
};
use crate::{
    addresses::Refused,
    store::{self, ProofKind as Kind, ProofState as Looked},
};

/// Address space of one origin.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Aggregate {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::AggregateId,
    /// Its VRF's name.
    #[schema(example = "default")]
    vrf: String,
    /// Which addresses.
    #[schema(example = "198.51.100.0/22")]
    prefix: String,
    /// Whose it is, and by what right.
    source: Source,
    /// Whether pools may be made of it.
    usable: bool,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

/// Whose an aggregate is, and by what right.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Source {
    /// Nobody's in particular: private use (RFC 1918, RFC 4193).
    Private,
    /// Ours, by a registry.
    Registry {
        /// Which, and under what name.
        #[schema(example = "RIPE ORG-EX1-RIPE")]
        name: String,
    },
    /// A customer brought it. It can be used once its proof is `verified`.
    Customer {
        /// Who.
        #[schema(example = "example-shop")]
        name: String,
        /// Why we may use it.
        proof: Proof,
    },
}

/// What shows that a customer may have us announce their space.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Proof {
    /// A route origin authorisation or a letter.
    kind: ProofKind,
    /// Where it is: the ROA's ASN and prefix, or the letter's ticket.
    #[schema(example = "AS64500 198.51.100.0/22-24")]
    reference: String,
    /// Whether somebody looked.
    #[serde(default)]
    state: ProofState,
}

/// A kind of proof.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ProofKind {
    /// A route origin authorisation (RFC 9582).
    Roa,
    /// A letter of authorisation.
    Loa,
}

/// Whether somebody looked at a proof.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ProofState {
    /// Nobody yet.
    #[default]
    Pending,
    /// It was found right.
    Verified,
    /// It was found wrong, or has ended.
    Refused,
}

impl From<ProofState> for Looked {
    fn from(state: ProofState) -> Self {
        match state {
            ProofState::Pending => Self::Pending,
            ProofState::Verified => Self::Verified,
            ProofState::Refused => Self::Refused,
        }
    }
}

impl From<store::Source> for Source {
    fn from(row: store::Source) -> Self {
        match row {
            store::Source::Private => Self::Private,
            store::Source::Registry { name } => Self::Registry { name },
            store::Source::Customer { name, proof } => Self::Customer {
                name,
                proof: Proof {
                    kind: match proof.kind {
                        Kind::Roa => ProofKind::Roa,
                        Kind::Loa => ProofKind::Loa,
                    },
                    reference: proof.reference,
                    state: match proof.state {
                        Looked::Pending => ProofState::Pending,
                        Looked::Verified => ProofState::Verified,
                        Looked::Refused => ProofState::Refused,
                    },
                },
            },
        }
    }
}

impl TryFrom<Source> for store::Source {
    type Error = Error;

    fn try_from(source: Source) -> Result<Self, Error> {
        Ok(match source {
            Source::Private => Self::Private,
            Source::Registry { name } => {
                check_text("/source/registry/name", &name, 100)?;
                Self::Registry { name }
            }
            Source::Customer { name, proof } => {
                check_text("/source/customer/name", &name, 100)?;
                check_text("/source/customer/proof/reference", &proof.reference, 500)?;
                let kind = match proof.kind {
                    ProofKind::Roa => Kind::Roa,
                    ProofKind::Loa => Kind::Loa,
                };
                let proof = store::Proof { kind, reference: proof.reference, state: proof.state.into() };
                Self::Customer { name, proof }
            }
        })
    }
}

impl From<store::Aggregate> for Aggregate {
    fn from(row: store::Aggregate) -> Self {
        Self {
            id: row.id,
            vrf: row.vrf,
            prefix: row.prefix.to_string(),
            usable: row.source.may_be_used(),
            source: row.source.into(),
            created: row.created,
        }
    }
}

/// An aggregate to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAggregate {
    /// Which addresses.
    #[schema(example = "198.51.100.0/22")]
    prefix: String,
    /// The VRF's name; `default` when absent.
    vrf: Option<String>,
    /// Whose it is, and by what right.
    source: Source,
}

/// List aggregates
#[utoipa::path(get, path = "/v1/aggregates", tag = "addresses", params(Window),
    responses((status = 200, body = Page<Aggregate>)))]
pub(super) async fn list(State(app): State<App>, Query(window): Query<Window>) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rows = app.store.aggregates(parse("after", window.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Aggregate::from)))
}

/// Create an aggregate
///
/// Address space that is ours to use: by a registry, private, or brought by a customer with a proof.
/// Pools are made of it. Aggregates of one VRF do not overlap.
#[utoipa::path(post, path = "/v1/aggregates", tag = "addresses", request_body = NewAggregate,
    responses((status = 201, body = Aggregate)))]
pub(super) async fn create(State(app): State<App>, Json(body): Json<NewAggregate>) -> Result<impl IntoResponse, Error> {
    let wanted = prefix("/prefix", &body.prefix)?;
    let source = body.source.try_into()?;
    let mut tx = app.store.begin().await?;
    let vrf = tx.vrf(body.vrf.as_deref().unwrap_or("default")).await?;
    let made = tx.add_aggregate(app.clock.now().wall, &vrf, wanted, &source).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, axum::Json(Aggregate::from(made))))
}

/// What came of looking at a customer's proof.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Verdict {
    /// What was found.
    state: ProofState,
    /// Where the proof is now, when that changed.
    reference: Option<String>,
}

/// Say what a customer's proof is worth
///
/// Pools can be made of a customer's aggregate only while its proof is `verified`. Those there are
/// stay when it is refused later.
#[utoipa::path(post, path = "/v1/aggregates/{aggregate}/proof", tag = "addresses", request_body = Verdict,
    params(("aggregate" = String, Path, description = "Id.")), responses((status = 200, body = Aggregate)))]
pub(super) async fn prove(
    State(app): State<App>,
    Path(aggregate): Path<String>,
    Json(body): Json<Verdict>,
) -> Result<impl IntoResponse, Error> {
    if let Some(reference) = &body.reference {
        check_text("/reference", reference, 500)?;
    }
    let id = aggregate_id(&aggregate)?;
    let mut tx = app.store.begin().await?;
    let aggregate = tx.aggregate(id).await?;
    let store::Source::Customer { name, proof } = aggregate.source.clone() else {
        return Err(Refused::NoProof(aggregate.prefix).into());
    };
    let reference = body.reference.unwrap_or(proof.reference);
    let proof = store::Proof { state: body.state.into(), reference, ..proof };
    tx.set_source(&aggregate, &store::Source::Customer { name, proof }).await?;
    let aggregate = tx.aggregate(id).await?;
    tx.commit().await?;
    Ok(axum::Json(Aggregate::from(aggregate)))
}

/// Delete an aggregate
///
/// One that no pool has anything of. What was claimed of it stays in the history.
#[utoipa::path(delete, path = "/v1/aggregates/{aggregate}", tag = "addresses",
    params(("aggregate" = String, Path, description = "Id.")), responses((status = 204)))]
pub(super) async fn delete(State(app): State<App>, Path(aggregate): Path<String>) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let aggregate = tx.aggregate(aggregate_id(&aggregate)?).await?;
    tx.remove_aggregate(&aggregate).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

fn aggregate_id(text: &str) -> Result<id::AggregateId, Error> {
    text.parse().map_err(|_| Error::not_found(format!("`{text}` is not an aggregate's id; /v1/aggregates lists them")))
}
