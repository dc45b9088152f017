//! Images: one row from the moment an import is asked for. Its bytes are objects elsewhere;
//! the row is what makes them an image, and is `ready` only after all of them are stored.

use jiff::Timestamp;
use rackhand_common::{
    id::ImageId,
    image::{Digest, Settings},
    machine::Firmware,
};

use super::{
    Store, StoreError, Tx,
    database::{Executor, Row, query, query_scalar},
    micros, taken, timestamp,
};

/// An image as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Names the import; a later import of the same name has another.
    pub id: ImageId,
    /// The operator's name for it.
    pub name: String,
    /// When its import was asked for.
    pub created: Timestamp,
    /// The settings format it understands.
    pub settings: Settings,
    /// How far it is.
    pub state: ImageState,
}

/// How far an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageState {
    /// Being read, cut and stored.
    Importing {
        /// What is done at present, in words: `receiving`, `converting`, `storing`.
        doing: String,
        /// Bytes done of what is done at present.
        done: u64,
        /// Bytes to do; zero when nobody knows.
        total: u64,
    },
    /// Can be deployed.
    Ready(Stored),
    /// Cannot be used; the name is free for another import.
    Failed {
        /// Why, for programs.
        cause: String,
        /// Why, for people.
        detail: String,
    },
}

/// What a finished import put into the object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Names the signed manifest.
    pub manifest: Digest,
    /// Bytes of the raw image.
    pub size: u64,
    /// Bytes of its chunks as compressed, each distinct chunk once.
    pub stored: u64,
    /// Logical sector size it was made for.
    pub sector: u32,
    /// Firmware modes it boots in.
    pub firmware: Vec<Firmware>,
    /// SHA-256 of the raw image, hexadecimal.
    pub sha256: String,
}

impl Image {
    /// What is stored, when the image can be deployed.
    pub fn stored(&self) -> Option<&Stored> {
        match &self.state {
            ImageState::Ready(stored) => Some(stored),
            _ => None,
        }
    }
}

impl Store {
    /// The image with this id or name.
    pub async fn image(&self, id_or_name: &str) -> Result<Image, StoreError> {
        image(&self.pool, id_or_name).await
    }

