//! A backup: the whole database in one SQLite file, whichever database it is of, with what else
//! belongs to a controller in tables of its own. Written while others write to the database; read without trusting it.
//! And a look at a database that may be damaged.

use std::{collections::BTreeMap, path::Path};

use jiff::Timestamp;
use rackhand_common::seal::Seal;
use sqlx::{
    Connection as _, Row as _, SqliteConnection,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};

use super::{
    Place, StoreError,
    database::{Database, connect, is_of_this_version, query, query_scalar},
    micros,
    seal::PROBE,
    timestamp, transfer,
};

/// The form of the backup's own tables.
const FORMAT: i64 = 1;

/// What a backup holds beside the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// When it was made.
    pub made: Timestamp,
    /// The version of the controller that made it.
    pub version: String,
    /// Files of keys and certificates, by name.
    pub pki: BTreeMap<String, Vec<u8>>,
    /// The images' objects there were, by path, with their lengths.
    pub objects: BTreeMap<String, u64>,
}

/// Copies the database at `from`, which others may be using, into the empty file `to`.
pub async fn write_copy(from: &Place, to: &Path) -> Result<(), StoreError> {
    let from = match from {
        Place::Server(options) => return transfer::to_file(options, to).await,
        Place::File(path) => path,
    };
    // No pool, no migrations: the database may be served by another version just now.
    let mut database = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(from)).await?;
    let path = to
        .to_str()
        .ok_or_else(|| StoreError::Database(sqlx::Error::Configuration("a path that is not UTF-8".into())))?;
    sqlx::query("VACUUM INTO $1").bind(path).execute(&mut database).await?;
    Ok(database.close().await?)
}

/// A copy of the database at `from`, and what else belongs to a controller.
pub async fn write_backup(from: &Place, to: &Path, contents: &Contents) -> Result<(), StoreError> {
    write_copy(from, to).await?;

    let options = SqliteConnectOptions::new().filename(to).journal_mode(SqliteJournalMode::Delete);
    let mut backup = SqliteConnection::connect_with(&options).await?;
    let mut tx = backup.begin().await?;
    for table in [
        "CREATE TABLE backup (format INTEGER NOT NULL, made INTEGER NOT NULL, version TEXT NOT NULL)",
        "CREATE TABLE backup_pki (name TEXT PRIMARY KEY NOT NULL, bytes BLOB NOT NULL)",
        "CREATE TABLE backup_objects (path TEXT PRIMARY KEY NOT NULL, length INTEGER NOT NULL)",
    ] {
        sqlx::query(table).execute(&mut *tx).await?;
    }
    sqlx::query("INSERT INTO backup (format, made, version) VALUES ($1, $2, $3)")
        .bind(FORMAT)
        .bind(micros(contents.made))
        .bind(&contents.version)
        .execute(&mut *tx)
        .await?;
    for (name, bytes) in &contents.pki {
        sqlx::query("INSERT INTO backup_pki (name, bytes) VALUES ($1, $2)")
            .bind(name)
            .bind(bytes)
            .execute(&mut *tx)
            .await?;
    }
    for (path, length) in &contents.objects {
        sqlx::query("INSERT INTO backup_objects (path, length) VALUES ($1, $2)")
            .bind(path)
            .bind(i64::try_from(*length).unwrap_or(i64::MAX))
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(backup.close().await?)
}

/// Whether the secrets in a copy of the database are sealed with what this opens; where none has
/// ever been sealed, they are.
pub async fn is_sealed_with(copy: &Path, seal: &Seal) -> Result<bool, StoreError> {
    let mut copy = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(copy).read_only(true)).await?;
    let probe: Option<String> = sqlx::query_scalar("SELECT probe FROM seal").fetch_optional(&mut copy).await?;
    copy.close().await?;
    Ok(probe.is_none_or(|probe| seal.open(PROBE, &probe).is_ok()))
}

