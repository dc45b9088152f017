//! Bindings: which person has which role at which scope.
//!
//! Invariant: there is always an owner of everything, once there has been one.

use jiff::Timestamp;
use rackhand_common::id::{BindingId, PersonId};
use rackhand_controller_core::access::{self, Role, Scope, Sight};

use super::{
    Store, StoreError, Tx,
    database::{Builder, Executor, Row, query, query_scalar},
    id, micros,
    places::Columns,
    taken, timestamp,
};

/// A role that a person has at a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its id.
    pub id: BindingId,
    /// Whose.
    pub person: PersonId,
    /// That person's name.
    pub person_name: String,
    /// The role.
    pub role: Role,
    /// Where it counts.
    pub scope: Scope,
    /// What that is called.
    pub scope_name: String,
    /// Who granted it; `None` when it follows from a group of who vouches for the person.
    pub granted_by: Option<String>,
    /// When.
    pub created: Timestamp,
}

/// Which bindings are asked for.
#[derive(Clone, Debug, Default)]
pub struct BindingFilter {
    /// Of this person.
    pub person: Option<PersonId>,
    /// Where they count.
    pub sight: Sight,
}

const SELECT: &str = "SELECT bindings.*, people.name AS person_name, organisations.name AS organisation_name,
    projects.name AS project_name, of_project.name AS of_project_name, sites.name AS site_name, racks.name AS rack_name
    FROM bindings JOIN people ON people.id = bindings.person
    LEFT JOIN organisations ON bindings.kind = 'organisation' AND organisations.id = bindings.scope
    LEFT JOIN projects ON bindings.kind = 'project' AND projects.id = bindings.scope
    LEFT JOIN organisations AS of_project ON of_project.id = projects.organisation
    LEFT JOIN sites ON bindings.kind = 'site' AND sites.id = bindings.scope
    LEFT JOIN racks ON bindings.kind = 'rack' AND racks.id = bindings.scope";

impl Store {
    /// The bindings of one person.
    pub async fn bindings_of(&self, person: PersonId) -> Result<Vec<Binding>, StoreError> {
        of(&self.pool, person).await
    }

