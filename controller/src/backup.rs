//! Backup and restore of a controller's data.
//!
//! Invariants:
//! - A backup is complete or not there: it is renamed into place. It is readable by its owner
//!   alone: it holds the authority's keys.
//! - A restored database is never served before it is marked as restored
//!   ([`restored`](crate::restored)): its racks wait for their agents, and no run goes on.
//! - A restore that was interrupted leaves a data directory that is refused by `serve` and
//!   taken by another restore: keys go first and come last.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use rackhand_fail_points::fail_point;

use crate::{
    controller::{self, Config},
    restored::{self, Frozen},
    seal_key,
    store::{Contents, Place, Store, fill, is_occupied, is_sealed_with, read_backup, write_backup, write_copy},
};

/// Writes a backup, also while a controller runs on this data; what is in it beside the database.
pub async fn backup(config: &Config, file: &Path, now: Timestamp) -> Result<Contents> {
    let place = config.place()?;
    let is_there = match &place {
        Place::File(path) => path.exists(),
        Place::Server(_) => config.pki().exists(),
    };
    ensure!(is_there, "{} is not a controller's data directory", config.data.display());
    let contents = Contents {
        made: now,
        version: env!("CARGO_PKG_VERSION").into(),
        pki: files(&config.pki()).context("cannot read the keys")?,
        objects: objects(&config.images.objects).context("cannot list the images' objects")?,
    };
    let mut unfinished = file.as_os_str().to_owned();
    unfinished.push(".part");
    let unfinished = PathBuf::from(unfinished);
    let cannot = || format!("cannot write {}", unfinished.display());
    // SQLite takes a file that is there and empty: made by us, it has our mode from the start.
    remove(&unfinished).with_context(cannot)?;
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished).with_context(cannot)?;
    fail_point!(once "backup.write", write_backup(&place, &unfinished, &contents).await).with_context(cannot)?;
    // Keys and database were read one after the other, and the key may have been replaced in between.
    if let Some(key) = contents.pki.get(seal_key::FILE) {
        let seal = seal_key::of_file(key).context("the key of the secrets in the database is damaged")?;
        ensure!(
            is_sealed_with(&unfinished, &seal).await.with_context(cannot)?,
            "`seal.key` does not open the secrets in this backup: it is not this database's, or was replaced just now; \
             in that case make the backup again"
        );
    }
    fs::File::open(&unfinished).and_then(|file| file.sync_all()).with_context(cannot)?;
    fail_point!(once "backup.name", fs::rename(&unfinished, file))
        .with_context(|| format!("cannot write {}", file.display()))?;
    sync(file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    Ok(contents)
}

/// What a restore did, for people.
#[derive(Debug)]
pub struct Restored {
    made: Timestamp,
    frozen: Frozen,
    missing: usize,
    objects: usize,
    replaced: Option<PathBuf>,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Restored the backup of {}.", self.made.strftime("%Y-%m-%d %H:%M:%S UTC"))?;
        if let Some(replaced) = &self.replaced {
            writeln!(f, "What was there is in {}.", replaced.display())?;
        }
        writeln!(f, "{} runs that were in progress are ended as failed.", self.frozen.runs)?;
        if self.missing > 0 {
            writeln!(
                f,
                "{} of {} objects of images are not here: copy them, or import the images again.",
                self.missing, self.objects
            )?;
        }
        writeln!(
            f,
            "{} racks wait for their agents to connect and report; until then nothing is allocated, erased or switched \
             there. Then look at the machines with an alert: `rackhand machine list`.",
            self.frozen.racks
        )
    }
}

