//! Secrets as they lie in the database, with one key for all of it.
//!
//! Invariants:
//! - The probe tells whether a key is this database's before anything else is read.
//! - Secrets change from one key to another in one transaction, all of them and the probe.

use rackhand_common::{
    bmc::Access,
    id::{MachineId, PersonId},
    intent::Order,
    seal::{NotOpened, Seal, Sealed},
};

use super::{
    ExpectedBmc, KeyedRequest, Parameters, Store, StoreError, Tx,
    database::{Database, query, query_scalar},
    from_json, id, json, people,
};

/// What is sealed to know the key again, and for what.
pub(super) const PROBE: &str = "probe";

/// So many answers are read at a time.
const ANSWERS: u32 = 500;

impl Store {
    /// Checks the key against the one this database is sealed with; seals what is in clear when
    /// there has been none.
    pub(super) async fn seal_rows(&self) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        if let Some(probe) = tx.probe().await? {
            return self.seal.open(PROBE, &probe).map(drop).map_err(|_| StoreError::OtherKey);
        }
        for row in query("SELECT id, parameters FROM runs").fetch_all(&mut tx.inner).await? {
            let parameters: Parameters = from_json("run parameters", row.try_get("parameters")?)?;
            let run = id(row.try_get("id")?)?;
            tx.put_parameters(row.try_get("id")?, &parameters.sealed(&self.seal, run)).await?;
        }
        for row in query("SELECT id, orders FROM machines WHERE orders IS NOT NULL").fetch_all(&mut tx.inner).await? {
            let order: Order = from_json("order", row.try_get("orders")?)?;
            tx.put_order(row.try_get("id")?, &order.sealed(&self.seal, order.run)).await?;
        }
        query("INSERT INTO seal (id, probe) VALUES (1, $1)")
            .bind(self.seal.seal(PROBE, PROBE))
            .execute(&mut tx.inner)
            .await?;
        tx.commit().await?;
        self.drop_log().await
    }

    /// Seals every secret with `newest` that it does not open yet; how many there were. What this
    /// store was opened with opens them all.
    pub async fn reseal(&self, newest: &Seal) -> Result<usize, StoreError> {
        let mut tx = self.begin().await?;
        let mut changed = 0;
        let rows = query("SELECT id, parameters FROM runs WHERE parameters LIKE '%sealed-%'");
        for row in rows.fetch_all(&mut tx.inner).await? {
            let parameters: Parameters = from_json("run parameters", row.try_get("parameters")?)?;
            let (run, text) = (id(row.try_get("id")?)?, row.try_get::<&str, _>("id")?);
            let damaged = |error: NotOpened| StoreError::Damaged("run parameters", error.into());
            if let Some(parameters) = anew(&self.seal, newest, run, &parameters).map_err(damaged)? {
                tx.watch("runs", text).await?;
                tx.put_parameters(text, &parameters).await?;
                changed += 1;
            }
        }
        let rows = query("SELECT id, orders FROM machines WHERE orders LIKE '%sealed-%'");
        for row in rows.fetch_all(&mut tx.inner).await? {
            let order: Order = from_json("order", row.try_get("orders")?)?;
            let damaged = |error: NotOpened| StoreError::Damaged("order", error.into());
            if let Some(order) = anew(&self.seal, newest, order.run, &order).map_err(damaged)? {
                let machine: &str = row.try_get("id")?;
                tx.watch("machines", machine).await?;
                tx.put_order(machine, &order).await?;
                changed += 1;
            }
        }
        for row in query("SELECT id, totp FROM people WHERE totp IS NOT NULL").fetch_all(&mut tx.inner).await? {
            let person: PersonId = id(row.try_get("id")?)?;
            let damaged = |error: NotOpened| StoreError::Damaged("second factor", error.into());
            let sealed = text_anew(&self.seal, newest, &people::place(person), row.try_get("totp")?);
            if let Some(sealed) = sealed.map_err(damaged)? {
                tx.watch("people", person).await?;
                query("UPDATE people SET totp = $2 WHERE id = $1")
                    .bind(person.to_string())
                    .bind(sealed)
                    .execute(&mut tx.inner)
                    .await?;
                changed += 1;
            }
        }
        changed += tx.reseal_bmcs(newest).await?;
        changed += tx.reseal_expected_bmcs(newest).await?;
        changed += tx.reseal_answers(newest).await?;
        if let Some(probe) = tx.probe().await?
            && newest.open(PROBE, &probe).is_err()
        {
            query("UPDATE seal SET probe = $1").bind(newest.seal(PROBE, PROBE)).execute(&mut tx.inner).await?;
        }
        tx.commit().await?;
        self.drop_log().await?;
        Ok(changed)
    }

    /// The log of a file still has rows as they were.
    async fn drop_log(&self) -> Result<(), StoreError> {
        if let Database::Sqlite(pool) = &self.pool {
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(pool).await?;
        }
        Ok(())
    }
}