    /// Bindings in the order they were made, after `after`, at most `limit`.
    pub async fn bindings(
        &self,
        filter: &BindingFilter,
        after: Option<BindingId>,
        limit: u32,
    ) -> Result<Vec<Binding>, StoreError> {
        let mut query = Builder::new(format!("{SELECT} WHERE bindings.id > "));
        query.push_bind(after.map(|id| id.to_string()).unwrap_or_default());
        if let Some(person) = filter.person {
            query.push(" AND bindings.person = ").push_bind(person.to_string());
        }
        let columns = Columns {
            organisation: Some("COALESCE(organisations.id, projects.organisation)"),
            project: Some("projects.id"),
            site: Some("COALESCE(sites.id, racks.site)"),
            rack: Some("racks.id"),
        };
        columns.push(&mut query, &filter.sight);
        query.push(" ORDER BY bindings.id LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }
}

impl Tx {
    /// The binding with this id.
    pub async fn binding(&mut self, binding: BindingId) -> Result<Binding, StoreError> {
        let row = query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE bindings.id = $1")))
            .bind(binding.to_string())
            .fetch_optional(&mut self.inner)
            .await?;
        read(&row.ok_or(StoreError::NotFound("binding"))?)
    }

    /// The bindings of one person.
    pub async fn bindings_of(&mut self, person: PersonId) -> Result<Vec<Binding>, StoreError> {
        of(&mut self.inner, person).await
    }

    /// Gives a person a role at a scope. `by` is who granted it; `None` when it follows from a group.
    /// What followed from a group and is granted by hand does not go with the group.
    pub async fn insert_binding(
        &mut self,
        now: Timestamp,
        person: PersonId,
        binding: access::Binding,
        by: Option<&str>,
    ) -> Result<Binding, StoreError> {
        let by_group: Option<String> = query_scalar(
            "SELECT id FROM bindings
             WHERE person = $1 AND role = $2 AND kind = $3 AND scope = $4 AND granted_by IS NULL",
        )
        .bind(person.to_string())
        .bind(binding.role.name())
        .bind(binding.scope.kind())
        .bind(scope_id(binding.scope))
        .fetch_optional(&mut self.inner)
        .await?;
        if let (Some(known), Some(by)) = (by_group, by) {
            self.watch("bindings", &known).await?;
            query("UPDATE bindings SET granted_by = $2 WHERE id = $1")
                .bind(&known)
                .bind(by)
                .execute(&mut self.inner)
                .await?;
            return self.binding(id(&known)?).await;
        }
        let id = BindingId::fresh();
        self.watch("bindings", id).await?;
        query(
            "INSERT INTO bindings (id, person, role, kind, scope, granted_by, created)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(id.to_string())
        .bind(person.to_string())
        .bind(binding.role.name())
        .bind(binding.scope.kind())
        .bind(scope_id(binding.scope))
        .bind(by)
        .bind(micros(now))
        .execute(&mut self.inner)
        .await
        .map_err(taken("this role there"))?;
        self.binding(id).await
    }

    /// Takes a role away.
    pub async fn delete_binding(&mut self, binding: BindingId) -> Result<(), StoreError> {
        self.watch("bindings", binding).await?;
        query("DELETE FROM bindings WHERE id = $1").bind(binding.to_string()).execute(&mut self.inner).await?;
        Ok(())
    }

    /// How many people own everything.
    pub async fn owners(&mut self) -> Result<u64, StoreError> {
        let owners: i64 =
            query_scalar("SELECT COUNT(DISTINCT person) FROM bindings WHERE kind = 'everything' AND role = 'owner'")
                .fetch_one(&mut self.inner)
                .await?;
        Ok(owners as u64)
    }

    /// Takes away all roles at a scope that is about to end.
    pub(super) async fn delete_bindings_at(&mut self, kind: &str, scope: &str) -> Result<(), StoreError> {
        let found: Vec<String> = query_scalar("SELECT id FROM bindings WHERE kind = $1 AND scope = $2")
            .bind(kind)
            .bind(scope)
            .fetch_all(&mut self.inner)
            .await?;
        for binding in found {
            self.delete_binding(id(&binding)?).await?;
        }
        Ok(())
    }
}

async fn of(executor: impl Into<Executor<'_>>, person: PersonId) -> Result<Vec<Binding>, StoreError> {
    query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE bindings.person = $1 ORDER BY bindings.id")))
        .bind(person.to_string())
        .fetch_all(executor)
        .await?
        .iter()
        .map(read)
        .collect()
}

/// The id of a scope as it is stored.
pub(super) fn scope_id(scope: Scope) -> String {
    match scope {
        Scope::Everything => String::new(),
        Scope::Organisation(id) => id.to_string(),
        Scope::Project(id) => id.to_string(),
        Scope::Site(id) => id.to_string(),
        Scope::Rack(id) => id.to_string(),
    }
}

/// A stored scope.
pub(super) fn scope(kind: &str, text: &str) -> Result<Scope, StoreError> {
    Ok(match kind {
        "everything" => Scope::Everything,
        "organisation" => Scope::Organisation(id(text)?),
        "project" => Scope::Project(id(text)?),
        "site" => Scope::Site(id(text)?),
        "rack" => Scope::Rack(id(text)?),
        other => return Err(StoreError::Damaged("scope", other.into())),
    })
}

/// The role of an owner in a row that was joined with theirs, if it has one.
pub(super) fn held(row: &Row) -> Result<Option<access::Binding>, StoreError> {
    let Some(role) = row.try_get::<Option<&str>, _>("held_role")? else { return Ok(None) };
    let role = role.parse().map_err(|error: access::NoRole| StoreError::Damaged("binding", error.into()))?;
    Ok(Some(access::Binding { role, scope: scope(row.try_get("held_kind")?, row.try_get("held_scope")?)? }))
}

fn read(row: &Row) -> Result<Binding, StoreError> {
    let name = |column| row.try_get::<Option<String>, _>(column);
    let scope = scope(row.try_get("kind")?, row.try_get("scope")?)?;
    let scope_name = match scope {
        Scope::Everything => None,
        Scope::Organisation(_) => name("organisation_name")?,
        Scope::Project(_) => match (name("of_project_name")?, name("project_name")?) {
            (Some(organisation), Some(project)) => Some(format!("{organisation}:{project}")),
            _ => None,
        },
        Scope::Site(_) => name("site_name")?,
        Scope::Rack(_) => name("rack_name")?,
    };
    Ok(Binding {
        id: id(row.try_get("id")?)?,
        person: id(row.try_get("person")?)?,
        person_name: row.try_get("person_name")?,
        role: row
            .try_get::<&str, _>("role")?
            .parse()
            .map_err(|error: access::NoRole| StoreError::Damaged("role", error.into()))?,
        scope,
        scope_name: scope_name.unwrap_or_default(),
        granted_by: row.try_get("granted_by")?,
        created: timestamp(row.try_get("created")?)?,
    })
}
