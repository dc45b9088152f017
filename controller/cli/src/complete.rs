//! `rackhand complete`: what the shells' completion scripts ask for the names that fit at the
//! cursor; and those scripts.
//!
//! Whoever presses Tab waits: there are names within a second, or none. They are kept for some
//! seconds, since Tab is pressed again. What goes wrong is not told.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Arg, Command};
use clap_complete::Shell;

use crate::{
    client::{Client, Page},
    context::{Context, Overrides, Saved},
};

/// How long is waited for a controller.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long names are kept.
const KEPT: Duration = Duration::from_secs(5);

/// The script for a shell.
pub(crate) fn script(shell: Shell, command: &mut Command) -> anyhow::Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "rackhand", &mut script);
    let script = String::from_utf8(script)?;
    Ok(match shell {
        Shell::Bash => script + BASH,
        Shell::Fish => script + FISH,
        Shell::Zsh => match script.rsplit_once("\nif [ \"$funcstack[1]\"") {
            Some((functions, end)) => {
                let end = end.replace("    _rackhand \"$@\"", "    _rackhand_names \"$@\"");
                let end = end.replace("compdef _rackhand rackhand", "compdef _rackhand_names rackhand");
                format!("{functions}\n{ZSH}\nif [ \"$funcstack[1]\"{end}")
            }
            None => script,
        },
        _ => script,
    })
}

const BASH: &str = r#"
_rackhand_names() {
    _rackhand "$@"
    local name names
    names=$(rackhand complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    [[ -n "$names" ]] || return 0
    COMPREPLY=()
    while IFS= read -r name; do
        COMPREPLY+=("$name")
    done <<< "$names"
}

complete -F _rackhand_names -o bashdefault -o default rackhand
"#;

const FISH: &str = r#"
complete -c rackhand -f -a "(rackhand complete -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)"
"#;

const ZSH: &str = r#"
(( $+functions[_rackhand_names] )) ||
_rackhand_names() {
    local -a names
    names=(${(f)"$(rackhand complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( $#names )); then
        compadd -a names
    else
        _rackhand "$@"
    fi
}
"#;

/// The names that begin as the last of these words does.
pub(crate) fn names(command: &mut Command, words: &[String]) -> Vec<String> {
    command.build();
    let Some((current, _)) = words.split_last() else { return Vec::new() };
    let names = match wanted(command, words) {
        Some(Wanted::Contexts) => Saved::of_this_user().and_then(|saved| saved.names()).unwrap_or_default(),
        Some(Wanted::Of { path, field }) => of_controller(words, path, field, current).unwrap_or_default(),
        None => Vec::new(),
    };
    names.into_iter().filter(|name| name.starts_with(current.as_str())).collect()
}

/// What fits at the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// The controllers somebody is logged in to.
    Contexts,
    /// This field of the things of a list.
    Of { path: &'static str, field: &'static str },
}

/// What the last of these words is the beginning of.
fn wanted(command: &Command, words: &[String]) -> Option<Wanted> {
    let (current, before) = words.split_last()?;
    let (mut command, mut position, mut option) = (command, 0, None);
    for word in before {
        // bash tells `--image=debian` in three words.
        if word == "=" {
            continue;
        }
        if option.take().is_some() {
            continue;
        }
        let takes = |arg: &&Arg| arg.get_action().takes_values();
        if let Some(long) = word.strip_prefix("--") {
            option = command.get_arguments().find(|arg| arg.get_long() == Some(long)).filter(takes);
        } else if let Some(short) = word.strip_prefix('-') {
            let is = |arg: &&Arg| arg.get_short().is_some_and(|letter| short == letter.to_string());
            option = command.get_arguments().find(is).filter(takes);
        } else if let Some(part) = command.find_subcommand(word) {
            command = part;
        } else {
            position += 1;
        }
    }
    let arg = match option {
        Some(arg) => arg,
        None if current.starts_with('-') => return None,
        None => command.get_positionals().nth(position)?,
    };
    let of = |path, field| Some(Wanted::Of { path, field });
    match arg.get_id().as_str() {
        "context" => Some(Wanted::Contexts),
        "name" if command.get_bin_name().is_some_and(|path| path.starts_with("rackhand context ")) => {
            Some(Wanted::Contexts)
        }
        "machine" | "into" => of("/v1/machines", "name"),
        "rack" => of("/v1/racks", "name"),
        "image" => of("/v1/images", "name"),
        "pool" => of("/v1/pools", "name"),
        "vrf" => of("/v1/vrfs", "name"),
        "plan" => of("/v1/plans", "name"),
        "project" => of("/v1/projects", "name"),
        "organisation" => of("/v1/organisations", "name"),
        "site" => of("/v1/sites", "name"),
        "to" if command.get_name() == "move-rack" => of("/v1/sites", "name"),
        "person" => of("/v1/people", "name"),
        "run" => of("/v1/runs", "id"),
        "agent" => of("/v1/agents", "id"),
        "aggregate" => of("/v1/aggregates", "id"),
        "claim" => of("/v1/claims", "prefix"),
        _ => None,
    }
}

fn of_controller(words: &[String], path: &str, field: &str, current: &str) -> anyhow::Result<Vec<String>> {
    let given = |option: &str| {
        let after = words.iter().skip_while(|word| *word != option).nth(1).cloned();
        after.or_else(|| std::env::var(format!("RACKHAND_{}", option[2..].to_uppercase())).ok())
    };
    let context = Context::resolve(Overrides {
        context: given("--context"),
        controller: given("--controller"),
        token: given("--token"),
        ca: given("--ca").map(PathBuf::from),
    })?;
    // There may be more machines than a page has: those are asked for that begin so.
    let start = if path == "/v1/machines" { current } else { "" };
    let mut key = DefaultHasher::new();
    (&context.controller, &context.token, path, start).hash(&mut key);
    let kept = cache().map(|cache| cache.join(format!("{:016x}", key.finish())));
    if let Some(names) = kept.as_deref().and_then(fresh) {
        return Ok(names);
    }
    let client = Client::new(context)?;
    let mut query = vec![("limit", "200".to_owned())];
    if !start.is_empty() {
        query.push(("name", start.to_owned()));
    }
    let asked = async { tokio::time::timeout(PATIENCE, client.get_with::<Page>(path, &query)).await };
    let page = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(asked)??;
    let named = page.items.iter().filter_map(|thing| thing.get(field)?.as_str().map(str::to_owned));
    let names: Vec<String> = named.collect();
    if let Some(kept) = kept {
        // Without it they are asked for again.
        let _ = keep(&kept, &names);
    }
    Ok(names)
}

fn cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("rackhand"))
}