/// Puts a backup in place of the data; data that is there only with `force`, and then it is kept.
pub async fn restore(config: &Config, file: &Path, force: bool, now: Timestamp) -> Result<Restored> {
    // Opened with the rights we came with; written with those of the data's owner.
    let mut backup = fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.data)
        .with_context(|| format!("cannot make {} (`data` in the configuration)", config.data.display()))?;
    controller::become_owner(&config.data)?;
    let _alone = controller::Alone::on(config).await?;
    let place = config.place()?;
    let is_full = match &place {
        Place::File(path) => path.exists(),
        Place::Server(_) => is_occupied(&place).await.with_context(|| format!("cannot use the database {place}"))?,
    };
    let occupied = is_full || config.pki().exists();
    ensure!(
        force || !occupied,
        "{} holds a controller's data already; nothing was changed. With --force it is replaced, and kept beside",
        if is_full { place.to_string() } else { config.data.display().to_string() }
    );

    let work = config.data.join("restore.new");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot clear {}", work.display()))?;
    }
    fs::DirBuilder::new().mode(0o700).create(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let (database, pki) = (work.join("controller.db"), work.join("pki"));
    {
        let mut copy = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&database)?;
        io::copy(&mut backup, &mut copy).with_context(|| format!("cannot copy {}", file.display()))?;
        copy.sync_all()?;
    }
    let contents =
        read_backup(&database).await.with_context(|| format!("{} is not a usable backup", file.display()))?;
    fs::DirBuilder::new().mode(0o700).create(&pki)?;
    for (name, bytes) in &contents.pki {
        if name.contains('/') || name.starts_with('.') {
            bail!("{} names a file that cannot be one of the keys: {name}", file.display());
        }
        let mut key = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(pki.join(name))?;
        io::Write::write_all(&mut key, bytes)?;
        key.sync_all()?;
    }
    sync(&pki)?;
    let seal = seal_key::seal(&pki).context("cannot use the backup's key of the secrets in the database")?;
    let store = Store::open(&database, seal).await.context("the backup's database cannot be brought up to date")?;
    let frozen = restored::freeze(&store, now).await.context("the restored database cannot be marked")?;
    // The last one to close takes the write-ahead log into the file.
    store.close().await;

    let replaced = occupied.then(|| config.data.join(format!("replaced-{}", now.strftime("%Y%m%dT%H%M%SZ"))));
    if let Some(replaced) = &replaced {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(replaced)
            .with_context(|| format!("cannot make {}", replaced.display()))?;
        for old in ["pki", "controller.db-wal", "controller.db-shm", "controller.db"] {
            match fs::rename(config.data.join(old), replaced.join(old)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot move {old} to {}", replaced.display()));
                }
                _ => {}
            }
        }
    }
    match &place {
        Place::File(path) => fs::rename(&database, path)?,
        Place::Server(_) => {
            if let Some(replaced) = replaced.as_ref().filter(|_| is_full) {
                let kept = replaced.join("server.db");
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&kept)?;
                write_copy(&place, &kept).await.with_context(|| format!("cannot copy what is in {place}"))?;
            }
            fill(&place, &database).await.with_context(|| format!("cannot fill {place}"))?;
        }
    }
    sync(&config.data)?;
    fs::rename(&pki, config.pki())?;
    sync(&config.data)?;
    fs::remove_dir_all(&work)?;

    let here = objects(&config.images.objects).context("cannot list the images' objects")?;
    let missing = contents.objects.iter().filter(|(path, length)| here.get(*path) != Some(*length)).count();
    Ok(Restored { made: contents.made, frozen, missing, objects: contents.objects.len(), replaced })
}

/// The files of a directory, by name.
fn files(directory: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
        }
    }
    Ok(files)
}

