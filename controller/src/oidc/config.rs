//! `[oidc]`: who vouches for people, and which role a group of theirs has.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rackhand_controller_core::access::{NoRole, Role};
use reqwest::Url;
use serde::Deserialize;

/// The systemd credential that the client's secret is read from when no file is named.
const CREDENTIAL: &str = "oidc-secret";

/// `[oidc]` as written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The provider, as it calls itself: `https://login.example.net`.
    pub issuer: String,
    /// What this controller is called there.
    pub client_id: String,
    /// The file with the secret that the controller proves itself by there, readable by its user alone;
    /// default is the systemd credential `oidc-secret`, and with neither it is a public client.
    pub secret_file: Option<PathBuf>,
    /// What is asked for beside `openid`; default `email` and `profile`.
    pub scopes: Option<Vec<String>>,
    /// The claim that has a person's name; default is `email`, or `preferred_username` where there is none.
    pub name_claim: Option<String>,
    /// The claim that has the names of a person's groups; default `groups`.
    pub groups_claim: Option<String>,
    /// Which role a group has.
    #[serde(default)]
    pub roles: Vec<RoleFile>,
}

/// `[[oidc.roles]]` as written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleFile {
    /// The group, as the provider names it.
    pub group: String,
    /// The role of everybody in it.
    pub role: String,
    /// Where: `everything`, or `organisation`, `project`, `site` or `rack` and a name.
    pub scope: String,
}

/// The configuration as used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The provider, as it calls itself.
    pub issuer: String,
    /// What this controller is called there.
    pub client_id: String,
    /// The file with its secret.
    pub secret_file: Option<PathBuf>,
    /// What is asked for beside `openid`.
    pub scopes: Vec<String>,
    /// The claim that has a person's name, when it is not the usual one.
    pub name_claim: Option<String>,
    /// The claim that has the names of a person's groups.
    pub groups_claim: String,
    /// Which role a group has.
    pub roles: Vec<GroupRole>,
}

/// A role that everybody in a group has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRole {
    /// The group, as the provider names it.
    pub group: String,
    /// The role.
    pub role: Role,
    /// Where, by name: it need not be there yet.
    pub scope: ScopeName,
}

/// A scope by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScopeName {
    /// The whole installation.
    Everything,
    /// An organisation.
    Organisation(String),
    /// A project, as ORGANISATION:NAME, or its name where no other has it.
    Project(String),
    /// A site.
    Site(String),
    /// A rack.
    Rack(String),
}

impl TryFrom<File> for Config {
    type Error = String;

    fn try_from(file: File) -> Result<Self, String> {
        let issuer = Url::parse(&file.issuer).map_err(|error| format!("oidc.issuer: `{}`: {error}", file.issuer))?;
        if issuer.scheme() != "https" && !is_on_this_host(&issuer) {
            return Err(format!("oidc.issuer: `{}` does not begin with https://", file.issuer));
        }
        if file.client_id.is_empty() {
            return Err("oidc.client_id is empty: the provider gives it when the controller is registered there".into());
        }
        let roles = file.roles.into_iter().map(GroupRole::try_from).collect::<Result<_, _>>()?;
        Ok(Self {
            issuer: file.issuer,
            client_id: file.client_id,
            secret_file: file.secret_file,
            scopes: file.scopes.unwrap_or_else(|| vec!["email".into(), "profile".into()]),
            name_claim: file.name_claim,
            groups_claim: file.groups_claim.unwrap_or_else(|| "groups".into()),
            roles,
        })
    }
}

impl TryFrom<RoleFile> for GroupRole {
    type Error = String;

    fn try_from(RoleFile { group, role, scope }: RoleFile) -> Result<Self, String> {
        let role = role.parse().map_err(|error: NoRole| format!("oidc.roles: {error}"))?;
        let scope = match scope.split_once(' ').map(|(kind, name)| (kind, name.trim().to_owned())) {
            None if scope == "everything" => ScopeName::Everything,
            Some(("organisation", name)) => ScopeName::Organisation(name),
            Some(("project", name)) => ScopeName::Project(name),
            Some(("site", name)) => ScopeName::Site(name),
            Some(("rack", name)) => ScopeName::Rack(name),
            _ => {
                return Err(format!(
                    "oidc.roles: scope `{scope}` is neither `everything` nor `organisation`, `project`, `site` or \
                     `rack` and a name, as in `project acme:shop`"
                ));
            }
        };
        Ok(Self { group, role, scope })
    }
}

