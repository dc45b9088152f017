//! Images: one row from the moment an import is asked for. Its bytes are objects elsewhere;
//! the row is what makes them an image, and is `ready` only after all of them are stored.
//!
//! Invariants:
//! - A name gives each version once, also after the image is gone; only that of a failed import,
//!   which nobody can have used, is given again.

use std::fmt;

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
use crate::images::Finding;

/// An image's name with its version: `debian-12@3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageVersion {
    /// The operator's name for it.
    pub name: String,
    /// Counts the imports of this name.
    pub version: u32,
}

impl fmt::Display for ImageVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// What an operator says of an image to be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage<'a> {
    /// Its name.
    pub name: &'a str,
    /// The settings format it understands.
    pub settings: Settings,
    /// The catalogue's name for the system in it.
    pub os: Option<&'a str>,
}

/// An image as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Names the import; a later import of the same name has another.
    pub id: ImageId,
    /// The operator's name for it.
    pub name: String,
    /// Counts the imports of this name.
    pub version: u32,
    /// Counts the changes of what an operator says about it.
    pub revision: u64,
    /// The catalogue's name for the system in it.
    pub os: Option<String>,
    /// Whether another should be used.
    pub deprecated: bool,
    /// From when on it is not deployed any more.
    pub expires: Option<Timestamp>,
    /// What a look into it found; none when nobody has looked.
    pub findings: Option<Vec<Finding>>,
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
    /// Its name with its version.
    pub fn named(&self) -> ImageVersion {
        ImageVersion { name: self.name.clone(), version: self.version }
    }

    /// What is stored, when the image can be deployed.
    pub fn stored(&self) -> Option<&Stored> {
        match &self.state {
            ImageState::Ready(stored) => Some(stored),
            _ => None,
        }
    }
}

impl Store {
    /// The image that `reference` names: an id; a name, for its newest version that is ready, or
    /// else the newest; or a name with a version (`debian-12@3`) or the digest of the raw image
    /// (`debian-12@sha256:…`).
    pub async fn image(&self, reference: &str) -> Result<Image, StoreError> {
        image(&self.pool, reference).await
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
    /// The image that `reference` names: see [`Store::image`].
    pub async fn image(&mut self, reference: &str) -> Result<Image, StoreError> {
        image(&mut self.inner, reference).await
    }

    /// A row for an import that begins: the next version of its name. A failed import of the
    /// same name makes room for it.
    pub async fn start_import(
        &mut self,
        now: Timestamp,
        new: &NewImage<'_>,
        doing: &str,
        total: u64,
    ) -> Result<ImageId, StoreError> {
        let id = ImageId::fresh();
        self.watch("images", id).await?;
        query(
            "UPDATE image_names SET last = last - 1
             WHERE name = $1 AND last IN (SELECT version FROM images WHERE name = $1 AND state = 'failed')",
        )
        .bind(new.name)
        .execute(&mut self.inner)
        .await?;
        query("DELETE FROM images WHERE name = $1 AND state = 'failed'")
            .bind(new.name)
            .execute(&mut self.inner)
            .await?;
        let version: i64 = query_scalar(
            "INSERT INTO image_names (name, last) VALUES ($1, 1)
             ON CONFLICT (name) DO UPDATE SET last = image_names.last + 1 RETURNING last",
        )
        .bind(new.name)
        .fetch_one(&mut self.inner)
        .await?;
        query(
            "INSERT INTO images (id, name, version, created, state, settings, os, doing, total)
             VALUES ($1, $2, $3, $4, 'importing', $5, $6, $7, $8)",
        )
        .bind(id.to_string())
        .bind(new.name)
        .bind(version)
        .bind(micros(now))
        .bind(json(&new.settings))
        .bind(new.os)
        .bind(doing)
        .bind(total as i64)
        .execute(&mut self.inner)
        .await
        .map_err(taken("image version"))?;
        Ok(id)
    }

    /// Writes what an operator says about an image. Fails with [`StoreError::Changed`] when
    /// somebody else did since it was read.
    pub async fn update_image(&mut self, image: &mut Image) -> Result<(), StoreError> {
        self.watch("images", image.id).await?;
        let changed = query(
            "UPDATE images SET deprecated = $3, expires = $4, revision = revision + 1 WHERE id = $1 AND revision = $2",
        )
        .bind(image.id.to_string())
        .bind(image.revision as i64)
        .bind(i64::from(image.deprecated))
        .bind(image.expires.map(micros))
        .execute(&mut self.inner)
        .await?;
        if changed.rows_affected() != 1 {
            return Err(StoreError::Changed("image"));
        }
        image.revision += 1;
        Ok(())
    }

    /// Keeps what a look into an image found.
    pub async fn note_findings(&mut self, id: ImageId, findings: &[Finding]) -> Result<(), StoreError> {
        self.watch("images", id).await?;
        query("UPDATE images SET findings = $2, revision = revision + 1 WHERE id = $1")
            .bind(id.to_string())
            .bind(json(&findings))
            .execute(&mut self.inner)
            .await?;
        Ok(())
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
            "SELECT name FROM machines WHERE image = $1 AND image_version = $2
             UNION SELECT machines.name FROM runs JOIN machines ON machines.id = runs.machine
             WHERE runs.status = 'running' AND runs.parameters LIKE $3
             ORDER BY 1 LIMIT 1",
        )
        .bind(&image.name)
        .bind(i64::from(image.version))
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

async fn image(executor: impl Into<Executor<'_>>, reference: &str) -> Result<Image, StoreError> {
    let asked = match reference.split_once('@') {
        // A name cannot look like an id, so one query serves both.
        None => query(
            "SELECT * FROM images WHERE id = $1 OR name = $1
             ORDER BY CASE state WHEN 'ready' THEN 0 ELSE 1 END, version DESC LIMIT 1",
        )
        .bind(reference),
        Some((name, version)) => match (version.strip_prefix("sha256:"), version.parse::<u32>()) {
            (Some(digest), _) => {
                query("SELECT * FROM images WHERE name = $1 AND sha256 = $2 ORDER BY version DESC LIMIT 1")
                    .bind(name)
                    .bind(digest)
            }
            (None, Ok(version)) => {
                query("SELECT * FROM images WHERE name = $1 AND version = $2").bind(name).bind(i64::from(version))
            }
            (None, Err(_)) => return Err(StoreError::NotFound("image")),
        },
    };
    let row = asked.fetch_optional(executor).await?.ok_or(StoreError::NotFound("image"))?;
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
        version: row.try_get::<i64, _>("version")? as u32,
        revision: row.try_get::<i64, _>("revision")? as u64,
        os: row.try_get("os")?,
        deprecated: row.try_get::<i64, _>("deprecated")? != 0,
        expires: row.try_get::<Option<i64>, _>("expires")?.map(timestamp).transpose()?,
        findings: row
            .try_get::<Option<String>, _>("findings")?
            .map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|e| damaged("findings")(Box::new(e)))?,
        created: timestamp(row.try_get("created")?)?,
        settings: serde_json::from_str(row.try_get("settings")?).map_err(|e| damaged("settings")(Box::new(e)))?,
        state,
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("these values always serialize")
}
