//! Replacing the key that secrets in the database are sealed with, on the data of a controller that
//! does not run.
//!
//! Three steps, each whole or not done: a new key is put before the old one; all secrets are sealed
//! with it, in one transaction; the old key is destroyed. A replacement that was interrupted
//! is finished by whoever comes first, the next start or the same command.
//!
//! Invariants:
//! - At any moment the keys in the file open everything in the database.
//! - The old key is destroyed only once nothing in the database is sealed with it.

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use rackhand_common::audit::Record;
use rackhand_fail_points::fail_point;
use uuid::Uuid;

use super::{Alone, Config, become_owner, open};
use crate::{seal_key, store::Asked};

/// Replaces the key.
pub async fn rotate(config: &Config, now: Timestamp) -> Result<String> {
    let pki = config.pki();
    ensure!(
        pki.join(seal_key::FILE).exists(),
        "{} has no key to replace: it is not a controller's data directory (`data` in the configuration), or one that \
         has never been started",
        config.data.display()
    );
    become_owner(&config.data)?;
    let _alone = Alone::on(config).await.context("stop the controller for this, and start it again afterwards")?;
    let was_interrupted = seal_key::unfinished(&pki).context("cannot use the key")?.is_some();
    if !was_interrupted {
        // A key that is not this database's is found before anything is changed.
        open(config).await?.close().await;
        fail_point!(once "seal.begin", seal_key::begin(&pki)).context("cannot write the new key")?;
    }
    let changed = finish(config, now).await?;
    let begun = if was_interrupted { "A replacement that was interrupted is finished" } else { "The key is replaced" };
    Ok(format!(
        "{begun}: {changed} secrets are sealed anew, and the old key is destroyed.\n\
         Start the controller, and make a backup: those made before hold the old key, and what it opens."
    ))
}

