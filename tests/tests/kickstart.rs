//! The kickstarts of the catalogue, held against the reader that the makers of Anaconda have for them.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output},
};

use rackhand_controller_core::os;

/// What `ksvalidator` says of a kickstart for this release; what is only deprecated is an error, too.
fn validated(release: &str, text: &str) -> Output {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/python/bin/ksvalidator");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Command::new(program)
        .args(["--firsterror", "--followincludes", "--version", release])
        .arg(file.path())
        .output()
        .expect("`cargo xtask test` installs pykickstart into target/python")
}

#[test]
fn every_kickstart_is_one_of_its_release() {
    let mut seen = 0;
    for system in os::catalogue() {
        let Some(text) = system.kickstart() else { continue };
        let release = format!("RHEL{}", system.version);
        let told = validated(&release, &text);
        assert!(told.status.success() && told.stderr.is_empty(), "{}: {told:?}", system.name);
        // What it would not take of another release, or with a mistake, it refuses.
        for (right, wrong) in [
            ("part / --fstype=ext4", "part / --filesystem=ext4"),
            ("%end", ""),
            ("bootloader --location=mbr", "bootloader --location=somewhere"),
            ("timezone Etc/UTC --utc", "install"),
        ] {
            assert!(text.contains(right), "{right}");
            let told = validated(&release, &text.replacen(right, wrong, 1));
            assert!(!told.status.success(), "`{wrong}` in place of `{right}`: {told:?}");
        }
        // Nor is what it has done afterwards anything but a script.
        let script = text.split_once("%post").and_then(|(_, post)| post.split_once('\n')).unwrap().1;
        let script = script.split_once("\n%end").unwrap().0;
        let told = Command::new("bash").args(["-n", "-c", script]).output().unwrap();
        assert!(told.status.success() && told.stderr.is_empty(), "{}: {told:?}", system.name);
        seen += 1;
    }
    assert_eq!(seen, 2, "Rocky's and CentOS Stream's");
}
