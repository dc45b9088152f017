//! Tokens. Only their SHA-256 is kept: 32 random bytes need no slow hash, and a look-up by hash
//! takes the same time for every wrong token.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use rackhand_common::id::{PersonId, ProjectId};
use rackhand_controller_core::access::{self, Action, Role, Scope, Sight};
use uuid::Uuid;

use super::{
    Store, StoreError, Tx,
    bindings::{held, scope, scope_id},
    database::{Builder, Row, query, query_scalar},
    from_json, id, json, micros,
    places::Columns,
    taken, timestamp,
};

/// The time of last use is written at most this often: a poll must not become a write.
const USED_RESOLUTION: SignedDuration = SignedDuration::from_mins(1);

/// A token as it is known; the secret itself is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Names the row.
    pub id: Uuid,
    /// What its owner calls it; unique among the owner's.
    pub name: String,
    /// Whose it is, and so what it may at most.
    pub owner: Owner,
    /// Its owner's name: a person's, or `ORGANISATION:PROJECT`.
    pub owner_name: String,
    /// How it begins, to be recognised by.
    pub prefix: String,
    /// Only for these actions; `None` for all.
    pub actions: Option<BTreeSet<Action>>,
    /// Only there; `None` for everywhere.
    pub scopes: Option<BTreeSet<Scope>>,
    /// Whether it is of a login, and ends with the password.
    pub is_login: bool,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is refused; `None` for never.
    pub expires: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub used: Option<Timestamp>,
}

/// Whose a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A person's: it may what they may.
    Person(PersonId),
    /// A project's, for a program that works for it: it has this role there.
    Project(ProjectId, Role),
}

/// A token to be made.
#[derive(Clone, Debug)]
pub struct NewToken<'a> {
    /// What its owner calls it.
    pub name: &'a str,
    /// Whose it is.
    pub owner: Owner,
    /// Its hash.
    pub hash: &'a [u8; 32],
    /// How it begins.
    pub prefix: &'a str,
    /// Only for these actions.
    pub actions: Option<BTreeSet<Action>>,
    /// Only there.
    pub scopes: Option<BTreeSet<Scope>>,
    /// Whether it is of a login.
    pub is_login: bool,
    /// From when on it is refused.
    pub expires: Option<Timestamp>,
}

const SELECT: &str = "SELECT tokens.*, people.name AS person_name, projects.name AS project_name,
    organisations.name AS organisation_name
    FROM tokens LEFT JOIN people ON people.id = tokens.person LEFT JOIN projects ON projects.id = tokens.project
    LEFT JOIN organisations ON organisations.id = projects.organisation";

impl Store {
    /// The token with this hash that is valid at `now`, and the roles of its owner. Notes its use.
    pub async fn token(&self, now: Timestamp, hash: &[u8; 32]) -> Result<(Token, Vec<access::Binding>), StoreError> {
        let (token, roles) = self.valid("hash", hex::encode(hash), now).await?;
        if token.used.is_none_or(|used| now.duration_since(used) >= USED_RESOLUTION) {
            query("UPDATE tokens SET used = $2 WHERE id = $1")
                .bind(token.id.to_string())
                .bind(micros(now))
                .execute(&self.pool)
                .await?;
        }
        Ok((token, roles))
    }

    /// The token with this id, if it is valid at `now`, and the roles of its owner.
    pub async fn token_with_id(
        &self,
        now: Timestamp,
        token: Uuid,
    ) -> Result<(Token, Vec<access::Binding>), StoreError> {
        self.valid("id", token.to_string(), now).await
    }