/// Checks a copy of a backup, takes what is not the database's out of it and gives that.
pub async fn read_backup(copy: &Path) -> Result<Contents, StoreError> {
    let options = SqliteConnectOptions::new().filename(copy).pragma("secure_delete", "ON");
    let mut backup = SqliteConnection::connect_with(&options).await?;
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut backup).await?;
    if sound != "ok" {
        return Err(StoreError::Damaged("backup", sound.into()));
    }
    let row = sqlx::query("SELECT * FROM backup")
        .fetch_one(&mut backup)
        .await
        .map_err(|error| StoreError::Damaged("backup", error.into()))?;
    let format: i64 = row.try_get("format")?;
    if format != FORMAT {
        return Err(StoreError::Damaged(
            "backup",
            format!("it has format {format}; this version reads {FORMAT}").into(),
        ));
    }
    let mut contents = Contents {
        made: timestamp(row.try_get("made")?)?,
        version: row.try_get("version")?,
        pki: BTreeMap::new(),
        objects: BTreeMap::new(),
    };
    for row in sqlx::query("SELECT name, bytes FROM backup_pki").fetch_all(&mut backup).await? {
        contents.pki.insert(row.try_get("name")?, row.try_get("bytes")?);
    }
    for row in sqlx::query("SELECT path, length FROM backup_objects").fetch_all(&mut backup).await? {
        contents.objects.insert(row.try_get("path")?, u64::try_from(row.try_get::<i64, _>("length")?).unwrap_or(0));
    }
    for table in ["DROP TABLE backup", "DROP TABLE backup_pki", "DROP TABLE backup_objects", "VACUUM"] {
        sqlx::query(table).execute(&mut backup).await?;
    }
    backup.close().await?;
    Ok(contents)
}

/// Whether there is a controller's data in a server's database, which is brought up to date.
pub async fn is_occupied(place: &Place) -> Result<bool, StoreError> {
    let database = Database::open(place).await?;
    let tokens: i64 = query_scalar("SELECT COUNT(*) FROM tokens").fetch_one(&database).await?;
    database.close().await;
    Ok(tokens > 0)
}

/// Puts what is in a file, which [`Store::open`](super::Store::open) has brought up to date, in
/// place of all that is in a server's database.
pub async fn fill(place: &Place, from: &Path) -> Result<(), StoreError> {
    let database = Database::open(place).await?;
    transfer::from_file(from, &database).await?;
    database.close().await;
    Ok(())
}

/// A database as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examined {
    /// What is wrong with it; nothing more is told then.
    pub damage: Vec<String>,
    /// The newest event's time.
    pub newest: Option<Timestamp>,
    /// Ready images and their manifests.
    pub images: Vec<(String, String)>,
    /// Racks whose agents have not reported since a restore.
    pub waiting: Vec<String>,
}

/// Looks at the database, which others may be using, and changes nothing.
pub async fn examine(database: &Place) -> Result<Examined, StoreError> {
    let database = match database {
        Place::File(path) => {
            let options = SqliteConnectOptions::new().filename(path);
            let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
            let said: Vec<String> = sqlx::query_scalar("PRAGMA quick_check(5)").fetch_all(&pool).await?;
            if said != ["ok"] {
                return Ok(Examined { damage: said, ..Examined::default() });
            }
            Database::Sqlite(pool)
        }
        Place::Server(options) => {
            let mut connection = connect(options).await?;
            is_of_this_version(&mut connection).await?;
            connection.close().await?;
            Database::Postgres(PgPoolOptions::new().max_connections(1).connect_with(*options.clone()).await?)
        }
    };
    let newest: Option<i64> = query_scalar("SELECT MAX(at) FROM events").fetch_one(&database).await?;
    let images = query("SELECT name, manifest FROM images WHERE state = 'ready' ORDER BY name")
        .fetch_all(&database)
        .await?
        .iter()
        .map(|row| Ok((row.try_get("name")?, row.try_get("manifest")?)))
        .collect::<Result<_, StoreError>>()?;
    let waiting =
        query_scalar("SELECT name FROM racks WHERE restored IS NOT NULL ORDER BY name").fetch_all(&database).await?;
    database.close().await;
    Ok(Examined { damage: Vec::new(), newest: newest.map(timestamp).transpose()?, images, waiting })
}
