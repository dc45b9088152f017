//! Which controller to talk to: flags and environment first, then what `login` saved; and
//! `rackhand context`.
//!
//! Invariants:
//! - A token is never sent to a controller it was not saved for.
//! - The file is its owner's alone to read, and is replaced whole.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    nearest::did_you_mean,
    output::{Output, confirm, done, print},
    show::{Shown, table},
};

#[derive(Subcommand)]
pub(crate) enum ContextCommand {
    /// List the controllers you are logged in to
    List,
    /// Talk to another one from now on
    #[command(after_help = "  rackhand context use lab
  rackhand --context lab machine list       # only this once
  RACKHAND_CONTEXT=lab rackhand machine list")]
    Use {
        /// Its name
        name: String,
    },
    /// Show one, without its token
    Show {
        /// Its name; otherwise the one in use
        name: Option<String>,
    },
    /// Forget one, and its token
    Delete {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Give one another name
    Rename {
        /// Its name
        name: String,
        /// The new name
        new: String,
    },
}

/// A controller and how to be believed by it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// `https://…`, without a path.
    pub(crate) controller: String,
    /// `rh_…`; empty when logged out.
    pub(crate) token: String,
    /// Certificates to believe, PEM; without them those of this system.
    pub(crate) ca: Option<String>,
}

/// What flags and environment say.
#[derive(Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) context: Option<String>,
    pub(crate) controller: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) ca: Option<PathBuf>,
}

/// All controllers somebody is logged in to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contexts {
    /// The one in use.
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// The file they are kept in.
#[derive(Debug)]
pub(crate) struct Saved {
    path: PathBuf,
}

impl Context {
    /// The saved context with what is overridden.
    pub(crate) fn resolve(overrides: Overrides) -> anyhow::Result<Self> {
        Saved::of_this_user()?.resolve(overrides)
    }

    /// The same, unless its login was ended.
    fn logged_in(self) -> anyhow::Result<Self> {
        ensure!(!self.token.is_empty(), "you are logged out of {}: rackhand login --help", self.controller);
        Ok(self)
    }

    /// The host of its address.
    fn host(&self) -> String {
        let rest = self.controller.trim_start_matches("https://");
        rest.rsplit_once(':').map_or(rest, |(host, _)| host).trim_matches(['[', ']']).to_owned()
    }
}

impl Contexts {
    fn named(&self, name: &str) -> anyhow::Result<&Context> {
        let names = self.contexts.keys().map(String::as_str);
        self.contexts.get(name).with_context(|| {
            format!(
                "there is no context `{name}`{}\nSee which there are: rackhand context list",
                did_you_mean(name, names)
            )
        })
    }

    /// The one that is asked for, or else the one in use.
    fn chosen(&self, name: Option<&str>) -> anyhow::Result<Option<&Context>> {
        name.or(self.current.as_deref()).map(|name| self.named(name)).transpose()
    }
}

impl Saved {
    pub(crate) fn of_this_user() -> anyhow::Result<Self> {
        let base = match std::env::var_os("XDG_CONFIG_HOME").filter(|value| !value.is_empty()) {
            Some(base) => PathBuf::from(base),
            None => {
                let home = std::env::var_os("HOME").context("neither HOME nor XDG_CONFIG_HOME is set")?;
                PathBuf::from(home).join(".config")
            }
        };
        Ok(Self { path: base.join("rackhand/config.toml") })
    }

    /// Keeps a context and makes it the one in use: under this name, that of its controller, or the
    /// controller's host. Gives the name.
    pub(crate) fn keep(&self, name: Option<String>, context: Context) -> anyhow::Result<String> {
        if let Some(name) = &name {
            check_name(name)?;
        }
        self.change(|all| {
            let known = all.contexts.iter().find(|(_, known)| known.controller == context.controller);
            let name = name.or(known.map(|(name, _)| name.clone())).unwrap_or_else(|| context.host());
            all.contexts.insert(name.clone(), context);
            all.current = Some(name.clone());
            Ok(name)
        })
    }

