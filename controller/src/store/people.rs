//! People who log in.

use jiff::Timestamp;
use rackhand_common::id::PersonId;

use super::{
    Store, StoreError, Tx,
    database::{Executor, Row, query, query_scalar},
    id, micros, taken, timestamp,
};

/// Somebody who logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Their id.
    pub id: PersonId,
    /// The name they log in with; unique.
    pub name: String,
    /// Where mail reaches them; may be empty.
    pub email: String,
    /// The hash of their password, with its parameters; `None` for none.
    pub password: Option<String>,
    /// Their second factor.
    pub totp: Option<Factor>,
    /// Who vouches for them elsewhere, and by which name: issuer and subject.
    pub vouched: Option<(String, String)>,
    /// When they were added.
    pub created: Timestamp,
    /// Counts the changes that are made to them; a code that is taken at a login is none.
    pub version: u64,
}

/// A second factor.
#[derive(Clone, PartialEq, Eq)]
pub struct Factor {
    /// Its secret.
    pub secret: Vec<u8>,
    /// Whether a code proved that its owner has it: only then it is asked for.
    pub is_confirmed: bool,
    /// The time step of the newest code that was taken.
    pub step: i64,
}

impl std::fmt::Debug for Factor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Factor").field("is_confirmed", &self.is_confirmed).finish_non_exhaustive()
    }
}

impl Store {
    /// The person with this id or name.
    pub async fn person(&self, id_or_name: &str) -> Result<Person, StoreError> {
        read(&self.seal, &person(&self.pool, id_or_name).await?)
    }

    /// The person that an issuer vouches for by this name.
    pub async fn person_vouched(&self, issuer: &str, subject: &str) -> Result<Option<Person>, StoreError> {
        vouched(&self.pool, &self.seal, issuer, subject).await
    }

    /// People in the order they were added, after `after`, at most `limit`.
    pub async fn people(&self, after: Option<PersonId>, limit: u32) -> Result<Vec<Person>, StoreError> {
        query("SELECT * FROM people WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| read(&self.seal, row))
            .collect()
    }
}

impl Tx {
    /// The person with this id or name.
    pub async fn person(&mut self, id_or_name: &str) -> Result<Person, StoreError> {
        let row = person(&mut self.inner, id_or_name).await?;
        read(&self.seal, &row)
    }

    /// The person that an issuer vouches for by this name.
    pub async fn person_vouched(&mut self, issuer: &str, subject: &str) -> Result<Option<Person>, StoreError> {
        vouched(&mut self.inner, &self.seal, issuer, subject).await
    }

    /// Whether the person that an issuer vouches for by this name was removed here.
    pub async fn was_removed(&mut self, issuer: &str, subject: &str) -> Result<bool, StoreError> {
        let found = query("SELECT id FROM removed_people WHERE issuer = $1 AND subject = $2")
            .bind(issuer)
            .bind(subject)
            .fetch_optional(&mut self.inner)
            .await?;
        Ok(found.is_some())
    }

    /// Has an issuer vouch for a person by this name, also where it did for one who was removed.
    pub async fn vouch(&mut self, person: &mut Person, issuer: &str, subject: &str) -> Result<(), StoreError> {
        let removed: Option<String> = query_scalar("SELECT id FROM removed_people WHERE issuer = $1 AND subject = $2")
            .bind(issuer)
            .bind(subject)
            .fetch_optional(&mut self.inner)
            .await?;
        if let Some(removed) = removed {
            self.watch("removed_people", &removed).await?;
            query("DELETE FROM removed_people WHERE id = $1").bind(&removed).execute(&mut self.inner).await?;
        }
        person.vouched = Some((issuer.to_owned(), subject.to_owned()));
        self.update_person(person).await
    }

