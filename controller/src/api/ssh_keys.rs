//! `/v1/ssh-keys`: one's own keys, to open consoles by SSH; and `/v1/ssh`, where that is.

use axum::{
    Extension,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_controller_core::access::{Action, Place};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    App, Caller, Error,
    extract::{Json, Page, Query, Window, check_text, parse},
    people::check_manages,
};
use crate::{
    ssh::{NotAKey, PublicKey},
    store::{self, NewSshKey as Kept, Owner},
};

/// Keys of one person: each is one more that can be lost.
const EACH: usize = 32;

/// The longest line of a key that is looked at, in bytes: one of RSA with 8192 bits has 1400.
const LINE: usize = 4096;

/// A public key of a person.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SshKey {
    /// Its id.
    id: Uuid,
    /// Its name.
    #[schema(example = "laptop")]
    name: String,
    /// Whose it is.
    #[schema(example = "ada")]
    owner: String,
    /// Algorithm and key.
    #[schema(example = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ")]
    key: String,
    /// Its SHA-256, as `ssh-keygen -l` shows it.
    #[schema(example = "SHA256:T7SvZ2cslqpPj6nKzitCBHHlpVF3r3MvLwmFL0fk0IE")]
    fingerprint: String,
    /// When it was added.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
    /// When it was last used, to the minute.
    #[schema(value_type = Option<String>, format = DateTime)]
    used: Option<Timestamp>,
}

impl From<store::SshKey> for SshKey {
    fn from(row: store::SshKey) -> Self {
        Self {
            id: row.id,
            name: row.name,
            owner: row.person_name,
            key: row.key,
            fingerprint: row.fingerprint,
            created: row.created,
            used: row.used,
        }
    }
}

/// A key to be added to oneself.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSshKey {
    /// Its name, unique among one's own: at most 63 characters.
    #[schema(example = "laptop")]
    name: String,
    /// The public key, a line as in `id_ed25519.pub`: Ed25519, ECDSA, or RSA from 2048 bits on.
    #[schema(example = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ ada@laptop")]
    key: String,
}

/// List SSH keys
///
/// One's own; everybody's for whoever may see all tokens.
#[utoipa::path(get, path = "/v1/ssh-keys", tag = "people", params(Window),
    responses((status = 200, body = Page<SshKey>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let (limit, person) = (window.limit()?, caller.person()?);
    let sees_all = caller.rights.permit(Action::TokenRead, Place::EVERYTHING);
    let after = parse("after", window.after.as_deref())?;
    let rows = app.store.ssh_keys((!sees_all).then_some(person), after, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), SshKey::from)))
}

/// Add an SSH key to oneself
///
/// Whoever has the private part opens by it the consoles that one may open, also when the token that it was
/// added with is long over; so a token that was made for less than all cannot add one. Nobody else can
/// have the same key.
#[utoipa::path(post, path = "/v1/ssh-keys", tag = "people", request_body = NewSshKey,
    responses((status = 201, body = SshKey)))]
pub(super) async fn add(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Json(body): Json<NewSshKey>,
) -> Result<impl IntoResponse, Error> {
    check_text("/name", &body.name, 63)?;
    if body.name.trim().is_empty() {
        return Err(Error::invalid("/name", "say which it is"));
    }
    if body.key.len() > LINE {
        return Err(Error::invalid("/key", NotAKey::Malformed));
    }
    let key: PublicKey = body.key.parse().map_err(|error: NotAKey| Error::invalid("/key", error))?;
    let person = caller.person()?;
    if caller.rights.actions.is_some() || caller.rights.scopes.is_some() {
        return Err(Error::forbidden("the token that you use is not good for all that you may, and a key would be"));
    }
    let mut tx = app.store.begin().await?;
    if tx.ssh_keys_of(person).await?.len() >= EACH {
        return Err(Error::conflict(format!("you have {EACH} keys, which is the most there can be: remove others")));
    }
    let new = Kept { person, name: &body.name, key: &key.text, fingerprint: &key.fingerprint };
    let key = SshKey::from(tx.insert_ssh_key(app.clock.now().wall, new).await?);
    tx.commit().await?;
    Ok((StatusCode::CREATED, axum::Json(key)))
}

/// Remove an SSH key
///
/// Nobody opens a console by it from now on, and those that were opened by it end. One's own can be removed
/// always.
#[utoipa::path(delete, path = "/v1/ssh-keys/{key}", tag = "people",
    params(("key" = Uuid, Path, description = "Id.")), responses((status = 204)))]
pub(super) async fn remove(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let id: Uuid = key.parse().map_err(|_| Error::not_found("there is no such SSH key"))?;
    let mut tx = app.store.begin().await?;
    let key = tx.ssh_key(id).await?;
    if Owner::Person(key.person) != caller.owner {
        if !caller.rights.permit(Action::TokenRead, Place::EVERYTHING) {
            return Err(Error::not_found("there is no such SSH key"));
        }
        caller.check(Action::TokenManage, "SSH key", Place::EVERYTHING)?;
        check_manages(&caller, &mut tx, key.person).await?;
    }
    tx.delete_ssh_key(id).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Where consoles are to be had by SSH.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Door {
    /// The port (TCP), under the controller's names.
    #[schema(example = 2222)]
    port: u16,
    /// The controller's key, as in `known_hosts`.
    #[schema(example = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ")]
    key: String,
    /// Its SHA-256, which `ssh` shows before the first login.
    #[schema(example = "SHA256:T7SvZ2cslqpPj6nKzitCBHHlpVF3r3MvLwmFL0fk0IE")]
    fingerprint: String,
}

/// Where are consoles by SSH
///
/// And by which key the controller is known there: `ssh -p PORT MACHINE@CONTROLLER`.
#[utoipa::path(get, path = "/v1/ssh", tag = "access", responses((status = 200, body = Door)))]
pub(super) async fn door(State(app): State<App>) -> Result<axum::Json<Door>, Error> {
    match app.ssh.as_deref() {
        Some(door) => {
            Ok(axum::Json(Door { port: door.port, key: door.key.clone(), fingerprint: door.fingerprint.clone() }))
        }
        None => Err(Error::not_found("there are no consoles by SSH here: `[ssh]` in controller.toml has them")),
    }
}