    /// Where to log in: what is given, or else what is known of that controller, or the one in use.
    pub(crate) fn place(
        &self,
        name: Option<&str>,
        controller: Option<String>,
        ca: Option<PathBuf>,
    ) -> anyhow::Result<Context> {
        let all = self.load()?;
        let ca = ca.map(|path| read(&path)).transpose()?;
        let controller = controller.map(|controller| address(&controller)).transpose()?;
        let known = match &controller {
            Some(controller) => all.contexts.values().find(|known| known.controller == *controller),
            None => all.chosen(name)?,
        };
        let controller = controller.or_else(|| Some(known?.controller.clone()));
        let controller = controller.context("say which controller: --controller https://HOST:8443")?;
        Ok(Context { controller, token: String::new(), ca: ca.or_else(|| known?.ca.clone()) })
    }

    /// Forgets the token of a context, and not where it leads.
    pub(crate) fn log_out(&self, name: &str) -> anyhow::Result<()> {
        self.change(|all| {
            all.contexts.entry(name.to_owned()).and_modify(|context| context.token.clear());
            Ok(())
        })
    }

    /// The context that is asked for, or else the one in use, with its name.
    pub(crate) fn in_use(&self, name: Option<&str>) -> anyhow::Result<(String, Context)> {
        let all = self.load()?;
        let name = name.map(str::to_owned).or(all.current.clone());
        let name = name.context("no context is in use: rackhand context list")?;
        let context = all.named(&name)?.clone();
        Ok((name, context))
    }

    /// Where they are kept.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What they are called.
    pub(crate) fn names(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.load()?.contexts.into_keys().collect())
    }

    fn resolve(&self, overrides: Overrides) -> anyhow::Result<Context> {
        let Overrides { context, controller, token, ca } = overrides;
        let ca = ca.map(|path| read(&path)).transpose()?;
        if let (Some(controller), Some(token)) = (&controller, &token) {
            return Ok(Context { controller: address(controller)?, token: token.clone(), ca });
        }
        let saved = self.load()?.chosen(context.as_deref())?.cloned();
        match (controller, token, saved) {
            (Some(controller), _, Some(saved)) if address(&controller)? == saved.controller => {
                Context { ca: ca.or(saved.ca), ..saved }.logged_in()
            }
            (Some(_), ..) => {
                bail!("RACKHAND_CONTROLLER (or --controller) needs RACKHAND_TOKEN with it, or `rackhand login`")
            }
            (None, token, Some(saved)) => {
                Context { token: token.unwrap_or(saved.token), ca: ca.or(saved.ca), ..saved }.logged_in()
            }
            (None, _, None) => bail!(
                "not logged in to any controller\n\n  rackhand login --controller https://HOST:8443 --ca ca.pem --token rh_…\n\n\
                 `rackhand-controller init` printed the token; ca.pem is in the controller's data directory.\n\
                 If you are logged in to several: rackhand context list, rackhand context use NAME"
            ),
        }
    }

    fn load(&self) -> anyhow::Result<Contexts> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Contexts::default()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        };
        self.close_to_others()?;
        let unreadable = || format!("{} cannot be read; log in anew after moving it away", self.path.display());
        // Before there were several, the file was one context.
        let table: toml::Table = toml::from_str(&text).with_context(unreadable)?;
        if table.contains_key("controller") {
            let only: Context = toml::from_str(&text).with_context(unreadable)?;
            let name = only.host();
            return Ok(Contexts { current: Some(name.clone()), contexts: BTreeMap::from([(name, only)]) });
        }
        toml::from_str(&text).with_context(unreadable)
    }

    /// Tokens are in it: what others may read they are kept from.
    fn close_to_others(&self) -> anyhow::Result<()> {
        let mode = fs::metadata(&self.path)?.permissions().mode();
        if mode & 0o077 == 0 {
            return Ok(());
        }
        let path = self.path.display();
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("{path} can be read by others, and it has tokens in it"))?;
        let _ = writeln!(std::io::stderr(), "{path} could be read by others and cannot any more; get new tokens");
        Ok(())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Contexts) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let directory = self.path.parent().expect("the path has a file name");
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        // Two that change it at once do so one after the other.
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("config.lock"))
            .and_then(|file| file.lock().map(|()| file));
        let _lock = lock.with_context(|| format!("cannot lock {}", directory.display()))?;
        let mut all = self.load()?;
        let done = change(&mut all)?;
        self.write(&all).with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(done)
    }

    fn write(&self, all: &Contexts) -> std::io::Result<()> {
        let fresh = self.path.with_extension("toml.new");
        let _ = fs::remove_file(&fresh);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(toml::to_string(all).expect("contexts always serialize").as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)
    }
}