impl Tx {
    async fn probe(&mut self) -> Result<Option<String>, StoreError> {
        Ok(query_scalar("SELECT probe FROM seal").fetch_optional(&mut self.inner).await?)
    }

    async fn reseal_bmcs(&mut self, newest: &Seal) -> Result<usize, StoreError> {
        let mut changed = 0;
        for row in query("SELECT id, password, next FROM bmcs").fetch_all(&mut self.inner).await? {
            let machine: MachineId = id(row.try_get("id")?)?;
            let damaged = |error: NotOpened| StoreError::Damaged("password of a BMC", error.into());
            let present = text_anew(&self.seal, newest, &Access::place_of(machine), row.try_get("password")?);
            let next = row.try_get::<Option<&str>, _>("next")?;
            let next = next.map(|next| text_anew(&self.seal, newest, &Access::place_of_next(machine), next));
            let (present, next) = (present.map_err(damaged)?, next.transpose().map_err(damaged)?.flatten());
            if present.is_some() || next.is_some() {
                self.watch("bmcs", machine).await?;
                query("UPDATE bmcs SET password = COALESCE($2, password), next = COALESCE($3, next) WHERE id = $1")
                    .bind(machine.to_string())
                    .bind(present)
                    .bind(next)
                    .execute(&mut self.inner)
                    .await?;
                changed += 1;
            }
        }
        Ok(changed)
    }

    async fn reseal_expected_bmcs(&mut self, newest: &Seal) -> Result<usize, StoreError> {
        let mut changed = 0;
        for row in query("SELECT id, password FROM expected_bmcs").fetch_all(&mut self.inner).await? {
            let key: &str = row.try_get("id")?;
            let damaged = |error: NotOpened| StoreError::Damaged("password of a BMC", error.into());
            let sealed = text_anew(&self.seal, newest, &ExpectedBmc::place_of(key), row.try_get("password")?);
            if let Some(sealed) = sealed.map_err(damaged)? {
                self.watch("expected_bmcs", key).await?;
                query("UPDATE expected_bmcs SET password = $2 WHERE id = $1")
                    .bind(key)
                    .bind(sealed)
                    .execute(&mut self.inner)
                    .await?;
                changed += 1;
            }
        }
        Ok(changed)
    }

