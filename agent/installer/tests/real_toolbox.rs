//! Programs of the real toolbox, in a mount namespace of their own. It wants root, loop devices and the
//! toolbox that `cargo xtask toolbox` made, named in `RACKHAND_TOOLBOX`: the gate runs it as a step of its own.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rackhand_common::{
    commission::{Exit, Outcome, Script, script, scripts},
    firmware,
};
use rackhand_installer::toolbox::{Given, Toolbox, Tools as _, make_room};
use tokio_util::sync::CancellationToken;

fn test(name: &str, limit: Duration, does: &str) -> Script {
    let part = "# part: a part\n# result: errors integer\n";
    let text = format!(
        "#!/bin/bash\n# name: {name}\n# title: It is\n# limit: 60s\n# destructive: no\n# alone: no\n{part}\n{does}\n"
    );
    Script { limit, ..Script::parse(&text).unwrap() }
}

/// A toy drive in the place of the toolbox's nvme-cli.
fn fit_toy(toolbox: &Toolbox) -> PathBuf {
    let place = toolbox.root().join("usr/local/sbin");
    fs::create_dir_all(place.join("toy")).unwrap();
    fs::write(place.join("nvme"), include_str!("../../../tests/toy/nvme")).unwrap();
    fs::set_permissions(place.join("nvme"), fs::Permissions::from_mode(0o755)).unwrap();
    place.join("toy")
}

/// Scripts that update firmware, run in the toolbox: what each says, and the version that the toy has then.
fn update(toolbox: &Toolbox) {
    let toy = fit_toy(toolbox);
    let version = || fs::read_to_string(toy.join("firmware")).unwrap().lines().next().unwrap().to_owned();
    let run = |name: &str, file: &[u8], arguments: &[&str], limit: Duration| {
        let known = firmware::script::script(name).unwrap();
        let (outside, inside) = toolbox.room_for_firmware("toy.bin").unwrap();
        fs::write(outside, file).unwrap();
        let given = Given {
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            environment: vec![("RACKHAND_FILE", inside), ("RACKHAND_PARTS", "nvme0n1".into())],
        };
        let script = Script { limit, ..known.clone() };
        let ran = toolbox.update(&script, &given);
        (script.judge(&ran, jiff::Timestamp::UNIX_EPOCH).to_string(), version())
    };
    let minute = Duration::from_secs(60);
    let expected = |said: &str, version: &str| (said.to_owned(), version.to_owned());
    fs::write(toy.join("firmware"), "1.0\n").unwrap();
    fs::write(toy.join("way"), "lies").unwrap();
    assert_eq!(run("nvme", b"2.0\n", &["activate"], minute), expected("test nvme passed", "1.0"));
    fs::write(toy.join("way"), "works").unwrap();
    assert_eq!(run("nvme", b"2.0\n", &["activate"], minute), expected("test nvme passed", "2.0"));
    assert_eq!(run("nvme", b"3.0\n", &[], minute), expected("test nvme passed", "2.0"));
    assert!(toy.join("next").exists());
    fs::write(toy.join("way"), "hangs").unwrap();
    let (said, _) = run("nvme", b"4.0\n", &["activate"], Duration::from_secs(1));
    assert!(said.starts_with("test nvme broken: it was not done within its limit"), "{said}");
    // The maker's own program.
    let updater = b"#!/bin/sh\n[ \"$1\" = -y ] || exit 3\necho 5.0 > /usr/local/sbin/toy/firmware\n";
    let refused = "test updater failed: the updater ended with 3";
    assert_eq!(run("updater", updater, &[], minute), expected(refused, "2.0"));
    assert_eq!(run("updater", updater, &["-y"], minute), expected("test updater passed", "5.0"));
}

/// With the toolbox that `cargo xtask toolbox` made, in a mount namespace that ends with this test.
#[test]
fn programs_of_the_real_toolbox_run_are_judged_and_end_with_all_they_started() {
    let from = PathBuf::from(std::env::var_os("RACKHAND_TOOLBOX").expect("RACKHAND_TOOLBOX names the toolbox"));
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("toolbox");
    let alone = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let size = fs::metadata(&from).unwrap().len();
        let file = make_room(&place, size).unwrap();
        fs::copy(&from, &file).unwrap();
        let toolbox = Toolbox::mount(&place, &file).unwrap();
        for script in scripts().iter().chain(firmware::script::scripts()) {
            let missing: Vec<_> = script.programs.iter().filter(|program| !toolbox.has(program)).collect();
            assert!(missing.is_empty(), "{}: {missing:?}", script.name);
        }
        let now = jiff::Timestamp::UNIX_EPOCH;
        let staying = CancellationToken::new();
        let judged = |script: &Script| script.judge(&toolbox.run(script, &staying), now).to_string();
        let minute = Duration::from_secs(60);
        let good = "stress-ng --cpu 1 --timeout 1s && jq -n '{errors: 0}' > $RACKHAND_RESULT";
        assert_eq!(judged(&test("good", minute, good)), "test good passed");
        let bad = "jq -n '{errors: 2, findings: [\"DIMM A1\"]}' > $RACKHAND_RESULT; exit 1";
        assert_eq!(judged(&test("bad", minute, bad)), "test bad failed: DIMM A1");
        assert_eq!(judged(&test("none", minute, "echo no disk; exit 77")), "test none skipped: no disk");
        // What changes is not in the file.
        assert_eq!(
            judged(&test("writes", minute, "touch /etc/new; rm /usr/bin/jq; echo '{\"errors\":0}' > $RACKHAND_RESULT")),
            "test writes passed"
        );
        assert!(!toolbox.has("jq"));
        // A real one; whatever this machine's cards are like, it can be carried out.
        let again = make_room(&place, size).unwrap();
        fs::copy(&from, &again).unwrap();
        let toolbox = Toolbox::mount(&place, &again).unwrap();
        assert!(toolbox.has("jq"));
        let nic = script("nic").unwrap();
        let ran = toolbox.run(nic, &staying);
        let tested = nic.judge(&ran, now);
        assert_ne!(tested.outcome, Outcome::Broken, "{tested:?}");

        update(&toolbox);

        // Its limit, and a withdrawal, end it with what it left in the background.
        let hangs = "sleep 600 & echo $! ; wait";
        let began = Instant::now();
        let ran = toolbox.run(&test("hangs", Duration::from_secs(1), hangs), &staying);
        assert_eq!(ran.exit, Exit::Limit);
        let left = String::from_utf8(ran.output).unwrap();
        assert!(!Path::new("/proc").join(left.trim()).join("root/etc/os-release").exists(), "{left} still runs");
        let withdrawn = CancellationToken::new();
        withdrawn.cancel();
        assert_eq!(toolbox.run(&test("ends", minute, hangs), &withdrawn).exit, Exit::Limit);
        assert!(began.elapsed() < minute);
    });
    alone.join().unwrap();
}
