//! Operators' tokens. Only their SHA-256 is kept: 32 random bytes need no slow hash, and a
//! look-up by hash takes the same time for every wrong token.

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{
    Store, StoreError, Tx,
    database::{query, query_scalar},
    micros, taken, timestamp,
};

/// The time of last use is written at most this often: a poll must not become a write.
const USED_RESOLUTION: SignedDuration = SignedDuration::from_mins(1);

/// A token as it is known; the secret itself is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Names the row.
    pub id: Uuid,
    /// What the operator calls it; stands in the record of what was done with it.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is refused; `None` for never.
    pub expires: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub used: Option<Timestamp>,
}

impl Store {
    /// The token with this hash that is valid at `now`. Notes its use.
    pub async fn token(&self, now: Timestamp, hash: &[u8; 32]) -> Result<Token, StoreError> {
        let row = query("SELECT * FROM tokens WHERE hash = $1")
            .bind(hex::encode(hash))
            .fetch_optional(&self.pool)
            .await?
            .ok_or(StoreError::NotFound("token"))?;
        let optional =
            |column| row.try_get::<Option<i64>, _>(column).map_err(StoreError::from)?.map(timestamp).transpose();
        let token = Token {
            id: row.try_get::<&str, _>("id")?.parse().map_err(|e| StoreError::Damaged("id", Box::new(e)))?,
            name: row.try_get("name")?,
            created: timestamp(row.try_get("created")?)?,
            expires: optional("expires")?,
            used: optional("used")?,
        };
        if token.expires.is_some_and(|expires| expires <= now) {
            return Err(StoreError::NotFound("token"));
        }
        if token.used.is_none_or(|used| now.duration_since(used) >= USED_RESOLUTION) {
            let _turn = self.queue.turn().await?;
            query("UPDATE tokens SET used = $2 WHERE id = $1")
                .bind(token.id.to_string())
                .bind(micros(now))
                .execute(&self.pool)
                .await?;
        }
        Ok(token)
    }
}

impl Tx {
    /// Keeps the hash of a fresh token.
    pub async fn insert_token(
        &mut self,
        now: Timestamp,
        name: &str,
        hash: &[u8; 32],
        expires: Option<Timestamp>,
    ) -> Result<Uuid, StoreError> {
        let id = Uuid::now_v7();
        query("INSERT INTO tokens (id, name, hash, created, expires) VALUES ($1, $2, $3, $4, $5)")
            .bind(id.to_string())
            .bind(name)
            .bind(hex::encode(hash))
            .bind(micros(now))
            .bind(expires.map(micros))
            .execute(&mut self.inner)
            .await
            .map_err(taken("token name"))?;
        Ok(id)
    }

    /// Keeps the hash of a fresh token if there has never been one.
    pub async fn insert_first_token(
        &mut self,
        now: Timestamp,
        name: &str,
        hash: &[u8; 32],
    ) -> Result<Uuid, StoreError> {
        let known: i64 = query_scalar("SELECT COUNT(*) FROM tokens").fetch_one(&mut self.inner).await?;
        if known > 0 {
            return Err(StoreError::Taken("first token"));
        }
        self.insert_token(now, name, hash, None).await
    }
}
