//! `/v1/login/oidc`: people whom a provider vouches for, and the roles that their groups have.
//!
//! Invariants:
//! - A person is known by issuer and subject, and never by a name that somebody can choose.
//! - Nobody is added before a group of theirs has a role here, nor once they were removed.
//! - Roles by groups are those of the latest login; what was granted by hand stays.

use std::collections::BTreeSet;

use axum::{
    extract::State,
    http::{HeaderValue, header},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::time::Now;
use rackhand_controller_core::access::{Binding, Role, Scope, turn};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    App, Error,
    extract::{Json, check_text},
    login::{From, LoggedIn, begin as log_in},
};
use crate::{
    oidc::{self, GroupRole, Identity, OidcError, ScopeName},
    store::{Person, StoreError, Thing, Tx},
};

/// The longest code that a provider gives.
const LONGEST_CODE: usize = 8192;

/// Who ended a login that nobody was vouched for in; no person can be called so.
const STRANGER: &str = "(unknown)";

const FINISH: &str = "POST /v1/login/oidc/finish";

/// A login to be begun.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Begin {
    /// Where the browser comes back to, on the computer of whoever logs in: `http://127.0.0.1:PORT/…`
    /// or `http://[::1]:PORT/…`.
    #[schema(example = "http://127.0.0.1:53682/callback", max_length = 200)]
    redirect_uri: String,
}

/// A login that was begun.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Begun {
    /// Where the browser of whoever logs in has to go.
    #[schema(example = "https://login.example.net/authorize?client_id=rackhand&state=…")]
    url: String,
    /// A secret, to end the login with; once.
    login: String,
    /// Until when.
    #[schema(value_type = String, format = DateTime)]
    expires: Timestamp,
}

/// A login to be ended.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Finish {
    /// What it was begun with.
    login: String,
    /// `state`, as the browser came back with it.
    state: String,
    /// `code`, as the browser came back with it.
    code: String,
}

/// Begin a login by OpenID Connect
///
/// Tells where the browser has to go. It comes back with `code` and `state`, which end the login within
/// ten minutes. 404 where no provider is configured, 503 while the provider cannot be reached.
#[utoipa::path(post, path = "/v1/login/oidc", tag = "access", request_body = Begin, security(()),
    responses((status = 200, body = Begun)))]
pub(super) async fn begin(
    State(app): State<App>,
    from: From,
    Json(body): Json<Begin>,
) -> Result<impl IntoResponse, Error> {
    let now = app.clock.now();
    app.passwords.may_ask(now.mono, from.source()).map_err(|wait| Error::too_many("logins", wait))?;
    let begun = app.oidc.begin(now, &body.redirect_uri).await?;
    let expires = now.wall + oidc::LIFE;
    let begun = Begun { url: begun.url.into(), login: begun.login, expires };
    Ok(([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], axum::Json(begun)))
}

/// End a login by OpenID Connect
///
/// Gives a token as `/v1/login` does. Roles that groups have are granted and taken away as the provider
/// tells the groups now; whom no group has a role for is added, or let in, only by an administrator.
#[utoipa::path(post, path = "/v1/login/oidc/finish", tag = "access", request_body = Finish, security(()),
    responses((status = 200, body = LoggedIn)))]
pub(super) async fn finish(
    State(app): State<App>,
    from: From,
    Json(body): Json<Finish>,
) -> Result<impl IntoResponse, Error> {
    let now = app.clock.now();
    for (field, text) in [("/login", &body.login), ("/state", &body.state), ("/code", &body.code)] {
        check_text(field, text, LONGEST_CODE)?;
    }
    app.passwords.may_ask(now.mono, from.source()).map_err(|wait| Error::too_many("logins", wait))?;
    let (by, done) = match app.oidc.finish(now, &body.login, &body.state, &body.code).await {
        Ok(identity) => {
            let known = app.store.person_vouched(&identity.issuer, &identity.subject).await?;
            let claimed = identity.name.clone().filter(|name| oidc::is_name(name));
            let by = known.map(|known| known.name).or(claimed).unwrap_or_else(|| STRANGER.to_owned());
            let asked = from.record(now, &by, Uuid::nil(), FINISH);
            (by, asked.scope(admit(&app, now, &identity)).await)
        }
        Err(error) => (STRANGER.to_owned(), Err(error.into())),
    };
    match done {
        Ok(logged_in) => Ok(([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], axum::Json(logged_in))),
        Err(error) => {
            let refused = from.record(now, &by, Uuid::nil(), &format!("{FINISH} (refused)"));
            refused.scope(async { app.store.begin().await?.commit().await }).await?;
            Err(error)
        }
    }
}

