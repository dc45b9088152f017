//! The rules of this repository: where things are, and who may depend on whom.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every file of the tree, by its path from the top, but for what is built.
fn files() -> Vec<String> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    walk(&path, found);
                }
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), &mut found);
    let mut names: Vec<_> =
        found.iter().map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// Every Rust file but this one, which names what it forbids.
fn sources() -> Vec<(String, String)> {
    let rust = files().into_iter().filter(|name| name.ends_with(".rs") && name != "tests/tests/repository.rs");
    rust.map(|name| (name.clone(), read(&name))).collect()
}

/// What of a file runs in production; nothing of a file of tests.
fn production<'a>(name: &str, text: &'a str) -> &'a str {
    let is_test = name.split('/').any(|part| part == "tests" || part == "tests.rs");
    if is_test { "" } else { text.split("#[cfg(test)]\nmod tests").next().unwrap() }
}

/// Lines for which `is` holds, with where they stand.
fn lines(sources: &[(String, String)], is: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let lines = sources.iter().flat_map(|(name, text)| text.lines().enumerate().map(move |line| (name, line)));
    let found = lines.filter(|(name, (_, line))| is(name, line));
    found.map(|(name, (number, line))| format!("{name}:{}: {}", number + 1, line.trim())).collect()
}

#[track_caller]
fn none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn the_top_of_the_tree_is_as_agreed() {
    for name in ["Cargo.toml", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE"] {
        assert!(root().join(name).is_file(), "{name} is not there");
    }
    for name in ["agent", "common", "controller", "docs", "firmware-scripts", "tests", "xtask"] {
        assert!(root().join(name).is_dir(), "{name} is not there");
    }
    let workspace: toml::Table = toml::from_str(&read("Cargo.toml")).unwrap();
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let known = ["agent", "common", "controller", "tests", "xtask"];
    let elsewhere: Vec<_> = members
        .iter()
        .map(|member| member.as_str().unwrap().to_owned())
        .filter(|member| !known.contains(&member.split('/').next().unwrap()))
        .collect();
    none(&elsewhere, "crates are in agent, common, controller, tests and xtask");
}

#[test]
fn modules_are_named_after_what_they_are() {
    let vague = ["util", "utils", "helper", "helpers", "manager", "service", "misc", "common.rs"];
    let found: Vec<_> = files()
        .into_iter()
        .filter(|name| name.ends_with(".rs"))
        .filter(|name| name.split('/').skip(1).any(|part| vague.contains(&part.trim_end_matches(".rs"))))
        .collect();
    none(&found, "a module is named after its noun");
}

/// What each of our packages needs, directly or not, by `cargo metadata`: normal dependencies
/// only, or all kinds of its own.
fn needs(normal_only: bool) -> BTreeMap<String, BTreeSet<String>> {
    // Other platforms' packages are not on this disk.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--format-version", "1", "--filter-platform", &platform])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let names: BTreeMap<String, String> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let graph: BTreeMap<String, Vec<String>> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let ours = names[node["id"].as_str().unwrap()].starts_with("rackhand");
            let kept = |dependency: &&Value| {
                let kinds = dependency["dep_kinds"].as_array().unwrap();
                // Development dependencies count for our own crates only: nobody builds others'.
                kinds.iter().any(|kind| kind["kind"].is_null() || (!normal_only && ours))
            };
            let dependencies = node["deps"].as_array().unwrap().iter().filter(kept);
            (text(&node["id"]), dependencies.map(|dependency| text(&dependency["pkg"])).collect())
        })
        .collect();
    let mut found = BTreeMap::new();
    for (id, name) in names.iter().filter(|(_, name)| name.starts_with("rackhand")) {
        let (mut seen, mut rest) = (BTreeSet::new(), graph[id].clone());
        while let Some(next) = rest.pop() {
            if seen.insert(names[&next].clone()) {
                rest.extend(graph[&next].iter().cloned());
            }
        }
        found.insert(name.clone(), seen);
    }
    found
}

#[test]
fn agent_and_controller_do_not_depend_on_each_other() {
    let needs = needs(false);
    let of = |side: &str| {
        let manifests = files().into_iter().filter(|name| name.starts_with(side) && name.ends_with("Cargo.toml"));
        let name = |manifest: String| {
            let table: toml::Table = toml::from_str(&read(&manifest)).unwrap();
            table["package"]["name"].as_str().unwrap().to_owned()
        };
        manifests.map(name).collect::<BTreeSet<_>>()
    };
    let (agent, controller) = (of("agent/"), of("controller/"));
    assert!(agent.contains("rackhand-agent") && controller.contains("rackhand-controller"));
    for (one, other) in [(&agent, &controller), (&controller, &agent)] {
        for package in one {
            let crossing: Vec<_> = needs[package].intersection(other).cloned().collect();
            none(&crossing, &format!("{package} needs nothing of the other side"));
        }
    }
}

#[test]
fn cores_do_no_io() {
    let needs = needs(true);
    for core in ["rackhand-common", "rackhand-netboot", "rackhand-ipmi", "rackhand-controller-core"] {
        for forbidden in ["tokio", "sqlx", "quinn", "axum", "hyper", "reqwest", "redb"] {
            assert!(!needs[core].contains(forbidden), "{core} is a core and may not need {forbidden}");
        }
    }
    let clocks = ["Instant::now(", "SystemTime::now(", "Timestamp::now(", "std::net::Tcp", "std::net::Udp", "std::fs"];
    let cores = ["common/src/", "agent/netboot/src/", "agent/ipmi/src/", "controller/core/src/"];
    let sources: Vec<_> = sources()
        .into_iter()
        .filter(|(name, _)| cores.iter().any(|core| name.starts_with(core)))
        .map(|(name, text)| (name.clone(), production(&name, &text).to_owned()))
        .collect();
    assert!(sources.len() > 15, "the cores are elsewhere now");
    let found = lines(&sources, |_, line| clocks.iter().any(|clock| line.contains(clock)));
    none(&found, "a core knows no clock, no file and no socket");
}

