//! The documents against the programs: every command that is shown exists with its flags, every
//! configuration that is shown is accepted, every link leads somewhere.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const PROGRAMS: [&str; 4] = ["rackhand", "rackhand-controller", "rackhand-agent", "rackhand-diag"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every Markdown file, by its path from the top.
fn documents() -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                walk(&path, found);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), &mut found);
    found.sort();
    assert!(found.len() > 10, "{found:?}");
    let text = |path: &PathBuf| fs::read_to_string(path).unwrap();
    found.iter().map(|path| (path.strip_prefix(root()).unwrap().to_owned(), text(path))).collect()
}

/// The fenced blocks of this language, each with the text before it.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<(&'a str, &'a str)> {
    let fence = format!("```{language}\n");
    let starts = text.match_indices(&fence);
    starts.map(|(at, _)| (&text[..at], text[at + fence.len()..].split("\n```").next().unwrap())).collect()
}

/// The commands of a document: those behind a prompt in a console block, and those between
/// backticks in its text that have more words than one.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (_, block) in blocks(text, "console") {
        for line in block.replace("\\\n", " ").lines() {
            let prompt = line.find(['#', '$']).filter(|at| line[..*at].bytes().all(|b| b.is_ascii_alphanumeric()));
            let Some(at) = prompt else { continue };
            let command = line[at + 1..].split(" #").next().unwrap();
            found.extend(command.split("&&").flat_map(|part| part.split('|')).map(|part| part.trim().to_owned()));
        }
    }
    for line in text.lines().filter(|line| !line.starts_with("```")) {
        let spans = line.split('`').skip(1).step_by(2).filter(|span| span.trim().contains(' '));
        found.extend(spans.map(|span| span.trim().to_owned()));
    }
    found
}

/// Where the programs are that were built with this test.
fn built(program: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join(program);
    assert!(path.is_file(), "{} is not there: run `cargo build --workspace --bins` first", path.display());
    path
}

/// Answers of `--help`, each asked for once.
#[derive(Default)]
struct Help(BTreeMap<Vec<String>, String>);