/// Does what `rackhand context` says.
pub(crate) fn run(saved: &Saved, command: ContextCommand, output: Output) -> anyhow::Result<String> {
    match command {
        ContextCommand::List => {
            let all = saved.load()?;
            let listed: Vec<_> = all.contexts.iter().map(|(name, one)| view(&all, name, one)).collect();
            print(output, listed.into(), |listed: Vec<View>| {
                let rows = listed
                    .into_iter()
                    .map(|one| vec![if one.current { "*" } else { "" }.into(), one.name, one.controller]);
                table(&["", "NAME", "CONTROLLER"], rows).or_say(
                    "not logged in to any controller: rackhand login --controller https://HOST:8443 --ca ca.pem",
                )
            })
        }
        ContextCommand::Show { name } => {
            let all = saved.load()?;
            let name = name.or(all.current.clone()).context("no context is in use: rackhand context list")?;
            print(output, view(&all, &name, all.named(&name)?), |one: View| -> Shown {
                let ca = if one.own_ca { "saved with it" } else { "those of this system" };
                let current = if one.current { "  (in use)" } else { "" };
                format!("{}{current}\n  controller    {}\n  certificates  {ca}", one.name, one.controller).into()
            })
        }
        ContextCommand::Use { name } => {
            let controller = saved.change(|all| {
                let controller = all.named(&name)?.controller.clone();
                all.current = Some(name.clone());
                Ok(controller)
            })?;
            Ok(done(output, format!("{name}, at {controller}, is in use")))
        }
        ContextCommand::Delete { name, yes } => {
            saved.load()?.named(&name)?;
            if !yes {
                confirm(&format!("The token of {name} is forgotten here."))?;
            }
            saved.change(|all| {
                all.contexts.remove(&name);
                all.current = all.current.take().filter(|current| *current != name);
                Ok(())
            })?;
            Ok(done(output, format!("{name} is forgotten")))
        }
        ContextCommand::Rename { name, new } => {
            check_name(&new)?;
            saved.change(|all| {
                let context = all.named(&name)?.clone();
                ensure!(!all.contexts.contains_key(&new), "there is a context `{new}` already: rackhand context list");
                all.contexts.remove(&name);
                all.contexts.insert(new.clone(), context);
                if all.current.as_ref() == Some(&name) {
                    all.current = Some(new.clone());
                }
                Ok(())
            })?;
            Ok(done(output, format!("{name} is called {new}")))
        }
    }
}

/// What is shown of a context: never its token.
#[derive(Deserialize)]
struct View {
    name: String,
    controller: String,
    current: bool,
    own_ca: bool,
}