    /// Images in the order of their import, after `after`, at most `limit`.
    pub async fn images(&self, after: Option<ImageId>, limit: u32) -> Result<Vec<Image>, StoreError> {
        query("SELECT * FROM images WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read)
            .collect()
    }

    /// Notes how far an import is. A statement of its own: progress needs no transaction, but its turn.
    pub async fn import_progress(&self, id: ImageId, doing: &str, done: u64, total: u64) -> Result<(), StoreError> {
        let _turn = self.queue.turn().await?;
        query("UPDATE images SET doing = $2, done = $3, total = $4 WHERE id = $1 AND state = 'importing'")
            .bind(id.to_string())
            .bind(doing)
            .bind(done as i64)
            .bind(total as i64)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

impl Tx {
    /// The image with this id or name.
    pub async fn image(&mut self, id_or_name: &str) -> Result<Image, StoreError> {
        image(&mut self.inner, id_or_name).await
    }

    /// A row for an import that begins. A failed import of the same name makes room for it;
    /// any other keeps its name.
    pub async fn start_import(
        &mut self,
        now: Timestamp,
        name: &str,
        settings: Settings,
        doing: &str,
        total: u64,
    ) -> Result<ImageId, StoreError> {
        let id = ImageId::fresh();
        self.watch("images", id).await?;
        query("DELETE FROM images WHERE name = $1 AND state = 'failed'").bind(name).execute(&mut self.inner).await?;
        query(
            "INSERT INTO images (id, name, created, state, settings, doing, total)
             VALUES ($1, $2, $3, 'importing', $4, $5, $6)",
        )
        .bind(id.to_string())
        .bind(name)
        .bind(micros(now))
        .bind(json(&settings))
        .bind(doing)
        .bind(total as i64)
        .execute(&mut self.inner)
        .await
        .map_err(taken("image name"))?;
        Ok(id)
    }

    /// The import is complete: from now on the image can be deployed.
    pub async fn finish_import(&mut self, id: ImageId, stored: &Stored) -> Result<(), StoreError> {
        let changed = query(
            "UPDATE images SET state = 'ready', doing = NULL, manifest = $2, size = $3, stored = $4, sector = $5,
                    firmware = $6, sha256 = $7
             WHERE id = $1 AND state = 'importing'",
        )
        .bind(id.to_string())
        .bind(stored.manifest.to_string())
        .bind(stored.size as i64)
        .bind(stored.stored as i64)
        .bind(stored.sector)
        .bind(json(&stored.firmware))
        .bind(&stored.sha256)
        .execute(&mut self.inner)
        .await?;
        if changed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Changed("image")) }
    }

    /// The import ended without an image.
    pub async fn fail_import(&mut self, id: ImageId, cause: &str, detail: &str) -> Result<(), StoreError> {
        query(
            "UPDATE images SET state = 'failed', doing = NULL, cause = $2, detail = $3
             WHERE id = $1 AND state = 'importing'",
        )
        .bind(id.to_string())
        .bind(cause)
        .bind(detail)
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// Ends every import that an earlier process left unfinished; returns how many.
    pub async fn fail_unfinished_imports(&mut self, cause: &str, detail: &str) -> Result<u64, StoreError> {
        let ended = query(
            "UPDATE images SET state = 'failed', doing = NULL, cause = $1, detail = $2 WHERE state = 'importing'",
        )
        .bind(cause)
        .bind(detail)
        .execute(&mut self.inner)
        .await?;
        Ok(ended.rows_affected())
    }

    /// Name of a machine that runs this image, or that a run in progress installs it on.
    pub async fn image_user(&mut self, image: &Image) -> Result<Option<String>, StoreError> {
        let name = query_scalar(
            "SELECT name FROM machines WHERE image = $1
             UNION SELECT machines.name FROM runs JOIN machines ON machines.id = runs.machine
             WHERE runs.status = 'running' AND runs.parameters LIKE $2
             ORDER BY 1 LIMIT 1",
        )
        .bind(&image.name)
        // An id stands nowhere else in a run's parameters.
        .bind(format!("%{}%", image.id))
        .fetch_optional(&mut self.inner)
        .await?;
        Ok(name)
    }

    /// Forgets an image. Whether something still uses it is for the caller to have looked at,
    /// in this transaction.
    pub async fn delete_image(&mut self, id: ImageId) -> Result<(), StoreError> {
        self.watch("images", id).await?;
        let gone = query("DELETE FROM images WHERE id = $1").bind(id.to_string()).execute(&mut self.inner).await?;
        if gone.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NotFound("image")) }
    }
}

async fn image(executor: impl Into<Executor<'_>>, id_or_name: &str) -> Result<Image, StoreError> {
    // A name cannot look like an id, so one query serves both.
    let row = query("SELECT * FROM images WHERE id = $1 OR name = $1")
        .bind(id_or_name)
        .fetch_optional(executor)
        .await?
        .ok_or(StoreError::NotFound("image"))?;
    read(&row)
}

fn read(row: &Row) -> Result<Image, StoreError> {
    let damaged =
        |what: &'static str| move |error: Box<dyn std::error::Error + Send + Sync>| StoreError::Damaged(what, error);
    let state = match row.try_get::<&str, _>("state")? {
        "importing" => ImageState::Importing {
            doing: row.try_get("doing")?,
            done: row.try_get::<i64, _>("done")? as u64,
            total: row.try_get::<i64, _>("total")? as u64,
        },
        "ready" => ImageState::Ready(Stored {
            manifest: row.try_get::<&str, _>("manifest")?.parse().map_err(|e| damaged("digest")(Box::new(e)))?,
            size: row.try_get::<i64, _>("size")? as u64,
            stored: row.try_get::<i64, _>("stored")? as u64,
            sector: row.try_get("sector")?,
            firmware: serde_json::from_str(row.try_get("firmware")?).map_err(|e| damaged("firmware")(Box::new(e)))?,
            sha256: row.try_get("sha256")?,
        }),
        "failed" => ImageState::Failed { cause: row.try_get("cause")?, detail: row.try_get("detail")? },
        other => return Err(damaged("image state")(other.into())),
    };
    Ok(Image {
        id: row.try_get::<&str, _>("id")?.parse().map_err(|e| damaged("id")(Box::new(e)))?,
        name: row.try_get("name")?,
        created: timestamp(row.try_get("created")?)?,
        settings: serde_json::from_str(row.try_get("settings")?).map_err(|e| damaged("settings")(Box::new(e)))?,
        state,
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("closed enums always serialize")
}
