//! Grants of pools and claims: who may do what with their addresses.

use std::collections::{BTreeSet, HashMap};

use rackhand_common::id::ProjectId;
use rackhand_controller_core::access::{self, Action, Grantee as To, Place, Role, Wanting};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{App, Caller, Error};
use crate::store;

/// The most grants of a pool or a claim.
const GRANTS: usize = 100;

/// What somebody may do with addresses, when their role lets them.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Grant {
    /// Who.
    to: Grantee,
    /// What: at least one.
    may: BTreeSet<Use>,
}

/// Who has a grant.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Grantee {
    /// Whoever has the role for it.
    Everyone,
    /// Whoever does it for this project (id, name or ORGANISATION:NAME).
    #[schema(example = "acme:shop")]
    Project(String),
    /// Whoever has this very role where the addresses are.
    #[schema(example = "operator")]
    Role(String),
    /// Whoever has the token with this id.
    Token(Uuid),
}

/// What a grant lets do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Use {
    /// Claim addresses, and say who holds them.
    Assign,
    /// Have machines announce them by BGP.
    Announce,
    /// Say which names reverse DNS answers for them.
    Reverse,
}

impl From<Use> for access::Use {
    fn from(of: Use) -> Self {
        match of {
            Use::Assign => Self::Assign,
            Use::Announce => Self::Announce,
            Use::Reverse => Self::Reverse,
        }
    }
}

impl Grant {
    pub(super) fn of(row: &access::Grant, projects: &HashMap<ProjectId, String>) -> Self {
        let may = row.may.iter().map(|of| match of {
            access::Use::Assign => Use::Assign,
            access::Use::Announce => Use::Announce,
            access::Use::Reverse => Use::Reverse,
        });
        let to = match row.to {
            To::Everyone => Grantee::Everyone,
            To::Project(id) => Grantee::Project(projects.get(&id).cloned().unwrap_or_else(|| id.to_string())),
            To::Role(role) => Grantee::Role(role.to_string()),
            To::Token(id) => Grantee::Token(id),
        };
        Self { to, may: may.collect() }
    }
}

/// The projects that are to be named of grants.
pub(super) fn projects(grants: &[access::Grant]) -> impl Iterator<Item = ProjectId> {
    grants.iter().filter_map(|grant| match grant.to {
        To::Project(project) => Some(project),
        To::Everyone | To::Role(_) | To::Token(_) => None,
    })
}

/// What is stored of these grants: of projects and tokens that are there, or that `known` names already.
pub(super) async fn checked(
    app: &App,
    caller: &Caller,
    grants: Vec<Grant>,
    known: &[access::Grant],
) -> Result<Vec<access::Grant>, Error> {
    if grants.len() > GRANTS {
        return Err(Error::invalid("/grants", format!("at most {GRANTS}")));
    }
    let is_known = |to: &To| known.iter().any(|grant| grant.to == *to);
    let mut checked = Vec::new();
    for (at, Grant { to, may }) in grants.into_iter().enumerate() {
        if may.is_empty() {
            let uses = "say what: assign, announce or reverse, one or several";
            return Err(Error::invalid(&format!("/grants/{at}/may"), uses));
        }
        let field = format!("/grants/{at}/to");
        let to = match to {
            Grantee::Everyone => To::Everyone,
            // One that was deleted since has its id for a name.
            Grantee::Project(name) => match name.parse().map(To::Project).ok().filter(is_known) {
                Some(known) => known,
                None => To::Project(caller.project(app, &name).await?.id),
            },
            Grantee::Role(name) => To::Role(name.parse::<Role>().map_err(|error| Error::invalid(&field, error))?),
            Grantee::Token(id) if is_known(&To::Token(id)) => To::Token(id),
            Grantee::Token(id) => match app.store.token_with_id(app.clock.now().wall, id).await {
                Ok((token, _)) => To::Token(token.id),
                Err(store::StoreError::NotFound(_)) => return Err(Error::invalid(&field, "there is no such token")),
                Err(error) => return Err(error.into()),
            },
        };
        checked.push(access::Grant { to, may: may.into_iter().map(Into::into).collect() });
    }
    Ok(checked)
}

impl Caller {
    /// That they may use a pool's addresses that are to stand at `place`: by their role, and by a
    /// grant of the pool. Whoever gives grants needs none.
    pub(super) fn may_use(&self, pool: &store::Pool, wanted: access::Use, place: Place) -> Result<(), Error> {
        if self.is_let(&pool.grants, wanted, place)? {
            return Ok(());
        }
        let (pool, wanted) = (&pool.name, wanted.name());
        Err(Error::forbidden(format!(
            "pool {pool} has no grant that lets you {wanted} its addresses there; an administrator gives one with \
             `rackhand pool grant {pool} --project NAME --may {wanted}`"
        )))
    }

    /// The same of a claim's addresses: its own grants count, where it has some, and else its pool's.
    pub(super) fn may_use_claim(
        &self,
        claim: &store::Claim,
        pool: &store::Pool,
        wanted: access::Use,
        place: Place,
    ) -> Result<(), Error> {
        let Some(grants) = &claim.grants else { return self.may_use(pool, wanted, place) };
        if self.is_let(grants, wanted, place)? {
            return Ok(());
        }
        let (prefix, wanted) = (claim.prefix, wanted.name());
        Err(Error::forbidden(format!(
            "{prefix} has grants of its own, none of which lets you {wanted} it there; an administrator gives one with \
             `rackhand ip grant {prefix} --project NAME --may {wanted}`"
        )))
    }

    fn is_let(&self, grants: &[access::Grant], wanted: access::Use, place: Place) -> Result<bool, Error> {
        self.require(wanted.action(), place)?;
        let who = Wanting { bindings: &self.rights.bindings, token: self.token, place };
        let sets_up = self.rights.permit(Action::AddressSpace, Place::EVERYTHING);
        Ok(sets_up || grants.iter().any(|grant| grant.lets(wanted, who)))
    }
}