    /// Adds a person, who can do nothing yet.
    pub async fn insert_person(&mut self, now: Timestamp, name: &str, email: &str) -> Result<Person, StoreError> {
        let id = PersonId::fresh();
        self.watch("people", id).await?;
        query("INSERT INTO people (id, name, email, created) VALUES ($1, $2, $3, $4)")
            .bind(id.to_string())
            .bind(name)
            .bind(email)
            .bind(micros(now))
            .execute(&mut self.inner)
            .await
            .map_err(taken("person's name"))?;
        self.person(&id.to_string()).await
    }

    /// Writes everything about a person that changes, and counts that up.
    pub async fn update_person(&mut self, person: &mut Person) -> Result<(), StoreError> {
        self.watch("people", person.id).await?;
        let sealed = person.totp.as_ref().map(|factor| self.seal.seal(&place(person.id), &hex::encode(&factor.secret)));
        query(
            "UPDATE people SET name = $2, email = $3, password = $4, totp = $5, confirmed = $6, step = $7,
                issuer = $8, subject = $9,
                version = version + 1
             WHERE id = $1",
        )
        .bind(person.id.to_string())
        .bind(&person.name)
        .bind(&person.email)
        .bind(&person.password)
        .bind(sealed)
        .bind(person.totp.as_ref().is_some_and(|factor| factor.is_confirmed))
        .bind(person.totp.as_ref().map_or(0, |factor| factor.step))
        .bind(person.vouched.as_ref().map(|(issuer, _)| issuer.as_str()))
        .bind(person.vouched.as_ref().map(|(_, subject)| subject.as_str()))
        .execute(&mut self.inner)
        .await
        .map_err(taken("person's name"))?;
        person.version += 1;
        Ok(())
    }

    /// Notes the time step of a code that was taken at a login: it is not taken again.
    pub async fn take_code(&mut self, person: PersonId, step: i64) -> Result<(), StoreError> {
        self.watch("people", person).await?;
        query("UPDATE people SET step = $2 WHERE id = $1")
            .bind(person.to_string())
            .bind(step)
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Removes a person with their tokens, keys and roles. Who vouches for them does not bring them back.
    pub async fn delete_person(&mut self, person: PersonId) -> Result<(), StoreError> {
        self.watch("removed_people", person).await?;
        query(
            "INSERT INTO removed_people (id, name, issuer, subject)
             SELECT id, name, issuer, subject FROM people WHERE id = $1 AND issuer IS NOT NULL",
        )
        .bind(person.to_string())
        .execute(&mut self.inner)
        .await?;
        for binding in self.bindings_of(person).await? {
            self.delete_binding(binding.id).await?;
        }
        for token in self.tokens_of_person(person, false).await? {
            self.delete_token(token).await?;
        }
        for key in self.ssh_keys_of(person).await? {
            self.delete_ssh_key(key).await?;
        }
        self.watch("people", person).await?;
        query("DELETE FROM people WHERE id = $1").bind(person.to_string()).execute(&mut self.inner).await?;
        Ok(())
    }
}

async fn person(executor: impl Into<Executor<'_>>, id_or_name: &str) -> Result<Row, StoreError> {
    query("SELECT * FROM people WHERE id = $1 OR name = $1 ORDER BY CASE WHEN id = $1 THEN 0 ELSE 1 END LIMIT 1")
        .bind(id_or_name)
        .fetch_optional(executor)
        .await?
        .ok_or(StoreError::NotFound("person"))
}

async fn vouched(
    executor: impl Into<Executor<'_>>,
    seal: &rackhand_common::seal::Seal,
    issuer: &str,
    subject: &str,
) -> Result<Option<Person>, StoreError> {
    let row = query("SELECT * FROM people WHERE issuer = $1 AND subject = $2")
        .bind(issuer)
        .bind(subject)
        .fetch_optional(executor)
        .await?;
    row.as_ref().map(|row| read(seal, row)).transpose()
}

/// What a person's secret is sealed for.
pub(super) fn place(person: PersonId) -> String {
    format!("second factor of {person}")
}

fn read(seal: &rackhand_common::seal::Seal, row: &Row) -> Result<Person, StoreError> {
    let person: PersonId = id(row.try_get("id")?)?;
    let totp = match row.try_get::<Option<&str>, _>("totp")? {
        Some(sealed) => {
            let damaged = |error: Box<dyn std::error::Error + Send + Sync>| StoreError::Damaged("second factor", error);
            let secret = seal.open(&place(person), sealed).map_err(|error| damaged(error.into()))?;
            Some(Factor {
                secret: hex::decode(secret).map_err(|error| damaged(error.into()))?,
                is_confirmed: row.try_get::<i64, _>("confirmed")? != 0,
                step: row.try_get("step")?,
            })
        }
        None => None,
    };
    let issuer: Option<String> = row.try_get("issuer")?;
    Ok(Person {
        id: person,
        name: row.try_get("name")?,
        email: row.try_get("email")?,
        password: row.try_get("password")?,
        totp,
        vouched: issuer.zip(row.try_get("subject")?),
        created: timestamp(row.try_get("created")?)?,
        version: row.try_get::<i64, _>("version")? as u64,
    })
}

#[cfg(test)]
mod tests {
    use rackhand_controller_core::access::{self, Role, Scope};

