//! The unit files as systemd reads them, and that binaries, units, packages' files and
//! documents name the same places.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rackhand_agent::{agent, boot};
use rackhand_controller::controller;

/// Every unit, and the program it starts.
const UNITS: [(&str, &str); 3] = [
    ("agent/systemd/rackhand-agent.service", "/usr/bin/rackhand-agent serve"),
    ("agent/systemd/rackhand-boot.service", "/usr/bin/rackhand-agent boot"),
    ("controller/systemd/rackhand-controller.service", "/usr/bin/rackhand-controller serve"),
];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What a unit or a file like it says of `key`, one value per line that does.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

/// Runs systemd-analyze on all units, with a program in `ExecStart` that exists here.
fn analyze(arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let files = UNITS.map(|(unit, program)| {
        let file = dir.path().join(Path::new(unit).file_name().unwrap());
        let text = text(unit);
        assert!(text.contains(&format!("ExecStart={program} ")), "{unit}");
        fs::write(&file, text.replace(program.split(' ').next().unwrap(), "/bin/true")).unwrap();
        file
    });
    Command::new("systemd-analyze")
        .args(arguments)
        .args(files)
        .env("SYSTEMD_UNIT_PATH", format!("{}:", dir.path().display()))
        .output()
        .expect("systemd-analyze cannot be run: apt-get install systemd")
}

#[test]
fn systemd_understands_every_line_of_the_units() {
    let output = analyze(&["verify", "--man=no"]);
    let said = String::from_utf8_lossy(&output.stderr);
    // Units of the machine this runs on are read as well and are none of ours.
    let ours: Vec<_> = said.lines().filter(|line| line.contains("rackhand")).collect();
    assert!(ours.is_empty(), "{said}");
    assert!(output.status.success(), "{said}");
}

/// systemd below version 253 knows no `Type=notify-reload`: it is told by the process that it
/// reloads, and when it has.
#[test]
fn the_units_are_reloaded_by_the_signal_the_programs_know() {
    for (unit, _) in UNITS {
        let text = text(unit);
        assert_eq!(values(&text, "Type"), ["notify"], "{unit}");
        assert_eq!(values(&text, "ExecReload"), ["/bin/kill -HUP $MAINPID"], "{unit}");
    }
}