    async fn put_parameters(&mut self, run: &str, sealed: &Parameters) -> Result<(), StoreError> {
        query("UPDATE runs SET parameters = $2 WHERE id = $1")
            .bind(run)
            .bind(json(sealed))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    async fn put_order(&mut self, machine: &str, sealed: &Order) -> Result<(), StoreError> {
        query("UPDATE machines SET orders = $2 WHERE id = $1")
            .bind(machine)
            .bind(json(sealed))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Seals the kept answers anew, some at a time: there are many, and some are long.
    async fn reseal_answers(&mut self, newest: &Seal) -> Result<usize, StoreError> {
        let (mut token, mut key, mut changed) = (String::new(), String::new(), 0);
        loop {
            let rows = query(
                "SELECT token, key, answer FROM keyed_requests
                 WHERE answer IS NOT NULL AND (token, key) > ($1, $2) ORDER BY token, key LIMIT $3",
            )
            .bind(&token)
            .bind(&key)
            .bind(ANSWERS)
            .fetch_all(&mut self.inner)
            .await?;
            if rows.is_empty() {
                return Ok(changed);
            }
            for row in rows {
                (token, key) = (row.try_get("token")?, row.try_get("key")?);
                let damaged = |error: NotOpened| StoreError::Damaged("answer", error.into());
                let place = KeyedRequest::place_of(&id(&token)?, &key);
                let sealed = text_anew(&self.seal, newest, &place, row.try_get("answer")?);
                if let Some(sealed) = sealed.map_err(damaged)? {
                    query("UPDATE keyed_requests SET answer = $3 WHERE token = $1 AND key = $2")
                        .bind(&token)
                        .bind(&key)
                        .bind(sealed)
                        .execute(&mut self.inner)
                        .await?;
                    changed += 1;
                }
            }
        }
    }
}

/// What is sealed with `newest` in place of `stored`; none when that opens it already.
fn anew<T: Sealed + Clone>(
    seal: &Seal,
    newest: &Seal,
    run: rackhand_common::id::RunId,
    stored: &T,
) -> Result<Option<T>, NotOpened> {
    match stored.clone().opened(newest, run) {
        Ok(_) => Ok(None),
        Err(NotOpened) => Ok(Some(stored.clone().opened(seal, run)?.sealed(newest, run))),
    }
}

/// The same of a text.
fn text_anew(seal: &Seal, newest: &Seal, place: &str, stored: &str) -> Result<Option<String>, NotOpened> {
    match newest.open(place, stored) {
        Ok(_) => Ok(None),
        Err(NotOpened) => Ok(Some(newest.seal(place, &seal.open(place, stored)?))),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::BTreeMap, path::Path};

    use rackhand_common::{
        bmc::Protocol,
        id::RunId,
        intent::{self, DiskRule, Work},
    };
    use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
    use uuid::Uuid;

    use super::*;
    use crate::store::{
        Asked, AuditFilter, Factor, Known, Place,
        tests::{Bench, On, at, on_both},
        write_copy,
    };

    /// One of each kind of secret, in a database.
    pub(crate) struct Secrets {
        run: RunId,
        machine: String,
        order: Order,
        person: PersonId,
        asked: KeyedRequest,
    }

    impl Secrets {
        pub(crate) async fn put(bench: &Bench) -> Self {
            let mut machine = bench.adopted(1).await;
            let run = bench.deploy(&machine).await.unwrap();
            let Parameters::Deploy(deploy) = &run.parameters else { panic!("{run:?}") };
            let deploy =
                intent::Deploy { manifest: deploy.manifest, disk: DiskRule::Smallest, host: deploy.host.clone() };
            let order = Order { run: run.id, attempt: 1, disks: vec!["S1".to_owned()], work: Work::Deploy(deploy) };
            let mut tx = bench.store.begin().await.unwrap();
            machine = tx.machine(&machine.name).await.unwrap();
            machine.order = Some(order.clone());
            tx.update_machine(at(3), &mut machine).await.unwrap();
            let token = tx.insert_first_token(at(3), "admin", &[1; 32]).await.unwrap();
            let mut person = tx.person("admin").await.unwrap();
            person.totp = Some(Factor { secret: b"twenty bytes of chance".to_vec(), is_confirmed: true, step: 5 });
            tx.update_person(&mut person).await.unwrap();
            let access = Access {
                machine: machine.id,
                at: "10.0.0.5".parse().unwrap(),
                protocol: Protocol::Ipmi,
                user: "admin".into(),
                password: "of a BMC".into(),
                fingerprint: None,
                mainboard: None,
            };
            tx.set_bmc(at(3), &machine, &access).await.unwrap();
            tx.begin_rotation(at(3), &machine, "next of a BMC").await.unwrap();
            let expected = ExpectedBmc {
                rack: machine.rack,
                serial: "S9".into(),
                at: "10.0.0.9".parse().unwrap(),
                protocol: Protocol::Ipmi,
                user: "admin".into(),
                password: "expected".into(),
                fingerprint: None,
                rotate: false,
                since: at(3),
            };
            tx.expect_bmc(&expected).await.unwrap();
            tx.commit().await.unwrap();
            let asked = KeyedRequest { token, key: "k".into(), request: [7; 32] };
            let Known::No(_under_way) = bench.store.begin_request(at(4), &asked).await.unwrap() else {
                panic!("known")
            };
            bench.store.end_request(&asked, Some("RH1.code")).await.unwrap();
            Self { run: run.id, machine: machine.name, order, person: person.id, asked }
        }

        /// Fails unless this store reads all of them.
        pub(crate) async fn check(&self, store: &Store) {
            let Parameters::Deploy(deploy) = store.run(self.run).await.unwrap().parameters else { panic!("a deploy") };
            assert_eq!(deploy.host.user_data.as_deref(), Some("password"));
            assert_eq!(store.machine(&self.machine).await.unwrap().order.as_ref(), Some(&self.order));
            let person = store.person(&self.person.to_string()).await.unwrap();
            assert_eq!(person.totp.unwrap().secret, b"twenty bytes of chance");
            let machine = store.machine(&self.machine).await.unwrap().id;
            let rack = store.machine(&self.machine).await.unwrap().rack;
            assert_eq!(store.expected_bmcs(rack, None, 1).await.unwrap()[0].password, "expected");
            let bmc = store.bmc(machine).await.unwrap();
            assert_eq!(
                (bmc.access.password.as_str(), bmc.next.unwrap().password.as_str()),
                ("of a BMC", "next of a BMC")
            );
            let Known::Answered(answer) = store.begin_request(at(5), &self.asked).await.unwrap() else {
                panic!("lost")
            };
            assert_eq!(answer, "RH1.code");
        }
    }

    /// All sealed texts there are anywhere in the database, by table and column.
    pub(crate) async fn sealed(place: &Place, dir: &Path) -> BTreeMap<String, Vec<String>> {
        let copy = dir.join("copy");
        std::fs::write(&copy, b"").unwrap();
        write_copy(place, &copy).await.unwrap();
        let mut file = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&copy)).await.unwrap();
        let columns: Vec<(String, String)> = sqlx::query_as(
            "SELECT t.name, c.name FROM sqlite_master t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'",
        )
        .fetch_all(&mut file)
        .await
        .unwrap();
        let mut found = BTreeMap::new();
        for (table, column) in columns {
            let select = format!("SELECT CAST({column} AS TEXT) FROM {table} WHERE {column} LIKE '%sealed-1:%'");
            let texts: Vec<String> = sqlx::query_scalar(AssertSqlSafe(select)).fetch_all(&mut file).await.unwrap();
            let texts = texts.iter().map(|text| {
                let (_, rest) = text.split_once("sealed-1:").unwrap();
                rest.split(|c: char| !c.is_ascii_hexdigit()).next().unwrap().to_owned()
            });
            let texts: Vec<String> = texts.collect();
            if !texts.is_empty() {
                found.insert(format!("{table}.{column}"), texts);
            }
        }
        found
    }