    use super::*;
    use crate::store::tests::{Bench, On, at, on_both};

    async fn who_was_removed_is_remembered_by_who_vouched_for_them_until_they_are_vouched_for_again(on: On) {
        let bench = Bench::new(on).await;
        let (issuer, other) = ("https://login.example.net", "https://other.example.net");
        let mut tx = bench.store.begin().await.unwrap();
        let mut ada = tx.insert_person(at(0), "ada@example.net", "ada@example.net").await.unwrap();
        let bob = tx.insert_person(at(0), "bob", "").await.unwrap();
        tx.vouch(&mut ada, issuer, "1").await.unwrap();
        assert_eq!(tx.person_vouched(issuer, "1").await.unwrap(), Some(ada.clone()));
        assert_eq!(tx.person_vouched(other, "1").await.unwrap(), None);
        tx.commit().await.unwrap();
        assert_eq!(bench.store.person_vouched(issuer, "1").await.unwrap(), Some(ada.clone()));

        let mut tx = bench.store.begin().await.unwrap();
        tx.delete_person(ada.id).await.unwrap();
        tx.delete_person(bob.id).await.unwrap();
        assert_eq!(tx.person_vouched(issuer, "1").await.unwrap(), None);
        assert!(tx.was_removed(issuer, "1").await.unwrap());
        assert!(!tx.was_removed(other, "1").await.unwrap());
        let mut again = tx.insert_person(at(1), "ada", "").await.unwrap();
        tx.vouch(&mut again, issuer, "1").await.unwrap();
        assert!(!tx.was_removed(issuer, "1").await.unwrap());
        tx.delete_person(again.id).await.unwrap();
        assert!(tx.was_removed(issuer, "1").await.unwrap());
    }

    async fn a_role_by_a_group_that_is_granted_by_hand_is_granted_by_hand(on: On) {
        let bench = Bench::new(on).await;
        let mut tx = bench.store.begin().await.unwrap();
        let ada = tx.insert_person(at(0), "ada", "").await.unwrap().id;
        let role = access::Binding { role: Role::Viewer, scope: Scope::Everything };
        let by_group = tx.insert_binding(at(0), ada, role, None).await.unwrap();
        assert_eq!(by_group.granted_by, None);
        let by_hand = tx.insert_binding(at(1), ada, role, Some("admin")).await.unwrap();
        assert_eq!((by_hand.id, by_hand.granted_by.as_deref()), (by_group.id, Some("admin")));
        assert!(matches!(tx.insert_binding(at(2), ada, role, Some("bob")).await, Err(StoreError::Taken(_))));
    }

    on_both! {
        who_was_removed_is_remembered_by_who_vouched_for_them_until_they_are_vouched_for_again,
        a_role_by_a_group_that_is_granted_by_hand_is_granted_by_hand,
    }
}
