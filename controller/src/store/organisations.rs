//! Organisations: customers, and the provider itself.

use jiff::Timestamp;
use rackhand_common::id::OrganisationId;
use rackhand_controller_core::access::Sight;

use super::{
    Store, StoreError, Tx,
    database::{Builder, Executor, Row, query, query_scalar},
    id, micros,
    places::Columns,
    taken, timestamp,
};

/// Whose projects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Organisation {
    /// Its id.
    pub id: OrganisationId,
    /// Its name; unique.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Counts its changes.
    pub version: u64,
}

impl Store {
    /// The organisation with this id or name.
    pub async fn organisation(&self, id_or_name: &str) -> Result<Organisation, StoreError> {
        organisation(&self.pool, id_or_name).await
    }

    /// Organisations that can be seen, in the order they were made, after `after`, at most `limit`.
    pub async fn organisations(
        &self,
        sight: &Sight,
        after: Option<OrganisationId>,
        limit: u32,
    ) -> Result<Vec<Organisation>, StoreError> {
        let mut query = Builder::new("SELECT * FROM organisations WHERE id > ");
        query.push_bind(after.map(|id| id.to_string()).unwrap_or_default());
        Columns { organisation: Some("organisations.id"), ..Columns::default() }.push(&mut query, sight);
        query.push(" ORDER BY id LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }
}

impl Tx {
    /// The organisation with this id or name.
    pub async fn organisation(&mut self, id_or_name: &str) -> Result<Organisation, StoreError> {
        organisation(&mut self.inner, id_or_name).await
    }

    /// Makes an organisation.
    pub async fn insert_organisation(&mut self, now: Timestamp, name: &str) -> Result<Organisation, StoreError> {
        let made = Organisation { id: OrganisationId::fresh(), name: name.into(), created: now, version: 1 };
        self.watch("organisations", made.id).await?;
        query("INSERT INTO organisations (id, name, created) VALUES ($1, $2, $3)")
            .bind(made.id.to_string())
            .bind(name)
            .bind(micros(now))
            .execute(&mut self.inner)
            .await
            .map_err(taken("organisation name"))?;
        Ok(made)
    }

    /// Gives an organisation another name.
    pub async fn rename_organisation(
        &mut self,
        organisation: Organisation,
        name: &str,
    ) -> Result<Organisation, StoreError> {
        self.watch("organisations", organisation.id).await?;
        query("UPDATE organisations SET name = $2, version = version + 1 WHERE id = $1")
            .bind(organisation.id.to_string())
            .bind(name)
            .execute(&mut self.inner)
            .await
            .map_err(taken("organisation name"))?;
        Ok(Organisation { name: name.into(), version: organisation.version + 1, ..organisation })
    }

    /// Removes an organisation and the roles that people have there; false when it has projects.
    pub async fn delete_organisation(&mut self, organisation: OrganisationId) -> Result<bool, StoreError> {
        let projects: i64 = query_scalar("SELECT COUNT(*) FROM projects WHERE organisation = $1")
            .bind(organisation.to_string())
            .fetch_one(&mut self.inner)
            .await?;
        if projects > 0 {
            return Ok(false);
        }
        self.delete_bindings_at("organisation", &organisation.to_string()).await?;
        self.watch("organisations", organisation).await?;
        query("DELETE FROM organisations WHERE id = $1")
            .bind(organisation.to_string())
            .execute(&mut self.inner)
            .await?;
        Ok(true)
    }
}

async fn organisation(executor: impl Into<Executor<'_>>, id_or_name: &str) -> Result<Organisation, StoreError> {
    let row = query(
        "SELECT * FROM organisations WHERE id = $1 OR name = $1
         ORDER BY CASE WHEN id = $1 THEN 0 ELSE 1 END LIMIT 1",
    )
    .bind(id_or_name)
    .fetch_optional(executor)
    .await?;
    read(&row.ok_or(StoreError::NotFound("organisation"))?)
}

fn read(row: &Row) -> Result<Organisation, StoreError> {
    Ok(Organisation {
        id: id(row.try_get("id")?)?,
        name: row.try_get("name")?,
        created: timestamp(row.try_get("created")?)?,
        version: row.try_get::<i64, _>("version")? as u64,
    })
}
