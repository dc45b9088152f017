//! A PostgreSQL server of its own, on a unix socket in a temporary directory: for tests, of which
//! one process starts one, and for benches.
//!
//! It runs as a user that is not root, since PostgreSQL refuses that one, and ends with the
//! process that started it however that ends: its keeper, a shell, waits for a pipe to close.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::{User, geteuid};

/// The Debian package that has the server's programs.
pub const PACKAGE: &str = "postgresql-15";

/// Where it has them.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

/// What is copied for each database of a test.
const TEMPLATE: &str = "rackhand_template";

/// Whether what is committed is to outlast a loss of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// As a server is set up by default.
    Default,
    /// Not at all, and fast.
    None,
}

/// A server that runs until this is dropped, or this process ends.
#[derive(Debug)]
pub struct Server {
    keeper: Child,
    directory: PathBuf,
    template: Mutex<bool>,
    databases: AtomicU32,
}

/// A database of one test; dropped from the server with this.
#[derive(Debug)]
pub struct Database {
    server: &'static Server,
    name: String,
}

impl Server {
    /// Starts one. Its text is ordered as English is, which is not how bytes are: what relies on
    /// the server's locale shows.
    pub fn start(durability: Durability) -> Result<Self> {
        ensure!(
            Path::new(PROGRAMS).join("initdb").exists(),
            "there is no {PROGRAMS}/initdb: install the Debian package {PACKAGE}"
        );
        let directory = tempfile::Builder::new().prefix("rackhand-postgres-").tempdir()?.keep();
        let user = match geteuid().is_root() {
            true => Some(User::from_name("nobody")?.context("there is no user `nobody`")?),
            false => None,
        };
        if let Some(user) = &user {
            chown(&directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        let lax = ["-c fsync=off", "-c synchronous_commit=off", "-c full_page_writes=off"].join(" ");
        // The pipe's end is ours alone: it closes when this process ends, in whatever way.
        let script = r#"
            set -eu
            "$1/initdb" --pgdata "$2/data" --username rackhand --auth trust --encoding UTF8 --no-sync \
                --locale C.UTF-8 --locale-provider icu --icu-locale en >"$2/log" 2>&1 || { echo failed; exit 1; }
            "$1/postgres" -D "$2/data" -k "$2" -c listen_addresses= -c max_connections=300 $3 >>"$2/log" 2>&1 </dev/null &
            server=$!
            trap '' INT TERM HUP
            until "$1/pg_isready" --quiet --host "$2"; do
                kill -0 $server 2>/dev/null || { echo failed; exit 1; }
                sleep 0.05
            done
            echo ready
            read -r _ || true
            kill -QUIT $server
            wait $server || true
            rm -rf "$2"
        "#;
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh", PROGRAMS])
            .arg(&directory)
            .arg(if durability == Durability::None { &lax } else { "" })
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        if let Some(user) = &user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let mut keeper = command.spawn().context("cannot start sh")?;
        let mut told = String::new();
        BufReader::new(keeper.stdout.take().context("a pipe")?).read_line(&mut told)?;
        if told != "ready\n" {
            let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
            bail!("PostgreSQL does not start:\n{log}");
        }
        Ok(Self { keeper, directory, template: Mutex::new(false), databases: AtomicU32::new(0) })
    }

    /// The one of this process, without durability.
    pub fn of_this_process() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Self::start(Durability::None).unwrap_or_else(|error| panic!("{error:#}")))
    }

    /// The URL of a database on it.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql:///{database}?host={}&user=rackhand", self.directory.display())
    }

    /// Says something to the server, as its superuser, and gives what it answers, a row a line.
    pub fn say(&self, database: &str, words: &str) -> Result<String> {
        let psql = Command::new(Path::new(PROGRAMS).join("psql"))
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"])
            .args(["--dbname", &self.url(database), "--command", words])
            .stdin(Stdio::null())
            .output()
            .context("cannot run psql")?;
        ensure!(psql.status.success(), "{words}: {}", String::from_utf8_lossy(&psql.stderr));
        Ok(String::from_utf8_lossy(&psql.stdout).into_owned())
    }

    /// A fresh database, a copy of one that `prepare` was given the URL of, once.
    pub fn database(&'static self, prepare: impl FnOnce(&str)) -> Database {
        let mut is_prepared = self.template.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let make = |words: &str| self.say("postgres", words).unwrap_or_else(|error| panic!("{error:#}"));
        if !*is_prepared {
            make(&format!("DROP DATABASE IF EXISTS {TEMPLATE} WITH (FORCE)"));
            make(&format!("CREATE DATABASE {TEMPLATE}"));
            prepare(&self.url(TEMPLATE));
            *is_prepared = true;
        }
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        make(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}"));
        Database { server: self, name }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

impl Database {
    /// Its URL.
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// Says something in it, as the server's superuser.
    pub fn say(&self, words: &str) -> Result<String> {
        self.server.say(&self.name, words)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // What is left is gone with the server.
        let _ = self.server.say("postgres", &format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_orders_as_english_does_and_is_gone_with_its_owner() {
        let server = Server::start(Durability::None).unwrap();
        let order = "SELECT string_agg(word, '' ORDER BY word) FROM (VALUES ('b'), ('A'), ('a')) AS words (word)";
        assert_eq!(server.say("postgres", order).unwrap(), "aAb\n");
        let directory = server.directory.clone();
        assert!(directory.exists());
        drop(server);
        assert!(!directory.exists());
    }
}