    async fn every_secret_is_sealed_anew_and_nothing_opens_with_the_old_key_any_more(on: On) {
        let bench = Bench::new(on).await;
        let secrets = Secrets::put(&bench).await;
        let place = bench.ground.place();
        let before = sealed(&place, bench.ground.dir()).await;
        let kinds: Vec<_> = before.keys().map(String::as_str).collect();
        assert_eq!(
            kinds,
            [
                "bmcs.next",
                "bmcs.password",
                "expected_bmcs.password",
                "keyed_requests.answer",
                "machines.orders",
                "people.totp",
                "runs.parameters",
                "seal.probe"
            ]
        );
        let newest = Seal::new(&[8; 32]);

        assert_eq!(bench.store.reseal(&newest).await.unwrap(), 6);
        let after = sealed(&place, bench.ground.dir()).await;
        assert!(after.keys().eq(before.keys()));
        for (kind, texts) in &before {
            assert!(texts.iter().all(|text| !after[kind].contains(text)), "{kind} is as it was");
        }
        bench.store.close().await;
        let old = Store::open(place.clone(), Seal::new(&[7; 32])).await;
        assert!(matches!(old, Err(StoreError::OtherKey)), "{old:?}");
        let store = Store::open(place.clone(), Seal::new(&[8; 32])).await.unwrap();
        secrets.check(&store).await;
        assert_eq!(store.reseal(&newest).await.unwrap(), 0);
        assert_eq!(sealed(&place, bench.ground.dir()).await, after, "what was sealed with the key is sealed again");
    }

