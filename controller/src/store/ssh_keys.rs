//! Public keys of people: who proves to have the private part opens consoles by SSH.

use jiff::{SignedDuration, Timestamp};
use rackhand_common::id::PersonId;
use rackhand_controller_core::access;
use uuid::Uuid;

use super::{
    Store, StoreError, Tx,
    bindings::held,
    database::{Executor, Row, query, query_scalar},
    id, micros, taken, timestamp,
};

/// The time of last use is written at most this often.
const USED_RESOLUTION: SignedDuration = SignedDuration::from_mins(1);

/// A public key of a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshKey {
    /// Names the row.
    pub id: Uuid,
    /// Whose it is.
    pub person: PersonId,
    /// Their name.
    pub person_name: String,
    /// What they call it; unique among theirs.
    pub name: String,
    /// Algorithm and key as in `authorized_keys`, without a comment.
    pub key: String,
    /// SHA-256 of it, as `ssh-keygen` shows it; nobody else has the same.
    pub fingerprint: String,
    /// When it was added.
    pub created: Timestamp,
    /// When it was last used, to the minute.
    pub used: Option<Timestamp>,
}

/// A key to be kept.
#[derive(Clone, Copy, Debug)]
pub struct NewSshKey<'a> {
    /// Whose it is.
    pub person: PersonId,
    /// What they call it.
    pub name: &'a str,
    /// Algorithm and key, without a comment.
    pub key: &'a str,
    /// Its fingerprint.
    pub fingerprint: &'a str,
}

const SELECT: &str = "SELECT ssh_keys.*, people.name AS person_name
    FROM ssh_keys JOIN people ON people.id = ssh_keys.person";

impl Store {
    /// The key with this fingerprint, and the roles of its owner. Notes its use.
    pub async fn use_ssh_key(
        &self,
        now: Timestamp,
        fingerprint: &str,
    ) -> Result<(SshKey, Vec<access::Binding>), StoreError> {
        let (key, roles) = self.known_key("fingerprint", fingerprint).await?;
        if key.used.is_none_or(|used| now.duration_since(used) >= USED_RESOLUTION) {
            query("UPDATE ssh_keys SET used = $2 WHERE id = $1")
                .bind(key.id.to_string())
                .bind(micros(now))
                .execute(&self.pool)
                .await?;
        }
        Ok((key, roles))
    }

    /// The key with this id, and the roles of its owner.
    pub async fn ssh_key_with_id(&self, key: Uuid) -> Result<(SshKey, Vec<access::Binding>), StoreError> {
        self.known_key("id", &key.to_string()).await
    }

    async fn known_key(&self, column: &str, is: &str) -> Result<(SshKey, Vec<access::Binding>), StoreError> {
        let rows = query(sqlx::AssertSqlSafe(format!(
            "SELECT known.*, bindings.role AS held_role, bindings.kind AS held_kind, bindings.scope AS held_scope
             FROM ({SELECT}) AS known LEFT JOIN bindings ON bindings.person = known.person
             WHERE known.{column} = $1 ORDER BY bindings.id"
        )))
        .bind(is)
        .fetch_all(&self.pool)
        .await?;
        let key = rows.first().map(read).transpose()?.ok_or(StoreError::NotFound("SSH key"))?;
        let roles = rows.iter().filter_map(|row| held(row).transpose()).collect::<Result<_, _>>()?;
        Ok((key, roles))
    }

    /// Keys in the order they were added, after `after`, at most `limit`: of one person, or everybody's.
    pub async fn ssh_keys(
        &self,
        person: Option<PersonId>,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<SshKey>, StoreError> {
        query(sqlx::AssertSqlSafe(format!(
            "{SELECT} WHERE ssh_keys.id > $1 AND ($2 = '' OR ssh_keys.person = $2) ORDER BY ssh_keys.id LIMIT $3"
        )))
        .bind(after.map(|id| id.to_string()).unwrap_or_default())
        .bind(person.map(|id| id.to_string()).unwrap_or_default())
        .bind(limit)
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(read)
        .collect()
    }
}

impl Tx {
    /// The key with this id.
    pub async fn ssh_key(&mut self, key: Uuid) -> Result<SshKey, StoreError> {
        ssh_key(&mut self.inner, key).await
    }