fn view(all: &Contexts, name: &str, one: &Context) -> Value {
    let current = all.current.as_deref() == Some(name);
    json!({"name": name, "controller": one.controller, "current": current, "own_ca": one.ca.is_some()})
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let sound = |letter: char| letter.is_alphanumeric() || ".-_@".contains(letter);
    ensure!(
        !name.is_empty() && !name.starts_with('-') && name.chars().all(sound),
        "`{name}` is no name for a context: letters, digits, `.`, `-`, `_` and `@`"
    );
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bench() -> (tempfile::TempDir, Saved) {
        let dir = tempfile::tempdir().unwrap();
        let saved = Saved { path: dir.path().join("rackhand/config.toml") };
        (dir, saved)
    }

    fn at(host: &str, token: &str) -> Context {
        Context { controller: format!("https://{host}:8443"), token: token.into(), ca: None }
    }

    fn resolved(saved: &Saved, overrides: Overrides) -> anyhow::Result<(String, String)> {
        saved.resolve(overrides).map(|context| (context.controller, context.token))
    }

    #[test]
    fn the_latest_login_is_in_use_and_another_can_be_named() {
        let (_dir, saved) = bench();
        assert_eq!(saved.keep(None, at("a.example", "1")).unwrap(), "a.example");
        assert_eq!(saved.keep(Some("lab".into()), at("b.example", "2")).unwrap(), "lab");
        assert_eq!(resolved(&saved, Overrides::default()).unwrap().1, "2");
        let named = |name: &str| Overrides { context: Some(name.into()), ..Overrides::default() };
        assert_eq!(resolved(&saved, named("a.example")).unwrap().1, "1");
        let error = resolved(&saved, named("lob")).unwrap_err().to_string();
        assert!(error.contains("did you mean `lab`"), "{error}");
        // Logging in again to the same controller is no other context.
        assert_eq!(saved.keep(None, at("b.example", "3")).unwrap(), "lab");
        run(&saved, ContextCommand::Use { name: "a.example".into() }, Output::Table).unwrap();
        run(&saved, ContextCommand::Rename { name: "a.example".into(), new: "home".into() }, Output::Table).unwrap();
        assert_eq!(resolved(&saved, Overrides::default()).unwrap().1, "1");
        assert_eq!(run(&saved, ContextCommand::List, Output::Name).unwrap(), "home\nlab");
        run(&saved, ContextCommand::Delete { name: "home".into(), yes: true }, Output::Table).unwrap();
        assert!(resolved(&saved, Overrides::default()).is_err());
        let shown = run(&saved, ContextCommand::Show { name: Some("lab".into()) }, Output::Json).unwrap();
        assert!(!shown.contains("token"), "{shown}");
    }

    #[test]
    fn a_token_goes_to_its_own_controller_only() {
        let (_dir, saved) = bench();
        saved.keep(None, at("a.example", "1")).unwrap();
        let to = |host: &str, token: Option<&str>| Overrides {
            controller: Some(format!("https://{host}:8443")),
            token: token.map(str::to_owned),
            ..Overrides::default()
        };
        assert_eq!(resolved(&saved, to("a.example", None)).unwrap().1, "1");
        assert!(resolved(&saved, to("b.example", None)).is_err());
        assert_eq!(resolved(&saved, to("b.example", Some("9"))).unwrap().1, "9");
    }

    #[test]
    fn the_file_is_its_owners_alone_and_one_of_before_is_taken_over() {
        let (_dir, saved) = bench();
        fs::create_dir_all(saved.path.parent().unwrap()).unwrap();
        fs::write(&saved.path, "controller = \"https://old.example:8443\"\ntoken = \"rh_old\"\n").unwrap();
        fs::set_permissions(&saved.path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(resolved(&saved, Overrides::default()).unwrap().1, "rh_old");
        let mode = || fs::metadata(&saved.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        saved.keep(Some("new".into()), at("new.example", "rh_new")).unwrap();
        assert_eq!(mode(), 0o600);
        assert_eq!(run(&saved, ContextCommand::List, Output::Name).unwrap(), "new\nold.example");
        assert!(saved.keep(Some("../x".into()), at("x", "y")).is_err());
    }

    #[test]
    fn one_logs_in_again_without_saying_where_and_a_token_that_was_ended_is_not_sent() {
        let (dir, saved) = bench();
        let ca = dir.path().join("ca.pem");
        fs::write(&ca, "PEM").unwrap();
        let missing = saved.place(None, None, None).unwrap_err().to_string();
        assert!(missing.contains("--controller https://HOST:8443"), "{missing}");
        let first = saved.place(None, Some("https://a.example:8443/".into()), Some(ca)).unwrap();
        saved.keep(None, Context { token: "1".into(), ..first }).unwrap();
        saved.keep(Some("lab".into()), at("b.example", "2")).unwrap();
        saved.log_out("a.example").unwrap();
        let said = resolved(&saved, Overrides { context: Some("a.example".into()), ..Overrides::default() });
        assert!(said.unwrap_err().to_string().contains("you are logged out of https://a.example:8443"));
        // Another is in use as before.
        assert_eq!(resolved(&saved, Overrides::default()).unwrap().1, "2");
        let again = saved.place(Some("a.example"), None, None).unwrap();
        assert_eq!((again.controller.as_str(), again.ca.as_deref()), ("https://a.example:8443", Some("PEM")));
        assert!(again.token.is_empty());
    }
}
