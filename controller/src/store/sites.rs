//! Sites: where racks stand.

use jiff::Timestamp;
use rackhand_common::id::{RackId, SiteId};
use rackhand_controller_core::access::Sight;

use super::{
    Store, StoreError, Tx,
    database::{Builder, Executor, Row, query, query_scalar},
    id, micros,
    places::Columns,
    taken, timestamp,
};

/// The site that there is from the beginning.
pub const DEFAULT_SITE: SiteId = SiteId(uuid::uuid!("01931b1e-0000-7000-8000-000000000001"));

/// A place with racks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its id.
    pub id: SiteId,
    /// Its name; unique.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Counts its changes.
    pub version: u64,
}

impl Store {
    /// The site with this id or name.
    pub async fn site(&self, id_or_name: &str) -> Result<Site, StoreError> {
        site(&self.pool, id_or_name).await
    }

    /// Sites that can be seen, in the order they were made, after `after`, at most `limit`.
    pub async fn sites(&self, sight: &Sight, after: Option<SiteId>, limit: u32) -> Result<Vec<Site>, StoreError> {
        let mut query = Builder::new("SELECT * FROM sites WHERE id > ");
        query.push_bind(after.map(|id| id.to_string()).unwrap_or_default());
        Columns { site: Some("sites.id"), ..Columns::default() }.push(&mut query, sight);
        query.push(" ORDER BY id LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }
}

impl Tx {
    /// The site with this id or name.
    pub async fn site(&mut self, id_or_name: &str) -> Result<Site, StoreError> {
        site(&mut self.inner, id_or_name).await
    }

    /// Makes a site.
    pub async fn insert_site(&mut self, now: Timestamp, name: &str) -> Result<Site, StoreError> {
        let site = Site { id: SiteId::fresh(), name: name.into(), created: now, version: 1 };
        self.watch("sites", site.id).await?;
        query("INSERT INTO sites (id, name, created) VALUES ($1, $2, $3)")
            .bind(site.id.to_string())
            .bind(name)
            .bind(micros(now))
            .execute(&mut self.inner)
            .await
            .map_err(taken("site name"))?;
        Ok(site)
    }

    /// Gives a site another name.
    pub async fn rename_site(&mut self, site: Site, name: &str) -> Result<Site, StoreError> {
        self.watch("sites", site.id).await?;
        query("UPDATE sites SET name = $2, version = version + 1 WHERE id = $1")
            .bind(site.id.to_string())
            .bind(name)
            .execute(&mut self.inner)
            .await
            .map_err(taken("site name"))?;
        Ok(Site { name: name.into(), version: site.version + 1, ..site })
    }

    /// Removes a site and the roles that people have there; false when racks stand in it or pools are for it.
    pub async fn delete_site(&mut self, site: SiteId) -> Result<bool, StoreError> {
        for count in ["SELECT COUNT(*) FROM racks WHERE site = $1", "SELECT COUNT(*) FROM pools WHERE site = $1"] {
            if query_scalar::<i64>(count).bind(site.to_string()).fetch_one(&mut self.inner).await? > 0 {
                return Ok(false);
            }
        }
        self.delete_bindings_at("site", &site.to_string()).await?;
        self.watch("sites", site).await?;
        query("DELETE FROM sites WHERE id = $1").bind(site.to_string()).execute(&mut self.inner).await?;
        Ok(true)
    }

    /// Says in which site a rack stands.
    pub async fn move_rack(&mut self, rack: RackId, site: SiteId) -> Result<(), StoreError> {
        self.watch("racks", rack).await?;
        query("UPDATE racks SET site = $2, version = version + 1 WHERE id = $1")
            .bind(rack.to_string())
            .bind(site.to_string())
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }
}

async fn site(executor: impl Into<Executor<'_>>, id_or_name: &str) -> Result<Site, StoreError> {
    let row =
        query("SELECT * FROM sites WHERE id = $1 OR name = $1 ORDER BY CASE WHEN id = $1 THEN 0 ELSE 1 END LIMIT 1")
            .bind(id_or_name)
            .fetch_optional(executor)
            .await?;
    read(&row.ok_or(StoreError::NotFound("site"))?)
}

fn read(row: &Row) -> Result<Site, StoreError> {
    Ok(Site {
        id: id(row.try_get("id")?)?,
        name: row.try_get("name")?,
        created: timestamp(row.try_get("created")?)?,
        version: row.try_get::<i64, _>("version")? as u64,
    })
}