/// The files below a directory, by their path in it, with their lengths; none when it is absent.
fn objects(directory: &Path) -> io::Result<BTreeMap<String, u64>> {
    let mut objects = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        let entries = match fs::read_dir(&next) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            read => read?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if let Ok(path) = entry.path().strip_prefix(directory) {
                objects.insert(path.to_string_lossy().into_owned(), entry.metadata()?.len());
            }
        }
    }
    Ok(objects)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<()> {
    fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot sync {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rackhand_common::pki::install_crypto;

    use super::*;
    use crate::{
        controller::{DatabaseFile, File, Seams},
        store::tests::{Ground, On, at},
    };

    async fn made(dir: &Path) -> Config {
        install_crypto();
        let file = File { data: Some(dir.to_owned()), names: vec!["127.0.0.1".into()], ..File::default() };
        let config = Config::try_from(file).unwrap();
        controller::init(&config, Seams::default(), |_, _| Ok(())).await.unwrap();
        config
    }

    #[tokio::test]
    async fn a_backup_is_for_its_owner_alone_and_restores_the_same_authority() {
        let dir = tempfile::tempdir().unwrap();
        let config = made(&dir.path().join("data")).await;
        let keys = files(&config.pki()).unwrap();
        fs::create_dir_all(config.images.objects.join("chunks/ab")).unwrap();
        fs::write(config.images.objects.join("chunks/ab/abcd"), b"chunk").unwrap();
        let file = dir.path().join("backup");
        let contents = backup(&config, &file, at(1)).await.unwrap();
        assert_eq!(contents.objects, [("chunks/ab/abcd".to_owned(), 5)].into());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something is left beside");

        let refused = restore(&config, &file, false, at(2)).await.unwrap_err();
        assert!(refused.to_string().contains("nothing was changed"), "{refused:#}");

        fs::write(config.pki().join("image.key"), b"another").unwrap();
        let done = restore(&config, &file, true, at(2)).await.unwrap();
        assert_eq!(files(&config.pki()).unwrap(), keys);
        assert_eq!(fs::read(done.replaced.unwrap().join("pki/image.key")).unwrap(), b"another");
        assert_eq!(done.missing, 0);

        // On a machine that never had one.
        let elsewhere =
            File { data: Some(dir.path().join("elsewhere")), names: vec!["127.0.0.1".into()], ..File::default() };
        let elsewhere = Config::try_from(elsewhere).unwrap();
        let done = restore(&elsewhere, &file, false, at(3)).await.unwrap();
        assert_eq!((done.missing, done.objects), (1, 1));
        assert_eq!(files(&elsewhere.pki()).unwrap(), keys);
        assert_eq!(fs::metadata(elsewhere.database()).unwrap().permissions().mode() & 0o777, 0o600);
        let store = Store::open(&elsewhere.database(), seal_key::seal(&elsewhere.pki()).unwrap()).await.unwrap();
        assert_eq!(store.racks(&rackhand_controller_core::access::Sight::ALL, None, 10).await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_not_a_whole_backup_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let config = made(&dir.path().join("data")).await;
        let file = dir.path().join("backup");
        backup(&config, &file, at(1)).await.unwrap();
        let whole = fs::read(&file).unwrap();
        let before = (files(&config.pki()).unwrap(), fs::read(config.database()).unwrap());

        let mut damaged = whole.clone();
        // Beyond the header and the schema: pages of tables.
        let middle = damaged.len() / 2;
        damaged[middle..middle + 4096].fill(0xff);
        for bytes in [b"".as_slice(), b"no database at all", &whole[..whole.len() / 2], &damaged] {
            fs::write(&file, bytes).unwrap();
            restore(&config, &file, true, at(2)).await.unwrap_err();
            assert!(before == (files(&config.pki()).unwrap(), fs::read(config.database()).unwrap()));
        }
        // A database, but nobody's backup.
        fs::copy(config.database(), &file).unwrap();
        let error = restore(&config, &file, true, at(2)).await.unwrap_err();
        assert!(format!("{error:#}").contains("not a usable backup"), "{error:#}");
    }

    #[tokio::test]
    async fn a_backup_whose_key_does_not_open_it_is_not_made_and_the_one_before_stays() {
        let dir = tempfile::tempdir().unwrap();
        let config = made(&dir.path().join("data")).await;
        let file = dir.path().join("backup");
        backup(&config, &file, at(1)).await.unwrap();
        let whole = fs::read(&file).unwrap();
        fs::write(config.pki().join(seal_key::FILE), "08".repeat(32)).unwrap();
        let refused = backup(&config, &file, at(2)).await.unwrap_err();
        assert!(refused.to_string().contains("does not open the secrets"), "{refused:#}");
        assert!(fs::read(&file).unwrap() == whole);
    }

    #[tokio::test]
    async fn a_backup_of_either_database_is_restored_into_the_other_and_what_was_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let config = made(&dir.path().join("data")).await;
        let keys = files(&config.pki()).unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        backup(&config, &first, at(1)).await.unwrap();

        let ground = Ground::new(On::Postgres);
        let server = DatabaseFile { url: ground.url(), password_file: None };
        let moved = Config { data: dir.path().join("moved"), server: Some(server), ..config.clone() };
        restore(&moved, &first, false, at(2)).await.unwrap();
        assert_eq!(files(&moved.pki()).unwrap(), keys);
        assert!(!moved.database().exists());
        let again = controller::init(&moved, Seams::default(), |_, _| panic!("a second token")).await.unwrap_err();
        assert!(again.to_string().contains("nothing was changed"), "{again:#}");
        let refused = restore(&moved, &first, false, at(3)).await.unwrap_err();
        assert!(refused.to_string().contains("nothing was changed"), "{refused:#}");
        let told = restore(&moved, &first, true, at(4)).await.unwrap();
        assert!(told.replaced.unwrap().join("server.db").exists());

        backup(&moved, &second, at(5)).await.unwrap();
        let back = Config { data: dir.path().join("back"), server: None, ..config };
        restore(&back, &second, false, at(6)).await.unwrap();
        assert_eq!(files(&back.pki()).unwrap(), keys);
        let found = crate::store::examine(&back.place().unwrap()).await.unwrap();
        assert_eq!(found, crate::store::examine(&moved.place().unwrap()).await.unwrap());
    }
}
