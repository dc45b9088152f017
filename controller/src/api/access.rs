//! Who may use which operation: one table of all there are. What is not in it is refused.
//!
//! The head of a request is enough to decide about what its path names: nothing of the body is
//! read before. What only the body names (a deploy's project, a claim's pool) is for the verb to
//! check, with [`Caller::check`].
//!
//! Invariants:
//! - What a caller may not see is answered exactly as what is not there: 404.
//! - What a caller may see and not do is 403, and names the roles that may.

use axum::{
    extract::{FromRequestParts as _, MatchedPath, RawPathParams, Request, State},
    http::{HeaderMap, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use rackhand_common::id::{MachineId, OrganisationId, PersonId, RackId, SiteId};
use rackhand_controller_core::access::{Action, Binding, Place, Rights, Role, Scope, Sight};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{App, Error};
use crate::store::{Owner, Project, SshKey, Standing, StoreError, Thing, Token, Tx};

/// Who may use an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anyone: it tells nothing about the racks.
    Anyone,
    /// Whoever has a valid token, whatever it is for.
    Caller,
    /// Whoever has a token for what is one's own.
    Own,
    /// Whoever may do this there.
    May(Action, At),
}

/// Where it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// In the whole installation: a role in a part of it is not enough.
    Everything,
    /// Anywhere: a list, of which everyone sees their part, or what all share.
    Anywhere,
    /// Where the body says; the verb looks. Whoever may nowhere is refused before.
    Body,
    /// Where the thing of this kind stands that the path names.
    Named(Thing),
}

use Access::{Anyone, May, Own};
use Action::*;
use At::{Anywhere, Body, Everything, Named};

/// Operations, and who may use each.
pub type Table = &'static [(Method, &'static str, Access)];

