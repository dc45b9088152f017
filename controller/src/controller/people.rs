//! `rackhand-controller person`: what whoever has the host may do to a person, when nobody can log in.

use anyhow::{Result, bail, ensure};
use rackhand_common::{audit::Record, time::Now};
use uuid::Uuid;

use super::{Config, open};
use crate::{
    passwords::{LONGEST, Passwords, SHORTEST},
    store::{Asked, StoreError},
};

/// Gives a person another password, and ends their logins; a second factor is forgotten when that is
/// lost too. The controller may run.
pub async fn set_password(config: &Config, now: Now, name: &str, password: &str, forget_factor: bool) -> Result<()> {
    ensure!(
        password.chars().count() >= SHORTEST && password.len() <= LONGEST,
        "a password has at least {SHORTEST} characters, and at most {LONGEST} bytes"
    );
    let hash = Passwords::default().hash(password).await;
    let store = open(config).await?;
    let record = Record {
        id: Uuid::nil(),
        at: now.wall,
        by: "the host".to_owned(),
        token: Uuid::nil(),
        from: None,
        through: "rackhand-controller".to_owned(),
        action: "person password".to_owned(),
        request: Uuid::now_v7(),
        changes: Vec::new(),
    };
    let changed = async {
        let mut tx = store.begin().await?;
        let mut person = tx.person(name).await?;
        person.password = Some(hash);
        if forget_factor {
            person.totp = None;
        }
        tx.update_person(&mut person).await?;
        for login in tx.tokens_of_person(person.id, true).await? {
            tx.delete_token(login).await?;
        }
        tx.commit().await
    };
    let changed = Asked { record }.scope(changed).await;
    store.close().await;
    match changed {
        Err(StoreError::NotFound(_)) => bail!("there is no person `{name}`; the first is called `admin`"),
        changed => Ok(changed?),
    }
}