impl std::fmt::Display for ScopeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Everything => f.write_str("everything"),
            Self::Organisation(name) => write!(f, "organisation {name}"),
            Self::Project(name) => write!(f, "project {name}"),
            Self::Site(name) => write!(f, "site {name}"),
            Self::Rack(name) => write!(f, "rack {name}"),
        }
    }
}

impl Config {
    /// The client's secret, as it stands in its file now.
    pub fn secret(&self) -> Result<Option<String>> {
        let credential = || std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| Path::new(&dir).join(CREDENTIAL));
        let path = match &self.secret_file {
            Some(path) => path.clone(),
            None => match credential().filter(|path| path.exists()) {
                Some(path) => path,
                None => return Ok(None),
            },
        };
        let shown = path.display();
        let mode = fs::metadata(&path).with_context(|| format!("cannot read {shown} (`oidc.secret_file`)"))?;
        ensure!(
            mode.permissions().mode() & 0o007 == 0,
            "{shown} (`oidc.secret_file`) can be read by everybody: chmod 0600 it, and have the provider make a new secret"
        );
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {shown} (`oidc.secret_file`)"))?;
        ensure!(!text.trim().is_empty(), "{shown} (`oidc.secret_file`) is empty");
        Ok(Some(text.trim().to_owned()))
    }

    /// Whether the provider is reached without leaving this host.
    pub(super) fn is_local(&self) -> bool {
        Url::parse(&self.issuer).is_ok_and(|issuer| is_on_this_host(&issuer))
    }
}

fn is_on_this_host(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expected: Expect) {
        let read = toml::from_str::<File>(text).map_err(|error| error.message().to_owned()).and_then(Config::try_from);
        expected.assert_eq(&read.map_or_else(
            |error| error,
            |config| {
                let roles = config.roles.iter().map(|one| format!(", {} {} {}", one.group, one.role, one.scope));
                format!("{} {:?} {}{}", config.issuer, config.scopes, config.groups_claim, roles.collect::<String>())
            },
        ));
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        let provider = "issuer = \"https://login.example.net\"\nclient_id = \"rackhand\"\n";
        check(provider, expect![[r#"https://login.example.net ["email", "profile"] groups"#]]);
        let role = |role: &str, scope: &str| {
            format!("{provider}[[roles]]\ngroup = \"noc\"\nrole = \"{role}\"\nscope = \"{scope}\"")
        };
        check(
            &role("operator", "project acme:shop"),
            expect![[r#"https://login.example.net ["email", "profile"] groups, noc operator project acme:shop"#]],
        );
        check(
            &role("king", "everything"),
            expect![
                "oidc.roles: `king` is no role; there are owner, admin, operator, technician, collaborator, billing, viewer"
            ],
        );
        check(
            &role("viewer", "rack"),
            expect![
                "oidc.roles: scope `rack` is neither `everything` nor `organisation`, `project`, `site` or `rack` and a name, as in `project acme:shop`"
            ],
        );
        check(
            "issuer = \"http://login.example.net\"\nclient_id = \"x\"",
            expect!["oidc.issuer: `http://login.example.net` does not begin with https://"],
        );
        check(
            "issuer = \"https://login.example.net\"\nclient_id = \"\"",
            expect!["oidc.client_id is empty: the provider gives it when the controller is registered there"],
        );
        check(
            &format!("{provider}secret = \"inline\""),
            expect![
                "unknown field `secret`, expected one of `issuer`, `client_id`, `secret_file`, `scopes`, `name_claim`, `groups_claim`, `roles`"
            ],
        );
        check(
            "issuer = \"http://127.0.0.1:9400\"\nclient_id = \"x\"",
            expect![[r#"http://127.0.0.1:9400 ["email", "profile"] groups"#]],
        );
    }

    #[test]
    fn a_secret_that_everybody_can_read_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "hush\n").unwrap();
        let text = format!("issuer = \"https://login.example.net\"\nclient_id = \"x\"\nsecret_file = {path:?}");
        let config = Config::try_from(toml::from_str::<File>(&text).unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        assert!(config.secret().unwrap_err().to_string().contains("can be read by everybody"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(config.secret().unwrap().as_deref(), Some("hush"));
    }
}