#[test]
fn only_the_store_contains_sql() {
    let sql = ["sqlx::query", "INSERT INTO ", "DELETE FROM ", "SELECT * FROM ", " SET "];
    let sources = sources();
    let has_sql = |line: &str| sql[..4].iter().any(|word| line.contains(word)) || line.contains("\"UPDATE ");
    assert!(!lines(&sources, |name, line| name.starts_with("controller/src/store/") && has_sql(line)).is_empty());
    let found = lines(&sources, |name, line| !name.starts_with("controller/src/store/") && has_sql(line));
    none(&found, "only controller/src/store contains SQL");
}

#[test]
fn only_the_lifecycle_moves_a_lifecycle() {
    let sources: Vec<_> = sources()
        .into_iter()
        .filter(|(name, _)| name.starts_with("controller/src/"))
        .map(|(name, text)| (name.clone(), production(&name, &text).to_owned()))
        .collect();
    let mut found = lines(&sources, |_, line| {
        let line = line.replace("== Lifecycle::", "").replace("!= Lifecycle::", "");
        line.contains("lifecycle: Lifecycle::") || line.contains("lifecycle = Lifecycle::")
    });
    // A machine that was never seen has to begin somewhere.
    let first_seen = ["controller/src/events.rs:", "controller/src/restored.rs:"];
    found.retain(|line| !line.ends_with("Lifecycle::Discovered,") || !first_seen.iter().any(|at| line.starts_with(at)));
    none(&found, "a lifecycle comes from `Lifecycle::on` or out of the store");
}

#[test]
fn no_test_is_left_out_or_meant_to_panic() {
    let attributes = ["#[ignore", "#[should_panic", "#[cfg(ignore", "#![cfg(not(test"];
    let found = lines(&sources(), |_, line| attributes.iter().any(|attribute| line.trim().starts_with(attribute)));
    none(&found, "tests run, and say what they expect");
}

#[test]
fn what_is_to_be_done_has_an_issue() {
    let found = lines(&sources(), |_, line| {
        ["TODO", "FIXME", "XXX"].iter().any(|word| {
            line.match_indices(word).any(|(at, _)| {
                let is_word = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '`');
                let rest = &line[at + word.len()..];
                is_word(line[..at].chars().next_back()) && is_word(rest.chars().next()) && !rest.starts_with("(#")
            })
        })
    });
    none(&found, "write `TODO(#12)` or do it");
}

#[test]
fn no_story_sleeps() {
    let sources = sources();
    let stories: Vec<_> = sources.iter().filter(|(name, _)| name.starts_with("tests/tests/stories/")).collect();
    assert!(stories.len() > 3, "the stories are elsewhere now");
    // Simulated firmware and systems take their time; waiting for a state is `wait`'s.
    let found = lines(&sources, |name, line| name.starts_with("tests/tests/") && line.contains("sleep("));
    none(&found, "wait for a state with a deadline instead");
}

#[test]
fn every_ipxe_template_is_compiled_in() {
    let there: BTreeSet<String> =
        files().into_iter().filter_map(|name| name.strip_prefix("firmware-scripts/ipxe/").map(str::to_owned)).collect();
    let renderer = read("agent/netboot/src/ipxe.rs");
    let rendered: BTreeSet<String> = renderer
        .split("firmware-scripts/ipxe/")
        .filter_map(|rest| Some(rest.split_once(".ipxe\"")?.0.to_owned() + ".ipxe"))
        .collect();
    assert_eq!(there, rendered);
    let told = read("firmware-scripts/README.md");
    assert!(told.contains("| `ipxe/` |") && told.contains("agent/netboot/src/ipxe.rs"), "{told}");
}

#[test]
fn the_index_of_decisions_lists_every_page_by_its_title() {
    let index = read("docs/decisions/README.md");
    let pages: Vec<_> = files()
        .into_iter()
        .filter_map(|name| name.strip_prefix("docs/decisions/").map(str::to_owned))
        .filter(|name| name != "README.md")
        .collect();
    assert!(pages.len() >= 7);
    for page in &pages {
        let text = read(&format!("docs/decisions/{page}"));
        let title = text.lines().next().unwrap().trim_start_matches("# ");
        let row = format!("| [{}]({page}) | {title} |", &page[..4]);
        assert!(index.contains(&row), "docs/decisions/README.md lacks the row\n{row}");
    }
    let listed = index.matches(".md)").count();
    assert_eq!(listed, pages.len(), "docs/decisions/README.md lists a page that is not there");
}

#[test]
fn every_promise_names_tests_that_exist() {
    let promises = read("docs/promises.md");
    let names: BTreeSet<&str> = promises
        .split('`')
        .skip(1)
        .step_by(2)
        // The names of facts have many words; others are events and packages.
        .filter(|name| name.matches('_').count() >= 2 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .collect();
    assert!(names.len() > 15, "{names:?}");
    let sources = sources();
    let exists = |name: &str| {
        let (function, story) = (format!("fn {name}("), format!("(\"{name}\","));
        sources.iter().any(|(_, text)| text.contains(&function) || text.contains(&story))
    };
    let missing: Vec<_> = names.into_iter().filter(|name| !exists(name)).map(str::to_owned).collect();
    none(&missing, "docs/promises.md names tests that are not there");
}