/// Lets somebody in whom the provider vouches for.
async fn admit(app: &App, now: Now, identity: &Identity) -> Result<LoggedIn, Error> {
    let roles = app.oidc.config().map(|config| config.roles).unwrap_or_default();
    let mut tx = app.store.begin().await?;
    let wanted = wanted(&mut tx, &roles, &identity.groups).await?;
    let Some(person) = known(&mut tx, now.wall, identity, wanted.is_empty()).await? else {
        return Err(no_role(identity));
    };
    let (by_hand, by_groups): (Vec<_>, _) =
        tx.bindings_of(person.id).await?.into_iter().partition(|held| held.granted_by.is_some());
    let set = |held: &[crate::store::Binding]| -> BTreeSet<_> {
        held.iter().map(|held| Binding { role: held.role, scope: held.scope }).collect()
    };
    let turn = turn(&wanted, &set(&by_groups), &set(&by_hand));
    for held in by_groups.iter().filter(|held| turn.take.contains(&Binding { role: held.role, scope: held.scope })) {
        tx.delete_binding(held.id).await?;
    }
    for binding in &turn.grant {
        tx.insert_binding(now.wall, person.id, *binding, None).await?;
    }
    let owner = Binding { role: Role::Owner, scope: Scope::Everything };
    if turn.take.contains(&owner) && tx.owners().await? == 0 {
        return Err(Error::conflict(
            "none of your groups makes you an owner of everything any more, and nobody else is one; have \
             another person made an owner first",
        ));
    }
    if tx.bindings_of(person.id).await?.is_empty() {
        // What was taken away stays taken away.
        tx.commit().await?;
        return Err(no_role(identity));
    }
    tx.sweep_logins(now.wall, person.id).await?;
    let logged_in = log_in(&mut tx, now.wall, &person).await?;
    tx.commit().await?;
    Ok(logged_in)
}

/// The person, who is added when they may be; `None` for a stranger.
async fn known(
    tx: &mut Tx,
    now: Timestamp,
    identity: &Identity,
    is_of_no_group: bool,
) -> Result<Option<Person>, Error> {
    let Identity { issuer, subject, name, email, .. } = identity;
    if let Some(mut person) = tx.person_vouched(issuer, subject).await? {
        if !email.is_empty() && person.email != *email {
            person.email.clone_from(email);
            tx.update_person(&mut person).await?;
        }
        return Ok(Some(person));
    }
    if tx.was_removed(issuer, subject).await? {
        return Err(Error::forbidden(format!(
            "you were removed here; an administrator lets you in again with `rackhand person create NAME --subject {subject}`"
        )));
    }
    if is_of_no_group {
        return Ok(None);
    }
    let name = name.as_deref().filter(|name| oidc::is_name(name)).ok_or_else(|| {
        let told = name.as_deref().map_or("nothing".into(), |name| format!("`{}`", name.escape_debug()));
        Error::forbidden(format!(
            "the provider tells {told} where your name is looked for, which cannot be a name here; another claim is \
             named by `oidc.name_claim`, or an administrator adds you with `rackhand person create NAME --subject {subject}`"
        ))
    })?;
    let mut person = match tx.insert_person(now, name, email).await {
        Err(StoreError::Taken(_)) => {
            return Err(Error::conflict(format!(
                "there is a person `{name}` already whom {issuer} does not vouch for; an administrator gives one of \
                 you another name"
            )));
        }
        inserted => inserted?,
    };
    tx.vouch(&mut person, issuer, subject).await?;
    Ok(Some(person))
}

/// The roles that these groups have. One at a scope that is not there is none, and is told of in the log.
async fn wanted(tx: &mut Tx, roles: &[GroupRole], groups: &BTreeSet<String>) -> Result<BTreeSet<Binding>, Error> {
    let mut wanted = BTreeSet::new();
    for GroupRole { group, role, scope } in roles.iter().filter(|one| groups.contains(&one.group)) {
        match found(tx, scope).await? {
            Some(scope) => drop(wanted.insert(Binding { role: *role, scope })),
            None => tracing::warn!(group, role = role.name(), %scope, "`oidc.roles` names a scope that is not there"),
        }
    }
    Ok(wanted)
}

async fn found(tx: &mut Tx, scope: &ScopeName) -> Result<Option<Scope>, Error> {
    let (thing, name) = match scope {
        ScopeName::Everything => return Ok(Some(Scope::Everything)),
        ScopeName::Project(name) => {
            let found = tx.projects_named(name).await?;
            return Ok(Some(found).filter(|found| found.len() == 1).map(|found| Scope::Project(found[0].id)));
        }
        ScopeName::Organisation(name) => (Thing::Organisation, name),
        ScopeName::Site(name) => (Thing::Site, name),
        ScopeName::Rack(name) => (Thing::Rack, name),
    };
    let standing = match tx.standing(thing, name).await {
        Err(StoreError::NotFound(_)) => return Ok(None),
        found => found?,
    };
    let place = standing.place;
    Ok(match thing {
        Thing::Organisation => place.organisation.map(Scope::Organisation),
        Thing::Site => place.site.map(Scope::Site),
        _ => place.rack.map(Scope::Rack),
    })
}

fn no_role(identity: &Identity) -> Error {
    let groups: Vec<_> = identity.groups.iter().take(20).map(|group| group.escape_debug().to_string()).collect();
    let told = match groups.is_empty() {
        true => "the provider tells no group of yours".to_owned(),
        false => format!("none of your groups has a role here ({})", groups.join(", ")),
    };
    Error::forbidden(format!("{told}; an administrator says with `oidc.roles` which has, or grants you one by hand"))
}

impl std::convert::From<OidcError> for Error {
    fn from(error: OidcError) -> Self {
        match error {
            OidcError::NotConfigured => Self::not_found(error),
            OidcError::Redirect => Self::invalid("/redirect_uri", error),
            OidcError::Unreachable(..) => Self::unavailable(error),
            OidcError::Unknown | OidcError::State | OidcError::Code(..) | OidcError::Unbelievable(..) => {
                Self::unauthenticated(error)
            }
            OidcError::Unverified(_) => Self::forbidden(error),
        }
    }
}
