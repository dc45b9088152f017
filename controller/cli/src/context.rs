//! Which controller to talk to: flags and environment first, then what `login` saved.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// A controller and how to be believed by it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// `https://…`, without a path.
    pub(crate) controller: String,
    /// `rh_…`.
    pub(crate) token: String,
    /// Certificates to believe, PEM; without them those of this system.
    pub(crate) ca: Option<String>,
}

/// What flags and environment say.
#[derive(Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) controller: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) ca: Option<PathBuf>,
}

impl Context {
    /// The saved context with what is overridden.
    pub(crate) fn resolve(overrides: Overrides) -> anyhow::Result<Self> {
        let ca = overrides.ca.map(|path| read(&path)).transpose()?;
        let saved = Self::saved()?;
        match (overrides.controller, overrides.token, saved) {
            // A token is never sent to a controller it was not saved for.
            (Some(controller), Some(token), _) => Ok(Self { controller: address(&controller)?, token, ca }),
            (Some(controller), None, Some(saved)) if address(&controller)? == saved.controller => {
                Ok(Self { ca: ca.or(saved.ca), ..saved })
            }
            (Some(_), None, _) => {
                bail!("RACKHAND_CONTROLLER (or --controller) needs RACKHAND_TOKEN with it, or `rackhand login`")
            }
            (None, token, Some(saved)) => {
                Ok(Self { token: token.unwrap_or(saved.token), ca: ca.or(saved.ca), ..saved })
            }
            (None, _, None) => bail!(
                "not logged in to any controller\n\n  rackhand login --controller https://HOST:8443 --ca ca.pem --token rh_…\n\n\
                 `rackhand-controller init` printed the token; ca.pem is in the controller's data directory"
            ),
        }
    }

    /// A new context from what `login` was given.
    pub(crate) fn given(controller: &str, token: String, ca: Option<PathBuf>) -> anyhow::Result<Self> {
        Ok(Self { controller: address(controller)?, token, ca: ca.map(|path| read(&path)).transpose()? })
    }

    /// Keeps the context for later, readable by its owner alone.
    pub(crate) fn save(&self) -> anyhow::Result<PathBuf> {
        let path = path()?;
        let directory = path.parent().expect("the path has a file name");
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let fresh = path.with_extension("toml.new");
        let write = || {
            let _ = fs::remove_file(&fresh);
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            file.write_all(toml::to_string(self).expect("contexts always serialize").as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn saved() -> anyhow::Result<Option<Self>> {
        let path = path()?;
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(toml::from_str(&text).with_context(|| format!("{} cannot be read", path.display()))?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

fn path() -> anyhow::Result<PathBuf> {
    let base = match std::env::var_os("XDG_CONFIG_HOME").filter(|value| !value.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("neither HOME nor XDG_CONFIG_HOME is set")?).join(".config")
        }
    };
    Ok(base.join("rackhand/config.toml"))
}

fn read(path: &PathBuf) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn address(text: &str) -> anyhow::Result<String> {
    let text = text.trim_end_matches('/');
    if !text.starts_with("https://") {
        bail!("a controller's address begins with https://, as https://rackhand.example:8443; got `{text}`");
    }
    Ok(text.into())
}