    async fn with_both_keys_everything_is_read_and_a_secret_that_does_not_open_changes_nothing(on: On) {
        let bench = Bench::new(on).await;
        let secrets = Secrets::put(&bench).await;
        let place = bench.ground.place();
        let both = Store::open(place.clone(), Seal::new(&[8; 32]).or_older(&[7; 32])).await.unwrap();
        secrets.check(&both).await;
        // A controller that runs between the steps seals with the newer.
        let mut tx = both.begin().await.unwrap();
        let mut person = tx.person("admin").await.unwrap();
        tx.update_person(&mut person).await.unwrap();
        tx.commit().await.unwrap();
        secrets.check(&both).await;

        let before = sealed(&place, bench.ground.dir()).await;
        query("UPDATE keyed_requests SET answer = 'sealed-1:00'").execute(&both.pool).await.unwrap();
        let failed = both.reseal(&Seal::new(&[8; 32])).await;
        assert!(matches!(failed, Err(StoreError::Damaged("answer", _))), "{failed:?}");
        let after = sealed(&place, bench.ground.dir()).await;
        for kind in [
            "bmcs.next",
            "bmcs.password",
            "expected_bmcs.password",
            "machines.orders",
            "people.totp",
            "runs.parameters",
            "seal.probe",
        ] {
            assert_eq!(before[kind], after[kind], "{kind}");
        }
    }

    async fn whoever_seals_anew_is_recorded_with_what_changed(on: On) {
        let bench = Bench::new(on).await;
        Secrets::put(&bench).await;
        let record = rackhand_common::audit::Record {
            id: Uuid::nil(),
            at: at(9),
            by: "the host".to_owned(),
            token: Uuid::nil(),
            from: None,
            through: "rackhand-controller".to_owned(),
            action: "seal rotate".to_owned(),
            request: Uuid::nil(),
            changes: Vec::new(),
        };
        let newest = Seal::new(&[8; 32]);
        Asked { record }.scope(bench.store.reseal(&newest)).await.unwrap();
        bench.store.link_records().await.unwrap();
        let records = bench.store.records(None, &AuditFilter::default(), 10).await.unwrap();
        let [one] = &records[..] else { panic!("{records:?}") };
        let mut kinds: Vec<_> = one.record.changes.iter().map(|change| change.kind.as_str()).collect();
        kinds.sort_unstable();
        assert_eq!(
            (one.record.action.as_str(), &kinds[..]),
            ("seal rotate", &["bmc", "expected_bmc", "machine", "person", "run"][..])
        );
    }

    on_both! {
        every_secret_is_sealed_anew_and_nothing_opens_with_the_old_key_any_more,
        with_both_keys_everything_is_read_and_a_secret_that_does_not_open_changes_nothing,
        whoever_seals_anew_is_recorded_with_what_changed,
    }
}