    /// The token that has this in a column and has not ended, and the roles of its owner: in one
    /// query, as every request asks it.
    async fn valid(
        &self,
        column: &str,
        is: String,
        now: Timestamp,
    ) -> Result<(Token, Vec<access::Binding>), StoreError> {
        let rows = query(sqlx::AssertSqlSafe(format!(
            "SELECT token.*, bindings.role AS held_role, bindings.kind AS held_kind, bindings.scope AS held_scope
             FROM ({SELECT}) AS token LEFT JOIN bindings ON bindings.person = token.person
             WHERE token.{column} = $1 ORDER BY bindings.id"
        )))
        .bind(is)
        .fetch_all(&self.pool)
        .await?;
        let token = rows.first().map(read).transpose()?;
        let token = token.filter(|token| token.expires.is_none_or(|expires| expires > now));
        let token = token.ok_or(StoreError::NotFound("token"))?;
        let roles = match token.owner {
            Owner::Project(project, role) => vec![access::Binding { role, scope: Scope::Project(project) }],
            Owner::Person(_) => rows.iter().filter_map(|row| held(row).transpose()).collect::<Result<_, _>>()?,
        };
        Ok((token, roles))
    }

    /// Tokens in the order they were made, after `after`, at most `limit`: those of one person, and
    /// those of projects that can be seen; with [`Sight::ALL`], everybody's.
    pub async fn tokens(
        &self,
        person: PersonId,
        sight: Option<&Sight>,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<Token>, StoreError> {
        let mut query = Builder::new(format!("{SELECT} WHERE tokens.id > "));
        query.push_bind(after.map(|id| id.to_string()).unwrap_or_default());
        query.push(" AND (tokens.person = ").push_bind(person.to_string());
        if let Some(sight) = sight {
            query.push(" OR (1 = 1");
            let columns = Columns {
                organisation: Some("projects.organisation"),
                project: Some("projects.id"),
                ..Columns::default()
            };
            columns.push(&mut query, sight);
            query.push(")");
        }
        query.push(") ORDER BY tokens.id LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }
}

impl Tx {
    /// The token with this id.
    pub async fn token(&mut self, token: Uuid) -> Result<Token, StoreError> {
        let row = query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE tokens.id = $1")))
            .bind(token.to_string())
            .fetch_optional(&mut self.inner)
            .await?;
        read(&row.ok_or(StoreError::NotFound("token"))?)
    }

    /// Keeps the hash of a fresh token.
    pub async fn insert_token(&mut self, now: Timestamp, new: NewToken<'_>) -> Result<Uuid, StoreError> {
        let id = Uuid::now_v7();
        let (person, project, role) = match new.owner {
            Owner::Person(person) => (Some(person.to_string()), None, None),
            Owner::Project(project, role) => (None, Some(project.to_string()), Some(role.name())),
        };
        let names = |actions: BTreeSet<Action>| json(&actions.into_iter().map(Action::name).collect::<Vec<_>>());
        let places = |scopes: BTreeSet<Scope>| {
            json(&scopes.into_iter().map(|scope| (scope.kind(), scope_id(scope))).collect::<Vec<_>>())
        };
        self.watch("tokens", id).await?;
        query(
            "INSERT INTO tokens (id, name, person, project, role, hash, prefix, actions, scopes, login, created, expires)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .bind(id.to_string())
        .bind(new.name)
        .bind(person)
        .bind(project)
        .bind(role)
        .bind(hex::encode(new.hash))
        .bind(new.prefix)
        .bind(new.actions.map(names))
        .bind(new.scopes.map(places))
        .bind(new.is_login)
        .bind(micros(now))
        .bind(new.expires.map(micros))
        .execute(&mut self.inner)
        .await
        .map_err(taken("token name"))?;
        Ok(id)
    }

    /// Makes the first administrator, who owns everything, and keeps the hash of their token; only
    /// if there has never been a person.
    pub async fn insert_first_token(
        &mut self,
        now: Timestamp,
        name: &str,
        hash: &[u8; 32],
    ) -> Result<Uuid, StoreError> {
        let known: i64 = query_scalar("SELECT COUNT(*) FROM people").fetch_one(&mut self.inner).await?;
        if known > 0 {
            return Err(StoreError::Taken("first token"));
        }
        let person = self.insert_person(now, name, "").await?.id;
        let owner = access::Binding { role: Role::Owner, scope: Scope::Everything };
        self.insert_binding(now, person, owner, Some(name)).await?;
        let token = NewToken {
            name: "first",
            owner: Owner::Person(person),
            hash,
            prefix: "rh_",
            actions: None,
            scopes: None,
            is_login: false,
            expires: None,
        };
        self.insert_token(now, token).await
    }

    /// The tokens of a person, or only those of logins.
    pub async fn tokens_of_person(&mut self, person: PersonId, only_logins: bool) -> Result<Vec<Uuid>, StoreError> {
        let found: Vec<String> = query_scalar("SELECT id FROM tokens WHERE person = $1 AND login >= $2")
            .bind(person.to_string())
            .bind(only_logins)
            .fetch_all(&mut self.inner)
            .await?;
        found.iter().map(|found| id(found)).collect()
    }

    /// The tokens of a project.
    pub async fn tokens_of_project(&mut self, project: ProjectId) -> Result<Vec<Uuid>, StoreError> {
        let found: Vec<String> = query_scalar("SELECT id FROM tokens WHERE project = $1")
            .bind(project.to_string())
            .fetch_all(&mut self.inner)
            .await?;
        found.iter().map(|found| id(found)).collect()
    }

    /// Forgets a token: it is refused from now on.
    pub async fn delete_token(&mut self, token: Uuid) -> Result<(), StoreError> {
        self.watch("tokens", token).await?;
        query("DELETE FROM tokens WHERE id = $1").bind(token.to_string()).execute(&mut self.inner).await?;
        Ok(())
    }

    /// Forgets logins of a person that are over.
    pub async fn sweep_logins(&mut self, now: Timestamp, person: PersonId) -> Result<(), StoreError> {
        query("DELETE FROM tokens WHERE person = $1 AND login = 1 AND expires <= $2")
            .bind(person.to_string())
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }
}

fn read(row: &Row) -> Result<Token, StoreError> {
    let text = |column| row.try_get::<Option<&str>, _>(column);
    let time = |column| row.try_get::<Option<i64>, _>(column).map_err(StoreError::from)?.map(timestamp).transpose();
    let damaged = |error: Box<dyn std::error::Error + Send + Sync>| StoreError::Damaged("token", error);
    let (owner, owner_name) = match (text("person")?, text("project")?, text("role")?) {
        (Some(person), ..) => (Owner::Person(id(person)?), text("person_name")?.unwrap_or_default().to_owned()),
        (None, Some(project), Some(role)) => {
            let role = role.parse().map_err(|error: access::NoRole| damaged(error.into()))?;
            let names = [text("organisation_name")?.unwrap_or_default(), text("project_name")?.unwrap_or_default()];
            (Owner::Project(id(project)?, role), names.join(":"))
        }
        _ => return Err(damaged("it is nobody's".into())),
    };
    let actions = match text("actions")? {
        Some(actions) => {
            let names: Vec<String> = from_json("token", actions)?;
            // An action that a newer version knew is one that this one has not: less, not more.
            Some(names.iter().filter_map(|name| name.parse().ok()).collect())
        }
        None => None,
    };
    let scopes = match text("scopes")? {
        Some(scopes) => {
            let scopes: Vec<(String, String)> = from_json("token", scopes)?;
            Some(scopes.iter().map(|(kind, id)| scope(kind, id)).collect::<Result<_, _>>()?)
        }
        None => None,
    };
    Ok(Token {
        id: id(row.try_get("id")?)?,
        name: row.try_get("name")?,
        owner,
        owner_name,
        prefix: row.try_get("prefix")?,
        actions,
        scopes,
        is_login: row.try_get::<i64, _>("login")? != 0,
        created: time("created")?.unwrap_or_default(),
        expires: time("expires")?,
        used: time("used")?,
    })
}