impl Help {
    fn of(&mut self, words: &[String]) -> &str {
        self.0.entry(words.to_vec()).or_insert_with(|| {
            let output = Command::new(built(&words[0])).args(&words[1..]).arg("--help").output().unwrap();
            assert!(output.status.success(), "{words:?} --help: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// What is wrong with a command line, by the programs' own word.
    fn check(&mut self, line: &str) -> Result<(), String> {
        let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        if words.starts_with(&["cargo".to_owned(), "xtask".to_owned()]) {
            words.remove(0);
        }
        let mut path = vec![words.remove(0)];
        let mut rest = words.into_iter().peekable();
        loop {
            let known = subcommands(self.of(&path));
            match rest.peek() {
                Some(word) if known.contains(word.as_str()) => path.push(rest.next().unwrap()),
                // A group does nothing by itself; whoever takes values too has them in its usage.
                Some(word) if !known.is_empty() && !word.starts_with('-') && !takes_values(self.of(&path)) => {
                    return Err(format!("`{}` has no command `{word}`", path.join(" ")));
                }
                _ => break,
            }
        }
        let help = self.of(&path);
        for word in rest.filter(|word| word.starts_with('-')) {
            let flag = word.split('=').next().unwrap();
            let listed = help.split(|c: char| c.is_whitespace() || ",[]=".contains(c)).any(|word| word == flag);
            if !listed {
                return Err(format!("`{}` has no flag `{flag}`", path.join(" ")));
            }
        }
        Ok(())
    }
}

fn subcommands(help: &str) -> BTreeSet<&str> {
    let section = help.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap());
    let names = section.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).collect()
}

fn takes_values(help: &str) -> bool {
    help.contains("\nArguments:\n")
}

#[test]
fn every_command_that_is_shown_exists_with_its_flags() {
    let (mut help, mut checked, mut wrong) = (Help::default(), 0, Vec::new());
    for (path, text) in documents() {
        for command in commands(&text) {
            let program = command.split_whitespace().next().unwrap_or_default();
            if !PROGRAMS.contains(&program) && !command.starts_with("cargo xtask ") {
                continue;
            }
            checked += 1;
            if let Err(error) = help.check(&command) {
                wrong.push(format!("{}: {command}\n    {error}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 20, "only {checked} commands were found");
}

#[test]
fn a_command_that_does_not_exist_is_noticed() {
    let mut help = Help::default();
    for (good, bad) in [
        ("rackhand machine list", "rackhand machine dance"),
        ("rackhand machine adopt m-0001 --accept-data", "rackhand machine adopt m-0001 --accept"),
        ("cargo xtask demo down", "cargo xtask demonstrate"),
        ("rackhand-controller init --name a", "rackhand-controller init --names a"),
    ] {
        help.check(good).unwrap();
        help.check(bad).unwrap_err();
    }
}

#[test]
fn every_configuration_that_is_shown_is_accepted() {
    let mut checked = 0;
    for (path, text) in documents() {
        for (before, block) in blocks(&text, "toml") {
            // The file named last before it is the one it stands in.
            let file = before.rsplit("/etc/rackhand/").next().filter(|rest| rest.len() < before.len());
            let name = file.and_then(|rest| rest.split_once(".toml")).map(|(name, _)| name);
            let accepted = match name {
                Some("agent") => toml::from_str::<rackhand_agent::agent::File>(block)
                    .map_err(|error| error.to_string())
                    .and_then(|file| rackhand_agent::agent::Config::try_from(file).map(drop)),
                Some("boot") => toml::from_str::<rackhand_agent::boot::File>(block)
                    .map_err(|error| error.to_string())
                    .and_then(|file| rackhand_agent::boot::Config::try_from(file).map(drop)),
                Some("controller") => toml::from_str::<rackhand_controller::controller::File>(block)
                    .map_err(|error| error.to_string())
                    .and_then(|file| rackhand_controller::controller::Config::try_from(file).map(drop)),
                Some(rules) if rules.starts_with("health/") => {
                    rackhand_agent::health::rules::Rules::read([(rules, block)])
                        .map(drop)
                        .map_err(|error| error.to_string())
                }
                Some(profiles) if profiles.starts_with("bios/") => {
                    rackhand_agent::bmcs::Profiles::read([(profiles, block)])
                        .map(drop)
                        .map_err(|error| error.to_string())
                }
                other => Err(format!("the text before it names no file of ours in /etc/rackhand, but {other:?}")),
            };
            checked += 1;
            accepted.unwrap_or_else(|error| panic!("{}:\n{block}\n{error}", path.display()));
        }
    }
    assert!(checked > 0, "no configuration is shown anywhere");
}

/// The pages that the packages hold, as groff sets them: what it complains of, and what is read.
fn set(pages: &[PathBuf]) -> (String, String) {
    let mut groff = Command::new("groff");
    groff.args(["-K", "utf8", "-t", "-mandoc", "-ww", "-Tutf8", "-P", "-cbou", "-rLL=78n"]).args(pages);
    let output = groff.output().expect("groff starts: is groff-base installed?");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let complaints = text(output.stderr);
    assert!(output.status.success(), "{complaints}");
    (complaints, text(output.stdout))
}

#[test]
fn every_man_page_is_set_without_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    for program in PROGRAMS {
        let pages = directory.path().join(program);
        fs::create_dir(&pages).unwrap();
        let output = Command::new(built(program)).arg("documentation").arg(&pages).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        let pages = fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().path());
        let mut pages: Vec<_> = pages.filter(|page| page.extension().is_some_and(|end| end == "1")).collect();
        pages.sort();
        assert!(pages.iter().any(|page| page.ends_with(format!("{program}.1"))), "{pages:?}");
        let (complaints, text) = set(&pages);
        assert_eq!(complaints, "", "{program}");
        // Lines are filled with space, wherever that happens to fall.
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("SYNOPSIS") && words.contains(&format!("{program} - ")), "{text}");
    }
}

#[test]
fn a_man_page_with_a_mistake_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("bad.1");
    fs::write(&page, ".TH bad 1\n.SH NAME\nbad \\(zz\n").unwrap();
    assert_ne!(set(&[page]).0, "");
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let (mut checked, mut dead) = (0, Vec::new());
    for (path, text) in documents() {
        for rest in text.split("](").skip(1) {
            let link = rest.split([')', ' ']).next().unwrap();
            let target = link.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            checked += 1;
            if !root().join(&path).parent().unwrap().join(target).exists() {
                dead.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{}", dead.join("\n"));
    assert!(checked > 10, "only {checked} links were found");
}