#[test]
fn the_units_are_confined() {
    let output = analyze(&["security", "--offline=true", "--threshold=25", "--no-pager"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "exposure above 2.5:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// A core dump would carry keys, tickets and user data out of the process.
#[test]
fn no_service_leaves_a_core_dump() {
    for (unit, _) in UNITS {
        assert_eq!(values(&text(unit), "LimitCORE"), ["0"], "{unit}");
    }
}

/// The directories the binaries use when nothing is configured, by unit.
fn default_states() -> [PathBuf; 3] {
    let nowhere = Path::new("/nonexistent/rackhand.toml");
    let dir = tempfile::tempdir().unwrap();
    let boot_toml = dir.path().join("boot.toml");
    fs::write(&boot_toml, "interface = \"prov0\"\naddress = \"10.77.0.1\"\n").unwrap();
    let file = controller::File { names: vec!["ctl.example.net".into()], ..controller::File::default() };
    [
        agent::Config::load(nowhere).unwrap().state,
        boot::Config::load(&boot_toml).unwrap().state,
        controller::Config::try_from(file).unwrap().data,
    ]
}

#[test]
fn binaries_units_and_packages_name_the_same_state_directories() {
    for ((unit, _), state) in UNITS.iter().zip(default_states()) {
        let text = text(unit);
        let directories = values(&text, "StateDirectory");
        assert_eq!(directories.len(), 1, "{unit}");
        assert_eq!(Path::new("/var/lib").join(directories[0]), state, "{unit}");
        assert_eq!(values(&text, "StateDirectoryMode"), ["0700"], "{unit}");

        let (user, group) = (values(&text, "User")[0], values(&text, "Group")[0]);
        let package = if unit.starts_with("controller") { "rackhand-controller" } else { "rackhand-agent" };
        let beside = repository(unit).parent().unwrap().join(package);
        let sysusers = fs::read_to_string(beside.with_extension("sysusers")).unwrap();
        let row = sysusers.lines().find(|line| line.starts_with(&format!("u {user} "))).unwrap();
        assert!(row.contains(&format!("\" {} -", state.display())), "{row}");
        let tmpfiles = fs::read_to_string(beside.with_extension("tmpfiles")).unwrap();
        let row = format!("d {} 0700 {user} {group} -", state.display());
        assert!(tmpfiles.lines().any(|line| line == row), "{row} is not in\n{tmpfiles}");

        // Of the others' state this service sees nothing, or has no right to.
        let hidden = values(&text, "InaccessiblePaths").join(" ");
        for other in default_states().iter().filter(|other| **other != state) {
            assert!(
                hidden.contains(&format!("-{}", other.display())) || user == "rackhand-agent",
                "{unit} may see {}",
                other.display()
            );
        }
    }
}

#[test]
fn agent_and_boot_meet_at_the_socket_of_the_agents_runtime_directory() {
    let unit = text(UNITS[0].0);
    let socket = agent::Config::load(Path::new("/nonexistent/rackhand.toml")).unwrap().socket;
    let dir = Path::new("/run").join(values(&unit, "RuntimeDirectory")[0]);
    assert_eq!(socket.parent(), Some(dir.as_path()));
    assert_eq!(values(&unit, "RuntimeDirectoryMode"), ["0750"]);
    let groups: BTreeSet<_> = UNITS[..2].iter().map(|(unit, _)| values(&text(unit), "Group")[0].to_owned()).collect();
    assert_eq!(groups.into_iter().collect::<Vec<_>>(), ["rackhand"]);
    assert!(text("agent/diag/src/main.rs").contains(&format!("default_value = {socket:?}")));
}

/// A configuration file with every setting that stands commented out.
fn uncommented(path: &str) -> String {
    let setting = |line: &&str| line.starts_with('[') || line.starts_with('"') || line.contains(" = ");
    let text = text(path);
    let lines = text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).filter(setting);
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn what_the_packages_configuration_shows_commented_out_is_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let shown = agent::Config::load(&file("agent.toml", &uncommented("agent/systemd/agent.toml"))).unwrap();
    let power = "[power]\ncommand = [\"/usr/local/lib/rackhand/power\"]\n";
    let default = agent::Config::load(&file("agent.toml", power)).unwrap();
    assert_eq!(format!("{shown:?}"), format!("{default:?}"));

    let shown = boot::Config::load(&file("boot.toml", &uncommented("agent/systemd/boot.toml"))).unwrap();
    let needed = "interface = \"enp2s0\"\naddress = \"10.77.0.1\"\n";
    let default = boot::Config::load(&file("boot.toml", needed)).unwrap();
    assert_eq!(format!("{shown:?}"), format!("{default:?}"));

    let config = |path: &Path| controller::Config::try_from(controller::File::read(path).unwrap().unwrap()).unwrap();
    let mut shown = config(&file("controller.toml", &uncommented("controller/systemd/controller.toml")));
    let needed = "names = [\"rackhand.example.net\", \"192.0.2.10\"]\n";
    let default = config(&file("controller.toml", needed));
    assert_eq!(shown.agents_address.take().as_deref(), Some("rackhand.example.net:4433"));
    // Where another database is, nobody can say beforehand.
    assert!(shown.server.take().is_some() && default.server.is_none());
    assert!(shown.oidc.take().is_some() && default.oidc.is_none());
    assert_eq!(format!("{shown:?}"), format!("{default:?}"));

    // As packaged, with nothing taken out of its comment, the agent starts and boot says what it needs.
    agent::Config::load(&repository("agent/systemd/agent.toml")).unwrap();
    let error = boot::Config::load(&repository("agent/systemd/boot.toml")).unwrap_err();
    assert!(format!("{error:#}").contains("missing field `interface`"), "{error:#}");
}

/// A document that names a directory nobody uses sends operators to the wrong place.
#[test]
fn documents_name_no_other_places() {
    let mut known: Vec<String> = default_states().map(|state| state.display().to_string()).into();
    known.extend(["/usr/lib/rackhand/installer".into(), "/run/rackhand/agent.sock".into()]);
    for document in fs::read_dir(repository("docs/operator")).unwrap() {
        let path = document.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for start in ["/var/lib/rackhand", "/usr/lib/rackhand", "/run/rackhand"] {
            for (at, _) in text.match_indices(start) {
                let named: String =
                    text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || "/._-".contains(*c)).collect();
                let fits = known.iter().any(|known| {
                    named == *known
                        || named.starts_with(&format!("{known}/"))
                        || known.starts_with(&format!("{named}/"))
                });
                assert!(fits, "{} names {named}", path.display());
            }
        }
    }
}
