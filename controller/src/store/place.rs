//! Where a controller's database is.

use std::{fmt, path::PathBuf, str::FromStr as _};

use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Where a controller's database is.
#[derive(Clone)]
pub enum Place {
    /// In a file of SQLite.
    File(PathBuf),
    /// On a PostgreSQL server.
    Server(Box<PgConnectOptions>),
}

/// Why a URL does not say where a database is.
#[derive(Debug, thiserror::Error)]
pub enum NoPlace {
    /// It names something else.
    #[error("it does not begin with postgresql://")]
    Scheme,
    /// Configurations are read by more people than know the password.
    #[error("it has the password in it: write that into a file of its own, and its path into `password_file`")]
    Password,
    /// It cannot be read.
    #[error("it cannot be understood")]
    Unusable(#[source] sqlx::Error),
    /// It names no database.
    #[error("it names no database, as in postgresql://rackhand@db.example.net/rackhand")]
    Nameless,
}

impl Place {
    /// The database that a URL names, on a server that proves to be the one it names, unless it is
    /// on this host, or `sslmode` says otherwise.
    pub fn of_url(url: &str, password: Option<&str>) -> Result<Self, NoPlace> {
        let rest = ["postgresql://", "postgres://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        let rest = rest.ok_or(NoPlace::Scheme)?;
        let (authority, query) = (rest.split(['/', '?']).next().unwrap_or_default(), rest.split_once('?'));
        let settings = || query.into_iter().flat_map(|(_, query)| query.split('&'));
        let says = |name: &str| settings().any(|setting| setting.split('=').next() == Some(name));
        if says("password") || authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
            return Err(NoPlace::Password);
        }
        let mut options = PgConnectOptions::from_str(url).map_err(NoPlace::Unusable)?;
        if options.get_database().is_none_or(str::is_empty) {
            return Err(NoPlace::Nameless);
        }
        let is_here = options.get_socket().is_some() || options.get_host().starts_with('/');
        if !is_here && !says("sslmode") {
            options = options.ssl_mode(PgSslMode::VerifyFull);
        }
        if let Some(password) = password {
            options = options.password(password);
        }
        Ok(Self::Server(Box::new(options)))
    }

    /// The file, when it is one.
    pub fn file(&self) -> Option<&std::path::Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Server(_) => None,
        }
    }
}

impl<P: Into<PathBuf>> From<P> for Place {
    fn from(path: P) -> Self {
        Self::File(path.into())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Server(options) => {
                let database = options.get_database().unwrap_or_default();
                match options.get_socket() {
                    Some(socket) => write!(f, "{database} at {}", socket.display()),
                    None => write!(f, "{database} on {}:{}", options.get_host(), options.get_port()),
                }
            }
        }
    }
}

/// Without the password.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_url_names_a_server_that_has_to_prove_itself_and_never_a_password() {
        let told: String = [
            "postgresql://rackhand@db.example.net/rackhand",
            "postgresql://rackhand@db.example.net:5433/rackhand?sslmode=disable",
            "postgresql:///rackhand?host=/run/postgresql&user=rackhand",
            "postgresql://rackhand:secret@db.example.net/rackhand",
            "postgresql://rackhand@db.example.net/rackhand?password=secret",
            "postgresql://rackhand@db.example.net",
            "sqlite:///var/lib/rackhand",
        ]
        .iter()
        .map(|url| match Place::of_url(url, None) {
            Ok(place @ Place::Server(_)) => {
                let Place::Server(options) = &place else { unreachable!("it matched") };
                format!("{place}: {:?}\n", options.get_ssl_mode())
            }
            Ok(place) => format!("{place}\n"),
            Err(error) => format!("{error}\n"),
        })
        .collect();
        expect![[r#"
            rackhand on db.example.net:5432: VerifyFull
            rackhand on db.example.net:5433: Disable
            rackhand at /run/postgresql: Prefer
            it has the password in it: write that into a file of its own, and its path into `password_file`
            it has the password in it: write that into a file of its own, and its path into `password_file`
            it names no database, as in postgresql://rackhand@db.example.net/rackhand
            it does not begin with postgresql://
        "#]]
        .assert_eq(&told);
    }
}