/// Finishes a replacement that has begun; how many secrets were sealed anew. Only whoever holds the
/// lock of the data directory may call it.
pub(super) async fn finish(config: &Config, now: Timestamp) -> Result<usize> {
    let Some(newest) = seal_key::unfinished(&config.pki()).context("cannot use the key of the secrets")? else {
        return Ok(0);
    };
    let record = Record {
        id: Uuid::nil(),
        at: now,
        by: "the host".to_owned(),
        token: Uuid::nil(),
        from: None,
        through: "rackhand-controller".to_owned(),
        action: "seal rotate".to_owned(),
        request: Uuid::now_v7(),
        changes: Vec::new(),
    };
    let store = open(config).await?;
    let resealed = Asked { record }.scope(store.reseal(&newest)).await;
    store.close().await;
    let changed = resealed.context("the secrets cannot be sealed anew; nothing was changed, and both keys are kept")?;
    fail_point!("seal.end", seal_key::end(&config.pki())).context("the old key cannot be destroyed")?;
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rackhand_common::{pki::install_crypto, seal::Seal};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        authority::Authority,
        backup,
        controller::{DatabaseFile, File, Seams, start},
        store::{
            Store,
            seal::tests::{Secrets, sealed},
            tests::{Bench, On, at, on_both},
        },
    };

    /// A controller's data with every kind of secret in it, sealed with a key of sevens.
    struct Made {
        bench: Bench,
        config: Config,
        secrets: Secrets,
    }

    impl Made {
        async fn on(on: On) -> Self {
            install_crypto();
            let bench = Bench::new(on).await;
            let secrets = Secrets::put(&bench).await;
            bench.store.close().await;
            let data = bench.ground.dir().join("data");
            fs::create_dir(&data).unwrap();
            let here = "127.0.0.1:0".parse().unwrap();
            let mut file = File { data: Some(data), names: vec!["127.0.0.1".into()], ..File::default() };
            (file.api.listen, file.agents.listen) = (Some(here), Some(here));
            if let On::Postgres = on {
                file.database = Some(DatabaseFile { url: bench.ground.url(), password_file: None });
            }
            let config = Config::try_from(file).unwrap();
            Authority::init(&config.pki(), at(0)).unwrap();
            fs::write(config.pki().join(seal_key::FILE), "07".repeat(32)).unwrap();
            if let On::Sqlite = on {
                fs::rename(bench.ground.file(), config.database()).unwrap();
            }
            Self { bench, config, secrets }
        }

        fn key(&self) -> String {
            fs::read_to_string(self.config.pki().join(seal_key::FILE)).unwrap()
        }

        /// Everything opens with what is in the file, and not with the key that was there at first.
        async fn check(&self) {
            assert_eq!(self.key().split_whitespace().count(), 1, "the old key is still there");
            let store = open(&self.config).await.unwrap();
            self.secrets.check(&store).await;
            store.close().await;
            Store::open(self.config.place().unwrap(), Seal::new(&[7; 32])).await.unwrap_err();
        }
    }

    async fn a_key_is_replaced_and_a_backup_made_before_is_restored_with_its_own(on: On) {
        let made = Made::on(on).await;
        let (config, file) = (&made.config, made.bench.ground.dir().join("backup"));
        backup::backup(config, &file, at(1)).await.unwrap();
        let before = sealed(&config.place().unwrap(), made.bench.ground.dir()).await;
        let said = rotate(config, at(2)).await.unwrap();
        assert!(said.starts_with("The key is replaced: 6 secrets are sealed anew"), "{said}");
        made.check().await;
        let after = sealed(&config.place().unwrap(), made.bench.ground.dir()).await;
        assert!(before.iter().all(|(kind, texts)| texts.iter().all(|text| !after[kind].contains(text))));

        backup::restore(config, &file, true, at(3)).await.unwrap();
        assert_eq!(made.key(), "07".repeat(32));
        // The restore ended the run; what it was to do is still read.
        let store = open(config).await.unwrap();
        store.runs_in_progress().await.unwrap();
        store.person("admin").await.unwrap();
        store.close().await;
        rotate(config, at(4)).await.unwrap();
        assert_ne!(made.key(), "07".repeat(32));
        open(config).await.unwrap().close().await;
    }

    async fn interrupted_after_any_step_it_is_finished_by_the_same_command(on: On) {
        let made = Made::on(on).await;
        let (config, pki) = (&made.config, made.config.pki());
        // A file that was written and not given its name.
        fs::write(pki.join("seal.key.new"), "08").unwrap();
        rotate(config, at(2)).await.unwrap();
        made.check().await;
        assert!(!pki.join("seal.key.new").exists());
        // The new key is there, and nothing is sealed with it.
        seal_key::begin(&pki).unwrap();
        let newest = made.key().lines().next().unwrap().to_owned();
        let store = open(config).await.unwrap();
        made.secrets.check(&store).await;
        store.close().await;
        let said = rotate(config, at(3)).await.unwrap();
        assert!(said.contains("interrupted is finished: 6 secrets"), "{said}");
        assert_eq!(made.key(), newest);
        made.check().await;
        // Everything is sealed with it, and the old one is there still.
        seal_key::begin(&pki).unwrap();
        let store = open(config).await.unwrap();
        store.reseal(&seal_key::unfinished(&pki).unwrap().unwrap()).await.unwrap();
        made.secrets.check(&store).await;
        store.close().await;
        let said = rotate(config, at(4)).await.unwrap();
        assert!(said.contains("interrupted is finished: 0 secrets"), "{said}");
        made.check().await;
    }

    async fn a_start_finishes_what_was_interrupted_and_while_it_runs_nothing_is_replaced(on: On) {
        let made = Made::on(on).await;
        let (config, shutdown) = (&made.config, CancellationToken::new());
        seal_key::begin(&config.pki()).unwrap();
        let running = start(config.clone(), Seams::default(), shutdown.clone()).await.unwrap();
        let key = made.key();
        let refused = format!("{:#}", rotate(config, at(2)).await.unwrap_err());
        assert!(refused.contains("stop the controller") && refused.contains("another controller runs"), "{refused}");
        assert_eq!(made.key(), key);
        shutdown.cancel();
        running.ended().await.unwrap();
        assert_eq!(key.split_whitespace().count(), 1);
        open(config).await.unwrap().close().await;
        Store::open(config.place().unwrap(), Seal::new(&[7; 32])).await.unwrap_err();
    }

    async fn a_key_that_is_not_the_databases_is_refused_and_nothing_is_changed(on: On) {
        let made = Made::on(on).await;
        let key = made.config.pki().join(seal_key::FILE);
        fs::write(&key, "09".repeat(32)).unwrap();
        let refused = format!("{:#}", rotate(&made.config, at(2)).await.unwrap_err());
        assert!(refused.contains("sealed with another key"), "{refused}");
        assert_eq!(made.key(), "09".repeat(32));
        fs::remove_file(&key).unwrap();
        let refused = rotate(&made.config, at(2)).await.unwrap_err().to_string();
        assert!(refused.contains("has no key to replace"), "{refused}");
        assert!(!key.exists());
        fs::write(&key, "07".repeat(32)).unwrap();
        made.secrets.check(&open(&made.config).await.unwrap()).await;
    }

    on_both! {
        a_key_is_replaced_and_a_backup_made_before_is_restored_with_its_own,
        interrupted_after_any_step_it_is_finished_by_the_same_command,
        a_start_finishes_what_was_interrupted_and_while_it_runs_nothing_is_replaced,
        a_key_that_is_not_the_databases_is_refused_and_nothing_is_changed,
    }
}