    /// Keeps a key.
    pub async fn insert_ssh_key(&mut self, now: Timestamp, new: NewSshKey<'_>) -> Result<SshKey, StoreError> {
        let id = Uuid::now_v7();
        self.watch("ssh_keys", id).await?;
        query("INSERT INTO ssh_keys (id, person, name, key, fingerprint, created) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(id.to_string())
            .bind(new.person.to_string())
            .bind(new.name)
            .bind(new.key)
            .bind(new.fingerprint)
            .bind(micros(now))
            .execute(&mut self.inner)
            .await
            .map_err(taken("SSH key, or one of yours with this name"))?;
        self.ssh_key(id).await
    }

    /// The keys of a person.
    pub async fn ssh_keys_of(&mut self, person: PersonId) -> Result<Vec<Uuid>, StoreError> {
        let found: Vec<String> = query_scalar("SELECT id FROM ssh_keys WHERE person = $1")
            .bind(person.to_string())
            .fetch_all(&mut self.inner)
            .await?;
        found.iter().map(|found| id(found)).collect()
    }

    /// Forgets a key: nobody logs in by it from now on.
    pub async fn delete_ssh_key(&mut self, key: Uuid) -> Result<(), StoreError> {
        self.watch("ssh_keys", key).await?;
        query("DELETE FROM ssh_keys WHERE id = $1").bind(key.to_string()).execute(&mut self.inner).await?;
        Ok(())
    }
}

async fn ssh_key(executor: impl Into<Executor<'_>>, key: Uuid) -> Result<SshKey, StoreError> {
    let row = query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE ssh_keys.id = $1")))
        .bind(key.to_string())
        .fetch_optional(executor)
        .await?;
    read(&row.ok_or(StoreError::NotFound("SSH key"))?)
}

fn read(row: &Row) -> Result<SshKey, StoreError> {
    Ok(SshKey {
        id: id(row.try_get("id")?)?,
        person: id(row.try_get("person")?)?,
        person_name: row.try_get("person_name")?,
        name: row.try_get("name")?,
        key: row.try_get("key")?,
        fingerprint: row.try_get("fingerprint")?,
        created: timestamp(row.try_get("created")?)?,
        used: row.try_get::<Option<i64>, _>("used")?.map(timestamp).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use rackhand_controller_core::access::{Role, Scope};

    use super::*;
    use crate::store::tests::{Bench, On, at, on_both};

    async fn a_key_is_one_persons_has_their_roles_and_goes_with_them(on: On) {
        let bench = Bench::new(on).await;
        let mut tx = bench.store.begin().await.unwrap();
        let ada = tx.insert_person(at(0), "ada", "").await.unwrap().id;
        let bob = tx.insert_person(at(0), "bob", "").await.unwrap().id;
        let role = access::Binding { role: Role::Viewer, scope: Scope::Everything };
        tx.insert_binding(at(0), ada, role, Some("admin")).await.unwrap();
        let new = NewSshKey { person: ada, name: "laptop", key: "ssh-ed25519 AAAA", fingerprint: "SHA256:one" };
        let key = tx.insert_ssh_key(at(1), new).await.unwrap();
        tx.commit().await.unwrap();
        for again in
            [NewSshKey { person: bob, ..new }, NewSshKey { key: "ssh-ed25519 BBBB", fingerprint: "SHA256:two", ..new }]
        {
            let mut tx = bench.store.begin().await.unwrap();
            assert!(matches!(tx.insert_ssh_key(at(1), again).await, Err(StoreError::Taken(_))), "{again:?}");
        }

        let (used, roles) = bench.store.use_ssh_key(at(100), "SHA256:one").await.unwrap();
        assert_eq!((used, roles), (key.clone(), vec![role]));
        bench.store.use_ssh_key(at(101), "SHA256:one").await.unwrap();
        let used = Some(at(100));
        assert_eq!(bench.store.ssh_key_with_id(key.id).await.unwrap().0, SshKey { used, ..key.clone() });
        assert!(matches!(bench.store.use_ssh_key(at(100), "SHA256:two").await, Err(StoreError::NotFound(_))));
        assert_eq!(bench.store.ssh_keys(Some(bob), None, 10).await.unwrap(), []);
        assert_eq!(bench.store.ssh_keys(None, None, 10).await.unwrap(), [SshKey { used, ..key.clone() }]);
        assert_eq!(bench.store.ssh_keys(Some(ada), Some(key.id), 10).await.unwrap(), []);

        let mut tx = bench.store.begin().await.unwrap();
        tx.delete_person(ada).await.unwrap();
        assert!(matches!(tx.ssh_key(key.id).await, Err(StoreError::NotFound(_))));
        tx.commit().await.unwrap();
    }

    on_both! { a_key_is_one_persons_has_their_roles_and_goes_with_them, }
}