fn fresh(kept: &Path) -> Option<Vec<String>> {
    let age = fs::metadata(kept).ok()?.modified().ok()?.elapsed().ok()?;
    let text = (age < KEPT).then(|| fs::read_to_string(kept).ok())??;
    Some(text.lines().map(str::to_owned).collect())
}

fn keep(kept: &Path, names: &[String]) -> std::io::Result<()> {
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700).create(kept.parent().expect("it has a file name"))?;
    let new = kept.with_extension(std::process::id().to_string());
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(names.join("\n").as_bytes())?;
    fs::rename(&new, kept)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_cursor_tells_what_is_wanted() {
        let mut command = crate::Cli::command();
        command.build();
        let at = |line: &str| {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            wanted(&command, &words)
        };
        let of = |path, field| Some(Wanted::Of { path, field });
        let machines = of("/v1/machines", "name");
        assert_eq!(at("machine show w"), machines);
        assert_eq!(at("machine show "), machines);
        assert_eq!(at("-o json machine deploy --image deb"), of("/v1/images", "name"));
        assert_eq!(at("machine deploy --image = deb"), of("/v1/images", "name"));
        assert_eq!(at("machine deploy --image debian --wait w"), machines);
        assert_eq!(at("ip claim p"), of("/v1/pools", "name"));
        assert_eq!(at("ip claim public-4 --machine "), machines);
        assert_eq!(at("run show "), of("/v1/runs", "id"));
        assert_eq!(at("ip release 198."), of("/v1/claims", "prefix"));
        assert_eq!(at("plan show "), of("/v1/plans", "name"));
        assert_eq!(at("machine deploy web-1 --project s"), of("/v1/projects", "name"));
        assert_eq!(at("role grant operator a"), of("/v1/people", "name"));
        assert_eq!(at("site move-rack lab --to f"), of("/v1/sites", "name"));
        assert_eq!(at("--context l"), Some(Wanted::Contexts));
        assert_eq!(at("context use l"), Some(Wanted::Contexts));
        for nothing in ["machine sh", "machine show --w", "rack create l", "machine rename web-1 x", "pool create s"] {
            assert_eq!(at(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn names_are_kept_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("rackhand/0");
        keep(&kept, &["web-1".into(), "web-2".into()]).unwrap();
        assert_eq!(fresh(&kept).unwrap(), ["web-1", "web-2"]);
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