/// Every operation there is.
#[rustfmt::skip]
pub const TABLE: Table = &[
    (Method::GET, "/v1/openapi.json", Anyone),
    (Method::POST, "/v1/login", Anyone),
    (Method::POST, "/v1/login/oidc", Anyone),
    (Method::POST, "/v1/login/oidc/finish", Anyone),
    (Method::GET, "/v1/whoami", Access::Caller),
    (Method::GET, "/v1/roles", Access::Caller),
    (Method::PUT, "/v1/password", Own),
    (Method::POST, "/v1/totp", Own),
    (Method::POST, "/v1/totp/confirm", Own),
    (Method::POST, "/v1/totp/remove", Own),
    (Method::GET, "/v1/tokens", Own),
    (Method::POST, "/v1/tokens", Own),
    (Method::DELETE, "/v1/tokens/{token}", Own),
    (Method::GET, "/v1/ssh-keys", Own),
    (Method::POST, "/v1/ssh-keys", Own),
    (Method::DELETE, "/v1/ssh-keys/{key}", Own),
    (Method::GET, "/v1/ssh", Access::Caller),
    (Method::GET, "/v1/organisations", May(OrganisationRead, Anywhere)),
    (Method::POST, "/v1/organisations", May(OrganisationManage, Everything)),
    (Method::GET, "/v1/organisations/{organisation}", May(OrganisationRead, Named(Thing::Organisation))),
    (Method::PATCH, "/v1/organisations/{organisation}", May(OrganisationManage, Named(Thing::Organisation))),
    (Method::DELETE, "/v1/organisations/{organisation}", May(OrganisationManage, Named(Thing::Organisation))),
    (Method::GET, "/v1/projects", May(ProjectRead, Anywhere)),
    (Method::POST, "/v1/projects", May(ProjectManage, Body)),
    (Method::GET, "/v1/projects/{project}", May(ProjectRead, Named(Thing::Project))),
    (Method::PATCH, "/v1/projects/{project}", May(ProjectManage, Named(Thing::Project))),
    (Method::DELETE, "/v1/projects/{project}", May(ProjectManage, Named(Thing::Project))),
    (Method::GET, "/v1/sites", May(SiteRead, Anywhere)),
    (Method::POST, "/v1/sites", May(SiteManage, Everything)),
    (Method::GET, "/v1/sites/{site}", May(SiteRead, Named(Thing::Site))),
    (Method::PATCH, "/v1/sites/{site}", May(SiteManage, Named(Thing::Site))),
    (Method::DELETE, "/v1/sites/{site}", May(SiteManage, Named(Thing::Site))),
    (Method::GET, "/v1/people", May(PersonRead, Everything)),
    (Method::POST, "/v1/people", May(PersonManage, Everything)),
    (Method::GET, "/v1/people/{person}", May(PersonRead, Everything)),
    (Method::PATCH, "/v1/people/{person}", May(PersonManage, Everything)),
    (Method::DELETE, "/v1/people/{person}", May(PersonManage, Everything)),
    (Method::GET, "/v1/bindings", May(RoleRead, Anywhere)),
    (Method::POST, "/v1/bindings", May(RoleGrant, Body)),
    (Method::DELETE, "/v1/bindings/{binding}", May(RoleGrant, Named(Thing::Binding))),
    (Method::GET, "/v1/racks", May(RackRead, Anywhere)),
    (Method::POST, "/v1/racks", May(RackManage, Body)),
    (Method::GET, "/v1/racks/{rack}", May(RackRead, Named(Thing::Rack))),
    (Method::PATCH, "/v1/racks/{rack}", May(RackManage, Named(Thing::Rack))),
    (Method::POST, "/v1/racks/{rack}/enrolment-codes", May(AgentEnrol, Named(Thing::Rack))),
    (Method::GET, "/v1/racks/{rack}/bmcs", May(RackRead, Named(Thing::Rack))),
    (Method::GET, "/v1/racks/{rack}/bmcs/{machine}", May(RackRead, Named(Thing::Rack))),
    (Method::PUT, "/v1/racks/{rack}/bmcs/{machine}", May(RackManage, Named(Thing::Rack))),
    (Method::DELETE, "/v1/racks/{rack}/bmcs/{machine}", May(RackManage, Named(Thing::Rack))),
    (Method::GET, "/v1/racks/{rack}/bmcs/{machine}/{what}", May(RackRead, Named(Thing::Rack))),
    (Method::POST, "/v1/racks/{rack}/bmcs/{machine}/rotate", May(RackManage, Named(Thing::Rack))),
    (Method::POST, "/v1/racks/{rack}/bmcs/{machine}/regain", May(RackManage, Named(Thing::Rack))),
    (Method::GET, "/v1/racks/{rack}/found-bmcs", May(RackRead, Named(Thing::Rack))),
    (Method::GET, "/v1/racks/{rack}/expected-bmcs", May(RackRead, Named(Thing::Rack))),
    (Method::POST, "/v1/racks/{rack}/expected-bmcs", May(RackManage, Named(Thing::Rack))),
    (Method::DELETE, "/v1/racks/{rack}/expected-bmcs", May(RackManage, Named(Thing::Rack))),
    // Whose it is to be, and which addresses it holds, is for the verb to look at.
    (Method::POST, "/v1/racks/{rack}/running-machines", May(MachineAdopt, Named(Thing::Rack))),
    (Method::GET, "/v1/prometheus/targets", May(AgentRead, Anywhere)),
    (Method::GET, "/v1/agents", May(AgentRead, Anywhere)),
    (Method::POST, "/v1/agents/{agent}/revoke", May(AgentRevoke, Named(Thing::Agent))),
    (Method::POST, "/v1/agents/{agent}/replace", May(AgentRevoke, Named(Thing::Agent))),
    (Method::GET, "/v1/machines", May(MachineRead, Anywhere)),
    (Method::GET, "/v1/machines/{machine}", May(MachineRead, Named(Thing::Machine))),
    (Method::PATCH, "/v1/machines/{machine}", May(MachineAdopt, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/adopt", May(MachineAdopt, Named(Thing::Machine))),
    (Method::DELETE, "/v1/machines/{machine}", May(MachineForget, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/replace-part", May(MachineAdopt, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/merge", May(MachineForget, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/assign", May(MachineAssign, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/deploy", May(MachineDeploy, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/release", May(MachineRelease, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/power", May(MachinePower, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/reinstall", May(MachineDeploy, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/rescue", May(MachineDeploy, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/leave-rescue", May(MachineDeploy, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/inspect", May(MachineMaintain, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/test", May(MachineMaintain, Named(Thing::Machine))),
    (Method::GET, "/v1/machines/{machine}/tests", May(MachineRead, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/maintain", May(MachineMaintain, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/resume", May(MachineMaintain, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/quarantine", May(MachineMaintain, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/retire", May(MachineMaintain, Named(Thing::Machine))),
    (Method::GET, "/v1/machines/{machine}/baseline", May(MachineAdopt, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/baseline/read", May(MachineAdopt, Named(Thing::Machine))),
    (Method::POST, "/v1/machines/{machine}/baseline/accept", May(MachineAdopt, Named(Thing::Machine))),
    (Method::GET, "/v1/machines/{machine}/hardware", May(MachineRead, Named(Thing::Machine))),
    (Method::GET, "/v1/machines/{machine}/health", May(MachineRead, Named(Thing::Machine))),
    (Method::PUT, "/v1/machines/{machine}/health/override", May(MachineAdopt, Named(Thing::Machine))),
    (Method::DELETE, "/v1/machines/{machine}/health/override", May(MachineAdopt, Named(Thing::Machine))),
    (Method::GET, "/v1/machines/{machine}/health/series", May(MachineRead, Named(Thing::Machine))),
    // Of a machine that is in use only its project's people; the verb looks.
    (Method::GET, "/v1/machines/{machine}/console", May(MachinePower, Named(Thing::Machine))),
    (Method::GET, "/v1/machines/{machine}/console/log", May(MachinePower, Named(Thing::Machine))),
    (Method::GET, "/v1/images", May(ImageRead, Anywhere)),
    (Method::POST, "/v1/images", May(ImageManage, Everything)),
    (Method::GET, "/v1/images/{image}", May(ImageRead, Anywhere)),
    (Method::PUT, "/v1/images/{image}", May(ImageManage, Everything)),
    (Method::PATCH, "/v1/images/{image}", May(ImageManage, Everything)),
    (Method::DELETE, "/v1/images/{image}", May(ImageManage, Everything)),
    (Method::POST, "/v1/images/{image}/check", May(ImageManage, Everything)),
    (Method::GET, "/v1/firmware", May(ImageRead, Anywhere)),
    (Method::POST, "/v1/firmware", May(ImageManage, Everything)),
    (Method::GET, "/v1/firmware/{firmware}", May(ImageRead, Anywhere)),
    (Method::PUT, "/v1/firmware/{firmware}/file", May(ImageManage, Everything)),
    (Method::DELETE, "/v1/firmware/{firmware}", May(ImageManage, Everything)),
    (Method::POST, "/v1/machines/{machine}/update-firmware", May(MachineMaintain, Named(Thing::Machine))),
    (Method::GET, "/v1/machines/{machine}/firmware-updates", May(MachineRead, Named(Thing::Machine))),
    (Method::GET, "/v1/racks/{rack}/firmware-campaigns", May(RackRead, Named(Thing::Rack))),
    (Method::POST, "/v1/racks/{rack}/firmware-campaigns", May(MachineMaintain, Named(Thing::Rack))),
    (Method::GET, "/v1/racks/{rack}/firmware-campaigns/{campaign}", May(RackRead, Named(Thing::Rack))),
    (Method::PATCH, "/v1/racks/{rack}/firmware-campaigns/{campaign}", May(MachineMaintain, Named(Thing::Rack))),
    (Method::GET, "/v1/plans", May(ImageRead, Anywhere)),
    (Method::POST, "/v1/plans", May(ImageManage, Everything)),
    (Method::GET, "/v1/plans/{plan}", May(ImageRead, Anywhere)),
    (Method::PATCH, "/v1/plans/{plan}", May(ImageManage, Everything)),
    (Method::DELETE, "/v1/plans/{plan}", May(ImageManage, Everything)),
    (Method::GET, "/v1/plans/{plan}/machines", May(MachineRead, Anywhere)),
    (Method::GET, "/v1/machines/{machine}/plans", May(MachineRead, Named(Thing::Machine))),
    (Method::GET, "/v1/machines/{machine}/suggested-plan", May(MachineRead, Named(Thing::Machine))),
    (Method::GET, "/v1/operating-systems", May(ImageRead, Anywhere)),
    (Method::GET, "/v1/operating-systems/{os}", May(ImageRead, Anywhere)),
    (Method::GET, "/v1/operating-systems/{os}/kickstart", May(ImageRead, Anywhere)),
    (Method::GET, "/v1/machines/{machine}/erasures", May(MachineRead, Named(Thing::Machine))),
    (Method::GET, "/v1/erasures", May(MachineRead, Anywhere)),
    (Method::GET, "/v1/erasures/{erasure}", May(MachineRead, Named(Thing::Erasure))),
    (Method::GET, "/v1/runs", May(RunRead, Anywhere)),
    (Method::GET, "/v1/runs/{run}", May(RunRead, Named(Thing::Run))),
    (Method::POST, "/v1/runs/{run}/cancel", May(RunCancel, Named(Thing::Run))),
    // Whoever may see it; what it does is for the verb to check, at its machine.
    (Method::POST, "/v1/runs/{run}/retry", May(RunRead, Named(Thing::Run))),
    (Method::GET, "/v1/runs/{run}/logs", May(RunRead, Named(Thing::Run))),
    (Method::GET, "/v1/vrfs", May(AddressRead, Anywhere)),
    (Method::POST, "/v1/vrfs", May(AddressSpace, Everything)),
    (Method::GET, "/v1/aggregates", May(AddressSpace, Everything)),
    (Method::POST, "/v1/aggregates", May(AddressSpace, Everything)),
    (Method::DELETE, "/v1/aggregates/{aggregate}", May(AddressSpace, Everything)),
    (Method::POST, "/v1/aggregates/{aggregate}/proof", May(AddressSpace, Everything)),
    (Method::GET, "/v1/pools", May(AddressRead, Anywhere)),
    (Method::POST, "/v1/pools", May(AddressSpace, Everything)),
    (Method::GET, "/v1/pools/{pool}", May(AddressRead, Anywhere)),
    (Method::PATCH, "/v1/pools/{pool}", May(AddressSpace, Everything)),
    (Method::DELETE, "/v1/pools/{pool}", May(AddressSpace, Everything)),
    (Method::POST, "/v1/pools/{pool}/prefixes", May(AddressSpace, Everything)),
    (Method::GET, "/v1/pools/{pool}/space", May(AddressRead, Anywhere)),
    (Method::GET, "/v1/pools/{pool}/trend", May(AddressRead, Anywhere)),
    (Method::GET, "/v1/utilisation", May(AddressRead, Anywhere)),
    (Method::GET, "/v1/utilisation/projects", May(AddressRead, Anywhere)),
    (Method::GET, "/v1/utilisation/sites", May(AddressRead, Anywhere)),
    (Method::GET, "/v1/assignments", May(AddressRead, Anywhere)),
    (Method::GET, "/v1/claims", May(AddressRead, Anywhere)),
    (Method::POST, "/v1/claims", May(AddressClaim, Body)),
    (Method::GET, "/v1/claims/{claim}", May(AddressRead, Named(Thing::Claim))),
    (Method::PATCH, "/v1/claims/{claim}", May(AddressClaim, Named(Thing::Claim))),
    (Method::DELETE, "/v1/claims/{claim}", May(AddressClaim, Named(Thing::Claim))),
    (Method::GET, "/v1/claims/{claim}/grants", May(AddressRead, Named(Thing::Claim))),
    (Method::PUT, "/v1/claims/{claim}/grants", May(AddressSpace, Everything)),
    (Method::DELETE, "/v1/claims/{claim}/grants", May(AddressSpace, Everything)),
    (Method::PUT, "/v1/claims/{claim}/announcements/{machine}", May(AddressAnnounce, Named(Thing::Claim))),
    // Of whoever answers for the claim, or for the machine.
    (Method::DELETE, "/v1/claims/{claim}/announcements/{machine}", May(AddressAnnounce, Anywhere)),
    (Method::GET, "/v1/announcements", May(AddressRead, Anywhere)),
    (Method::GET, "/v1/addresses/{address}/history", May(AddressRead, Anywhere)),
    (Method::GET, "/v1/addresses/{address}/announcements", May(AddressRead, Anywhere)),
    (Method::GET, "/v1/addresses/{address}/blocks", May(AddressRead, Anywhere)),
    (Method::GET, "/v1/addresses/{address}/name", May(AddressRead, Anywhere)),
    (Method::PUT, "/v1/addresses/{address}/name", May(AddressName, Body)),
    (Method::DELETE, "/v1/addresses/{address}/name", May(AddressName, Body)),
    (Method::GET, "/v1/reverse-zone", May(AddressSpace, Everything)),
    (Method::GET, "/v1/events", May(EventRead, Anywhere)),
    (Method::GET, "/v1/events/stream", May(EventRead, Anywhere)),
    (Method::GET, "/v1/audit", May(AuditRead, Everything)),
    (Method::GET, "/v1/audit/end", May(AuditRead, Everything)),
];

/// The holder of a token that was found valid; put into the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The row of the token, or of the SSH key.
    pub token: Uuid,
    /// The name of whose the token is: who did it, in the record.
    pub name: String,
    /// Whose the token is.
    pub owner: Owner,
    /// What may be done with it.
    pub rights: Rights,
}

impl Caller {
    /// That this may be done there. What may not even be seen there is not there.
    pub fn check(&self, action: Action, what: &str, place: Place) -> Result<(), Error> {
        if action.reads().is_some_and(|read| !self.rights.permit(read, place)) {
            return Err(Error::not_found(format!("there is no such {what}")));
        }
        if self.rights.permit(action, place) { Ok(()) } else { Err(self.refused(action)) }
    }

    /// Which objects of a list may be seen.
    pub fn sight(&self, action: Action) -> Result<Sight, Error> {
        self.rights.sight(action).ok_or_else(|| self.refused(action))
    }

    /// The person who calls; a project's token is nobody's.
    pub fn person(&self) -> Result<PersonId, Error> {
        match self.owner {
            Owner::Person(person) => Ok(person),
            Owner::Project(..) => Err(Error::forbidden("this is for people; the token is a project's")),
        }
    }

    /// That it may be done to a thing in this transaction, wherever it stands by now.
    pub async fn check_in(&self, tx: &mut Tx, action: Action, thing: Thing, name: &str) -> Result<Standing, Error> {
        let standing = tx.standing(thing, name).await?;
        self.check(action, thing.word(), standing.place)?;
        Ok(standing)
    }

    /// The thing that a query or a body names, if it can be seen.
    pub(super) async fn find(&self, app: &App, action: Action, thing: Thing, name: &str) -> Result<Standing, Error> {
        let standing = app.store.standing(thing, name).await?;
        self.check(action, thing.word(), standing.place)?;
        Ok(standing)
    }

    /// The machine that a query names, if it can be seen.
    pub(super) async fn machine(&self, app: &App, name: &str) -> Result<MachineId, Error> {
        self.find(app, MachineRead, Thing::Machine, name).await?.id.parse().map_err(Error::internal)
    }

    /// The rack that a query names, if it can be seen.
    pub(super) async fn rack(&self, app: &App, name: &str) -> Result<RackId, Error> {
        self.find(app, RackRead, Thing::Rack, name).await?.id.parse().map_err(Error::internal)
    }

    /// That this may be done there; whether it can be seen there is not asked.
    pub(super) fn require(&self, action: Action, place: Place) -> Result<(), Error> {
        if self.rights.permit(action, place) { Ok(()) } else { Err(self.refused(action)) }
    }

    /// The project that is meant, of those that can be seen.
    pub(super) async fn project(&self, app: &App, name: &str) -> Result<Project, Error> {
        let mut found = app.store.projects_named(name).await?;
        found.retain(|project| self.rights.permit(ProjectRead, project.place()));
        if found.len() > 1 {
            // An id is nobody else's name.
            let names: Vec<_> = found.iter().map(Project::full_name).collect();
            return Err(Error::conflict(format!("`{name}` can be any of {}; say which", names.join(", "))));
        }
        found.pop().ok_or_else(|| Error::not_found("there is no such project"))
    }

    /// The project that something is to be given to, if any.
    pub(super) async fn project_to_use(&self, app: &App, name: Option<&str>) -> Result<Option<Project>, Error> {
        let Some(name) = name else { return Ok(None) };
        let project = self.project(app, name).await?;
        self.check(ProjectUse, "project", project.place())?;
        Ok(Some(project))
    }

    /// The scope that is meant, of those that can be seen, with its own place.
    pub(super) async fn scope(&self, app: &App, kind: &str, name: &str) -> Result<(Scope, Place), Error> {
        let id = |standing: &Standing| standing.id.parse().map_err(Error::internal);
        let standing = match kind {
            "everything" => return Ok((Scope::Everything, Place::EVERYTHING)),
            "project" => {
                let project = self.project(app, name).await?;
                return Ok((Scope::Project(project.id), project.place()));
            }
            "organisation" => self.find(app, OrganisationRead, Thing::Organisation, name).await?,
            "site" => self.find(app, SiteRead, Thing::Site, name).await?,
            "rack" => self.find(app, RackRead, Thing::Rack, name).await?,
            _ => {
                let why = "is one of everything, organisation, project, site, rack";
                return Err(Error::invalid("/scope/kind", why));
            }
        };
        let id: Uuid = id(&standing)?;
        let scope = match kind {
            "organisation" => Scope::Organisation(OrganisationId(id)),
            "site" => Scope::Site(SiteId(id)),
            _ => Scope::Rack(RackId(id)),
        };
        Ok((scope, standing.place))
    }

    /// That nothing of a role at a place is more than one may do oneself.
    pub fn check_covers(&self, role: Role, place: Place) -> Result<(), Error> {
        if self.rights.covers(role, place) {
            return Ok(());
        }
        Err(Error::forbidden(format!(
            "the role {role} may do more there than you, and nobody can give what they have not"
        )))
    }

    fn refused(&self, action: Action) -> Error {
        if !self.rights.is_for(action) {
            return Error::forbidden(format!("this token was not made for {action}; `rackhand whoami` says for what"));
        }
        let roles: Vec<_> = action.roles().iter().map(|role| role.name()).collect();
        let one_of = if roles.len() == 1 { "the role" } else { "one of the roles" };
        Error::forbidden(format!("{action} needs {one_of} {} there", roles.join(", ")))
    }
}

/// Lets a request through when the table says so. It looks at the head of the request alone:
/// nothing of the body is read before the caller is known.
pub(super) async fn decide(State((app, table)): State<(App, Table)>, request: Request, next: Next) -> Response {
    match decided(&app, table, request).await {
        Ok(request) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// The request that may go on, with its caller.
async fn decided(app: &App, table: Table, request: Request) -> Result<Request, Error> {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()).unwrap_or_default();
    // HEAD is answered by what answers GET.
    let method = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
    let access = table.iter().find(|(known, pattern, _)| *known == method && *pattern == path);
    if matches!(access, Some((.., Access::Anyone))) {
        return Ok(request);
    }
    let caller = authenticate(app, request.headers()).await?;
    let (mut parts, body) = request.into_parts();
    match access {
        Some((.., access)) => {
            let named = RawPathParams::from_request_parts(&mut parts, &()).await;
            let named = named.map_err(|_| Error::malformed("the path is not text"))?;
            let named = named.iter().next().map(|(_, value)| value.to_owned()).unwrap_or_default();
            allow(app, &caller, *access, &named).await?;
        }
        // A known path with another method goes on to be answered with 405.
        None if table.iter().any(|(_, pattern, _)| *pattern == path) => {}
        None => {
            return Err(Error::not_found("there is nothing at this path; /v1/openapi.json lists what there is"));
        }
    }
    parts.extensions.insert(caller);
    Ok(Request::from_parts(parts, body))
}

async fn allow(app: &App, caller: &Caller, access: Access, named: &str) -> Result<(), Error> {
    match access {
        Access::Anyone | Access::Caller => Ok(()),
        Access::Own if caller.rights.is_for(Action::TokenOwn) => Ok(()),
        Access::Own => Err(caller.refused(Action::TokenOwn)),
        Access::May(action, At::Everything) => caller.require(action, Place::EVERYTHING),
        Access::May(action, At::Anywhere | At::Body) => caller.sight(action).map(drop),
        Access::May(action, At::Named(Thing::Project)) => {
            let project = caller.project(app, named).await?;
            caller.check(action, Thing::Project.word(), project.place())
        }
        Access::May(action, At::Named(thing)) => caller.find(app, action, thing, named).await.map(drop),
    }
}

/// A fresh token and the hash to keep of it: `rh_` and 32 random bytes in base64url.
pub fn fresh_token() -> (String, [u8; 32]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0u8; 32];
    rand::fill(&mut bytes);
    let mut token = String::from("rh_");
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..=group.len() {
            token.push(ALPHABET[(bits >> (18 - 6 * digit)) as usize & 63].into());
        }
    }
    let hash = Sha256::digest(&token).into();
    (token, hash)
}

async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Caller, Error> {
    const HOW: &str = "send `Authorization: Bearer rh_…` with a token of this controller";
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| Error::unauthenticated(HOW))?;
    match app.store.token(app.clock.now().wall, &Sha256::digest(token).into()).await {
        Ok(found) => Ok(caller(found)),
        Err(StoreError::NotFound(_)) => Err(Error::unauthenticated("this token is not known here, or has expired")),
        Err(error) => Err(error.into()),
    }
}

fn caller((token, bindings): (Token, Vec<Binding>)) -> Caller {
    let Token { id, owner, owner_name, actions, scopes, .. } = token;
    Caller { token: id, name: owner_name, owner, rights: Rights { bindings, actions, scopes } }
}

/// Whether a caller's token is still good, and may still what it might: for answers that do not end.
pub(super) async fn still(app: &App, known: &Caller) -> Result<bool, Error> {
    match app.store.token_with_id(app.clock.now().wall, known.token).await {
        Ok(found) => Ok(caller(found).rights == known.rights),
        Err(StoreError::NotFound(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What an SSH key is good for: consoles.
const BY_KEY: [Action; 2] = [MachineRead, MachinePower];

/// The owner of the SSH key with this fingerprint, who has proven to have it; notes its use. `None` when
/// it is nobody's.
pub(crate) async fn caller_by_key(app: &App, fingerprint: &str) -> Result<Option<Caller>, Error> {
    match app.store.use_ssh_key(app.clock.now().wall, fingerprint).await {
        Ok(found) => Ok(Some(key_caller(found))),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn key_caller((key, bindings): (SshKey, Vec<Binding>)) -> Caller {
    let rights = Rights { bindings, actions: Some(BY_KEY.into()), scopes: None };
    Caller { token: key.id, name: key.person_name, owner: Owner::Person(key.person), rights }
}

/// Whether a caller's SSH key is still theirs, and they may still what they might.
pub(super) async fn still_by_key(app: &App, known: &Caller) -> Result<bool, Error> {
    match app.store.ssh_key_with_id(known.token).await {
        Ok(found) => Ok(key_caller(found).rights == known.rights),
        Err(StoreError::NotFound(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_prefix_and_43_digits_never_the_same() {
        let (one, hash) = fresh_token();
        assert_eq!(one.len(), 46);
        assert!(one.starts_with("rh_"));
        assert_eq!(hash, <[u8; 32]>::from(Sha256::digest(&one)));
        assert_ne!(one, fresh_token().0);
    }
}
